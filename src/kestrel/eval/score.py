# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Every score of a recording as named figures, beside those of a baseline where there is one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from kestrel.classes import MAP_LAYERS, NO_ATTRIBUTE, POINT_CLASSES
from kestrel.data.perception_messages import DONT_CARE
from kestrel.errors import InputError, describe
from kestrel.eval import detection
from kestrel.eval.overlap import MapOverlap, PointConfusion
from kestrel.eval.recording import Answers, Recording
from kestrel.eval.timing import NodeTiming, node_timings, replay_rate
from kestrel.report import Figure
from kestrel.types import BevMap, Boxes3D, Float32Array, Float64Array

MAP_THRESHOLD: Final = 0.5
ERROR_UNITS: Final = {
    "translation": "m",
    "scale": "1 - IoU",
    "orientation": "rad",
    "velocity": "m/s",
    "attribute": "1 - accuracy",
}
BASELINE: Final = "baseline"
MAJORITY: Final = "majority"

Values = dict[str, tuple[float, str]]
"""Value and unit by name."""


def figures(recording: Recording, baseline: Answers | None = None) -> dict[str, Figure]:
    """Return all scores of a recording.

    Args:
        recording: with truth, outputs of nodes, or both; what is missing has no figure.
        baseline: answers of the trivial baseline for the same drive; ratios are against it, and what it alone
            has is named ``baseline/...``.
    """
    result: dict[str, Figure] = {}
    for score in (detection_values, point_values, map_values, event_values):
        own = score(recording.truth, recording.predicted)
        other = {} if baseline is None else score(recording.truth, baseline)
        for name, (value, unit) in own.items():
            result[name] = Figure(value, unit, *_against(value, name, other))
        for name, (value, unit) in other.items():
            if name not in own:
                result[f"{BASELINE}/{name}"] = Figure(value, unit)
    _add_majority(recording, result)
    result.update(timing_figures(recording))
    return result


def _against(
    value: float, name: str, other: Mapping[str, tuple[float, str]]
) -> tuple[float | None, str | None]:
    if name not in other or name.endswith(("error", "frames")):
        return None, None
    reference = other[name][0]
    return (value / reference if reference > 0 else None), f"{BASELINE} {reference:.3f}"


def detection_values(truth: Answers, predicted: Answers) -> Values:
    """Return what box_values does; a frame that was not answered counts as one without boxes."""
    stamps = sorted(truth.objects)
    if not stamps or not predicted.objects:
        return {}
    real = [truth.objects[stamp] for stamp in stamps]
    return box_values(real, [predicted.objects.get(stamp) for stamp in stamps])


def box_values(truth: Sequence[Boxes3D], predicted: Sequence[Boxes3D | None]) -> Values:
    """Return AP by class, the true-positive errors and NDS, frame by frame of both.

    They are over the classes that the truth has. Where it lacks some, ``of ten classes`` has those of the
    devkit, for which such a class has found nothing. An error of which no truth knows anything has no figure,
    and without it there is no NDS.
    """
    found = [_allowed(own, real) for own, real in zip(predicted, truth, strict=True)]
    real_table = detection.BoxTable.from_frames(truth)
    whole = detection.evaluate(real_table, detection.BoxTable.from_frames(found).with_attributes())
    values: Values = {"detection/frames": (len(truth), "frames")}
    scores = whole.known
    if not scores.class_names:
        return values
    near = detection.DISTANCES_M.index(detection.TRUE_POSITIVE_DISTANCE_M)
    untold = _untold(real_table)
    values["detection/mAP"] = (scores.mean_average_precision, "AP")
    values["detection/mAP_2m"] = (float(scores.average_precision[:, near].mean()), "AP")
    if not untold:
        values["detection/NDS"] = (scores.nuscenes_detection_score, "NDS")
        if len(scores.class_names) < len(whole.class_names):
            values["detection/of ten classes/mAP"] = (whole.mean_average_precision, "AP")
            values["detection/of ten classes/NDS"] = (whole.nuscenes_detection_score, "NDS")
    for name, precision in zip(scores.class_names, scores.average_precision, strict=True):
        values[f"detection/{name}/AP"] = (float(precision.mean()), "AP")
        values[f"detection/{name}/AP_2m"] = (float(precision[near]), "AP")
    for error, mean in zip(detection.ERRORS, scores.mean_errors.tolist(), strict=True):
        if error not in untold and not math.isnan(mean):
            values[f"detection/{error}_error"] = (mean, ERROR_UNITS[error])
    return values


