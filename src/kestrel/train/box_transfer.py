# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Boxes found in single real sweeps, judged by recall and false boxes: of few tracks AP says little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from kestrel.ops import rotated_iou
from kestrel.train.judged_bag import GROUPS, JUDGED_RANGE_M, JudgedSweep, judged_sweeps
from kestrel.train.progress import track
from kestrel.types import BevMap, Boxes3D, Float64Array, SensorFrame

Detector = Callable[[SensorFrame], tuple[Boxes3D, BevMap]]
Counts = Counter[tuple[str, ...]]

THRESHOLDS: Final = (0.1, 0.3, 0.4, 0.5)
"""Scores from which on a box counts; the first is that of the fusion node."""

MATCHES: Final = {
    "vehicle": {"iou50": 0.5, "2m": 2.0},
    "cycle": {"1m": 1.0},
    "pedestrian": {"1m": 1.0},
}
"""By group, when a box has found a true one: from this overlap on, seen from above, or closer than so many
metres, middle to middle. The first decides which boxes are false."""

BY_OVERLAP: Final = "iou50"


def score_detections(detect: Detector, bag: Path) -> dict[str, float]:
    """Return how many true boxes of a bag are found, and how many boxes are false, from its LiDAR alone.

    Every sweep stands for itself. A box finds a true one of any class of its group, the surest box first.
    True boxes within 40 m with at least one point count for recall. A box that found none is false if it
    lies within 40 m where the truth says what is there. Below ``score_0.1`` and the like the names are
    ``recall/GROUP/MATCH`` and ``false_per_sweep/GROUP``; ``track/GROUP/ID/found`` of ``.../sweeps`` are for
    the first of THRESHOLDS and the first match.

    Raises:
        InputError, CalibrationError: see judged_sweeps.
    """
    counts: Counts = Counter()
    sweeps = judged_sweeps(bag)
    for sweep in track(sweeps, "boxes"):
        cloud = sweep.cloud
        boxes, _ = detect(SensorFrame(cloud.stamp_ns, cloud.frame_id, cloud, {}, {}))
        for threshold in THRESHOLDS:
            for group in GROUPS:
                _count(counts, sweep, boxes.chosen(boxes.score >= threshold), group, threshold)
    values: dict[str, float] = {"sweeps": float(len(sweeps))}
    for threshold in THRESHOLDS:
        below = f"score_{threshold:g}"
        for group, matches in MATCHES.items():
            if true := counts[below, group]:
                for match in matches:
                    values[f"{below}/recall/{group}/{match}"] = counts[below, group, match] / true
            values[f"{below}/false_per_sweep/{group}"] = counts[below, group, "false"] / len(sweeps)
    return values | {
        "/".join(key): float(count) for key, count in sorted(counts.items()) if key[0] == "track"
    }


def _count(counts: Counts, sweep: JudgedSweep, boxes: Boxes3D, group: str, threshold: float) -> None:
    below = f"score_{threshold:g}"
    true = sweep.truth.chosen(_is_of(sweep.truth, group))
    own = boxes.chosen(_is_of(boxes, group))
    judged = _is_judged(true)
    counts[below, group] += int(judged.sum())
    for number, (match, limit) in enumerate(MATCHES[group].items()):
        closeness = _overlap(own, true) if match == BY_OVERLAP else -_distance(own, true)
        found, is_right = assign(own.score, closeness, limit if match == BY_OVERLAP else -limit)
        counts[below, group, match] += int((found & judged).sum())
        if number == 0:
            counts[below, group, "false"] += int((~is_right & sweep.known(own.center)).sum())
            if threshold == THRESHOLDS[0]:
                _count_tracks(counts, group, true.chosen(judged), found[judged])


def _count_tracks(counts: Counts, group: str, true: Boxes3D, found: NDArray[np.bool_]) -> None:
    if true.track_id is None:
        return
    for identity, was_found in zip(true.track_id.tolist(), found.tolist(), strict=True):
        if identity >= 0:
            counts["track", group, str(identity), "sweeps"] += 1
            counts["track", group, str(identity), "found"] += was_found


def assign(
    score: NDArray[np.float32], closeness: Float64Array, least: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Give every box, the surest first, the closest true box that is free and close enough.

    Args:
        score: (N,) of the boxes.
        closeness: (N, M) of boxes to true boxes, the larger the closer.
        least: that is close enough.

    Returns:
        Which of the true boxes (M,) were found, and which of the boxes (N,) found one.
    """
    found, is_right = np.zeros(closeness.shape[1], np.bool_), np.zeros(closeness.shape[0], np.bool_)
    for row in np.argsort(-score, kind="stable"):
        free = np.where(found, -np.inf, closeness[row])
        if len(free) and free.max() >= least:
            found[free.argmax()] = is_right[row] = True
    return found, is_right


def _is_judged(true: Boxes3D) -> NDArray[np.bool_]:
    near = np.hypot(true.center[:, 0], true.center[:, 1]) < JUDGED_RANGE_M
    return near if true.num_points is None else near & (true.num_points != 0)


def _is_of(boxes: Boxes3D, group: str) -> NDArray[np.bool_]:
    members = [index for index, name in enumerate(boxes.class_names) if name in GROUPS[group]]
    return np.isin(boxes.label, members)


def _overlap(boxes: Boxes3D, others: Boxes3D) -> Float64Array:
    one, other = (
        torch.from_numpy(np.column_stack((each.center[:, :2], each.size[:, :2], each.yaw)))
        for each in (boxes, others)
    )
    return rotated_iou(one, other).double().numpy()


def _distance(boxes: Boxes3D, others: Boxes3D) -> Float64Array:
    offset = boxes.center[:, None, :2].astype(np.float64) - others.center[None, :, :2]
    return np.asarray(np.hypot(offset[..., 0], offset[..., 1]))