def _untold(truth: detection.BoxTable) -> set[str]:
    """Return the errors of which the truth knows nothing: by their definition they count as the largest."""
    known = {
        "velocity": np.isfinite(truth.velocity).any(),
        "attribute": (truth.attribute != NO_ATTRIBUTE).any(),
    }
    return {error for error, there in known.items() if not there}


def _allowed(found: Boxes3D | None, truth: Boxes3D) -> Boxes3D:
    """Return the predictions of a frame of which its truth says whether they are right.

    In a region of which it knows nothing these are those around its boxes: an object that was labelled there
    all the same is found or missed like any other.
    """
    if found is None:
        return truth.chosen(np.zeros(len(truth), bool))
    regions = np.array([name == DONT_CARE for name in truth.class_names], np.bool_)[truth.label]
    if not regions.any() or len(found) == 0:
        return found
    import torch  # takes two seconds, and most recordings have no regions

    from kestrel.eval.labelled import judged

    unknown = truth.chosen(regions)
    gaps = np.concatenate((unknown.center, unknown.size, unknown.yaw[:, None]), 1)
    every = np.ones(len(found.class_names), np.bool_)
    arrays = (found.center, found.label, truth.center[~regions], gaps, every)
    return found.chosen(judged(*(torch.from_numpy(array) for array in arrays)).numpy())


def point_values(truth: Answers, predicted: Answers) -> Values:
    """Return IoU by class over the sweeps that were answered; classes that the truth has not are left out."""
    stamps = sorted(truth.points.keys() & predicted.points.keys())
    if not stamps:
        return {}
    confusion = PointConfusion(len(POINT_CLASSES))
    for stamp in stamps:
        real, found = truth.points[stamp], predicted.points[stamp]
        if len(real) != len(found):
            raise InputError(describe(f"labelled cloud of {stamp}", expected=len(real), found=len(found)))
        confusion.add(real, found)
    values: Values = {
        "points/frames": (len(stamps), "frames"),
        "points/mIoU": (confusion.mean_iou(), "IoU"),
    }
    values.update(_named("points", POINT_CLASSES, confusion.iou()))
    return values


def map_values(truth: Answers, predicted: Answers) -> Values:
    """Return what layer_values does of the frames that were answered."""
    stamps = sorted(truth.maps.keys() & predicted.maps.keys())
    overlap = MapOverlap(len(MAP_LAYERS))
    for stamp in stamps:
        add_map(overlap, truth.maps[stamp], predicted.maps[stamp])
    return layer_values(overlap, len(stamps))


def add_map(overlap: MapOverlap, truth: BevMap, predicted: BevMap) -> None:
    """Count one map of all MAP_LAYERS; the prediction may be on a grid of its own."""
    overlap.add(_at_cells_of(truth, predicted), truth.probability > 0.5)


def layer_values(overlap: MapOverlap, frames: int) -> Values:
    """Return IoU by layer at one threshold, and at the best one as BEVFusion's evaluation has it."""
    if not frames:
        return {}
    there = overlap.truth_count > 0
    best = np.where(there, overlap.best_iou(), np.nan)
    at_half = overlap.iou_at(MAP_THRESHOLD)
    values: Values = {"map/frames": (frames, "frames")}
    if there.any():
        values["map/mIoU"] = (float(at_half[there].mean()), "IoU")
        values["map/mIoU_best"] = (float(best[there].mean()), "IoU at best threshold")
    values.update(_named("map", MAP_LAYERS, at_half))
    for layer, value in zip(MAP_LAYERS, best, strict=True):
        if not np.isnan(value):
            values[f"map/{layer}/best"] = (float(value), "IoU at best threshold")
    return values


def _at_cells_of(truth: BevMap, found: BevMap) -> Float32Array:
    """Return what ``found`` says at the middle of each cell of ``truth``, 0 beyond its end.

    A network may answer on a grid of its own: that of BEVFusion begins where its LiDAR sits.
    """
    values = found.probability
    for axis in (0, 1):
        cells, count = truth.probability.shape[axis + 1], values.shape[axis + 1]
        middle = truth.lower[axis] + (np.arange(cells) + 0.5) * truth.resolution
        place = np.floor((middle - found.lower[axis]) / found.resolution)
        there = (place >= 0) & (place < count)
        # Compared before they are integers: far places fit none, and processors differ in what they become.
        cell = np.where(there, place, 0).astype(np.int64)
        values = values.take(cell, axis + 1) * there.reshape((-1, 1) if axis == 0 else (1, -1))
    return values


def _named(prefix: str, names: tuple[str, ...], scores: Float64Array) -> Values:
    pairs = zip(names, scores, strict=True)
    return {f"{prefix}/{name}": (float(score), "IoU") for name, score in pairs if not np.isnan(score)}


def event_values(truth: Answers, predicted: Answers) -> Values:
    """Return the share of pictures whose event was named right, and the mean share over the events.

    The truth says of which camera its pictures are; answers to others do not count.
    """
    pictures = sorted(truth.events.keys() & predicted.events.keys())
    if not pictures:
        return {}
    right: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for picture in pictures:
        seen[truth.events[picture]] += 1
        right[truth.events[picture]] += truth.events[picture] == predicted.events[picture]
    by_event = [right[name] / count for name, count in seen.items()]
    return {
        "event/frames": (len(pictures), "frames"),
        "event/accuracy": (sum(right.values()) / len(pictures), "share"),
        "event/balanced_accuracy": (sum(by_event) / len(by_event), "share"),
    }


def why_no_events(truth: Answers, predicted: Answers) -> str | None:
    """Return why events have no figure although there are some in the truth and in the answers, or None."""
    if not truth.events or not predicted.events or truth.events.keys() & predicted.events.keys():
        return None
    asked, answered = (sorted({p.frame_id for p in events}) for events in (truth.events, predicted.events))
    expected = f"answers to pictures of the truth, which are of {asked}"
    return describe("events are not scored", expected=expected, found=f"answers to others, of {answered}")


def why_no_scores(recording: Recording) -> str | None:
    """Return why nothing could be scored although the truth is there: no node answered; or None."""
    truth, found = recording.truth, recording.predicted
    if not any((truth.objects, truth.points, truth.maps, truth.events)):
        return None
    if any((found.objects, found.points, found.maps, found.events)):
        return None
    expected = "answers of nodes to score, as `kestrel replay --record` keeps them"
    return describe(f"recording {recording.path}", expected=expected, found="none")


def _add_majority(recording: Recording, result: dict[str, Figure]) -> None:
    """Put the accuracy of always naming this drive's most frequent event beside the accuracy."""
    own = result.get("event/accuracy")
    if own is None:
        return
    pictures = recording.truth.events.keys() & recording.predicted.events.keys()
    counts = Counter(recording.truth.events[picture] for picture in pictures)
    share = counts.most_common(1)[0][1] / counts.total()
    ratio, against = own.value / share, f"{MAJORITY} {share:.3f}"
    result["event/accuracy"] = Figure(own.value, own.unit, ratio, against)
    result["event/majority"] = Figure(share, "share")


def timing_figures(recording: Recording) -> dict[str, Figure]:
    """Return the rate of the replay, and of every node what it answered, by which outputs, and how fast.

    A message that not all outputs answered that it asks for is lost.
    """
    result: dict[str, Figure] = {}
    rate = replay_rate(recording.sent)
    if rate is not None:
        result["replay/rate"] = Figure(rate, "x real time")
    for node, timing in _timings(recording).items():
        result[f"{node}/answered"] = Figure(timing.answered / timing.sent, "share")
        result[f"{node}/lost"] = Figure(timing.lost, "frames")
        for output, share in timing.outputs.items():
            result[f"{node}/{output}/answered"] = Figure(share.answered / share.asked, f"of {share.asked}")
        for percent in (50, 95, 99) if len(timing.latency_ms) else ():
            result[f"{node}/latency_p{percent}"] = Figure(timing.percentile_ms(percent), "ms")
    return result


def unanswered(recording: Recording) -> list[str]:
    """Return which outputs of which nodes were asked more often than they answered, and how often."""
    return [line for node, timing in _timings(recording).items() for line in timing.missing(node)]


def _timings(recording: Recording) -> dict[str, NodeTiming]:
    found = node_timings(recording.sent, recording.received, recording.heard)
    return {node.strip("/"): timing for node, timing in found.items()}
