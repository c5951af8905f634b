# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Boxes and maps of many frames against their truth: as a whole, by class and by distance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS
from kestrel.eval import detection
from kestrel.eval.overlap import MapOverlap
from kestrel.types import BevMap, Boxes3D, Float64Array, Int64Array

MAP_THRESHOLD: Final = 0.5
EDGES_M: Final = (0.0, 10.0, 20.0, 30.0, 50.0)
"""Distances from the vehicle at which a range ends and the next begins; no box further away counts."""

RANGES: Final = tuple(f"{near:.0f}-{far:.0f} m" for near, far in pairwise(EDGES_M))
ERROR_NAMES: Final = {
    "mATE": "translation",
    "mASE": "scale",
    "mAOE": "orientation",
    "mAVE": "velocity",
    "mAAE": "attribute",
}

Values = dict[str, float]


@dataclass(frozen=True)
class ScoredFrame:
    """What is kept of the answer to one frame.

    overlaps: of the map, by RANGES and once more for the cells beyond them.
    """

    truth: Boxes3D
    found: Boxes3D
    overlaps: tuple[MapOverlap, ...]


def compare(truth: Boxes3D, map_truth: NDArray[np.bool_], found: Boxes3D, bev_map: BevMap) -> ScoredFrame:
    """Return the answer to a frame beside its truth.

    Args:
        truth: boxes.
        map_truth: (layers, X, Y) of the cells of ``bev_map``.
        found: boxes of the answer.
        bev_map: map of the answer.
    """
    ring = _ring_of_cells(bev_map)
    overlaps = []
    for number in range(len(EDGES_M)):
        overlap = MapOverlap(len(MAP_LAYERS))
        cells = ring == number
        overlap.add(bev_map.probability[:, None, cells], map_truth[:, None, cells])
        overlaps.append(overlap)
    return ScoredFrame(truth, found, tuple(overlaps))


def _ring_of_cells(bev_map: BevMap) -> Int64Array:
    _, height, width = bev_map.probability.shape
    x = bev_map.lower[0] + (np.arange(height) + 0.5) * bev_map.resolution
    y = bev_map.lower[1] + (np.arange(width) + 0.5) * bev_map.resolution
    return _range_of(np.hypot(x[:, None], y))


def _range_of(distance: Float64Array) -> Int64Array:
    """Return the index into RANGES of every distance, len(RANGES) beyond the last."""
    return np.digitize(distance, EDGES_M[1:])


def summary(frames: Sequence[ScoredFrame]) -> Values:
    """Return mAP, NDS, the mean errors and map IoU over the classes and layers that the truth has."""
    truth, found = _tables(frames)
    scores = detection.evaluate(truth, found).known
    values: Values = {}
    if scores.class_names:
        near = detection.DISTANCES_M.index(detection.TRUE_POSITIVE_DISTANCE_M)
        errors = dict(zip(detection.ERRORS, scores.mean_errors, strict=True))
        values = {
            "mAP": scores.mean_average_precision,
            "mAP_2m": float(scores.average_precision[:, near].mean()),
            "NDS": scores.nuscenes_detection_score,
            **{
                short: float(errors[name])
                for short, name in ERROR_NAMES.items()
                if not np.isnan(errors[name])
            },
        }
    whole = _merged([overlap for frame in frames for overlap in frame.overlaps])
    return values | _map_means(whole)


def by_class(frames: Sequence[ScoredFrame]) -> Values:
    """Return AP of every class and IoU of every layer that the truth has."""
    truth, found = _tables(frames)
    scores = detection.evaluate(truth, found).known
    near = detection.DISTANCES_M.index(detection.TRUE_POSITIVE_DISTANCE_M)
    values: Values = {}
    for index, name in enumerate(scores.class_names):
        values[f"ap/{name}"] = float(scores.average_precision[index].mean())
        values[f"ap2m/{name}"] = float(scores.average_precision[index, near])
    layers = _merged([overlap for frame in frames for overlap in frame.overlaps]).iou_at(MAP_THRESHOLD)
    pairs = zip(MAP_LAYERS, layers, strict=True)
    return values | {f"iou/{name}": float(iou) for name, iou in pairs if not np.isnan(iou)}


def by_range(frames: Sequence[ScoredFrame]) -> dict[str, Values]:
    """Return mAP, AP by class and the mean map IoU within each of RANGES, over what the truth has there."""
    precision, count = range_precision(*_tables(frames))
    near = detection.DISTANCES_M.index(detection.TRUE_POSITIVE_DISTANCE_M)
    result: dict[str, Values] = {}
    for index, name in enumerate(RANGES):
        there = count[index] > 0
        values: Values = {}
        if there.any():
            values["mAP"] = float(precision[index, there].mean())
            values["mAP_2m"] = float(precision[index, there, near].mean())
        values |= _map_means(_merged([frame.overlaps[index] for frame in frames]))
        for label in np.flatnonzero(there):
            values[f"ap/{DETECTION_CLASSES[label]}"] = float(precision[index, label].mean())
        result[name] = values
    return result


def range_precision(
    truth: detection.BoxTable, predicted: detection.BoxTable
) -> tuple[Float64Array, Int64Array]:
    """Return AP by RANGES, class and detection.DISTANCES_M, (R, C, D), and how many boxes count, (R, C).

    A prediction that matches a box of the truth belongs to the range of that box, another to its own: an
    object at the edge of two ranges is not missed in one and wrong in the other.
    """
    names, limits = DETECTION_CLASSES, detection.CLASS_RANGE_M
    truth = truth.take(detection.in_range(truth, names, limits) & (truth.num_points != 0))
    predicted = predicted.take(detection.in_range(predicted, names, limits))
    precision = np.zeros((len(RANGES), len(names), len(detection.DISTANCES_M)))
    count = np.zeros((len(RANGES), len(names)), np.int64)
    for label in np.unique(truth.label):
        real = truth.take(truth.label == label)
        found = predicted.take(predicted.label == label)
        found = found.take(np.argsort(found.score, kind="stable")[::-1])
        place, own = (_range_of(np.hypot(*boxes.center[:, :2].T)) for boxes in (real, found))
        count[:, label] = np.bincount(place, minlength=len(RANGES))
        for column, partner in enumerate(detection.match(real, found, detection.DISTANCES_M)):
            hit = partner >= 0
            belongs = np.where(hit, place[partner], own)
            for index in range(len(RANGES)):
                mine = belongs == index
                precision[index, label, column] = detection.average_precision(hit[mine], count[index, label])
    return precision, count


def _tables(frames: Sequence[ScoredFrame]) -> tuple[detection.BoxTable, detection.BoxTable]:
    return (
        detection.BoxTable.from_frames([frame.truth for frame in frames]),
        detection.BoxTable.from_frames([frame.found for frame in frames]).with_attributes(),
    )


def _merged(overlaps: Sequence[MapOverlap]) -> MapOverlap:
    total = MapOverlap(len(MAP_LAYERS))
    for overlap in overlaps:
        total.merge(overlap)
    return total


def _map_means(overlap: MapOverlap) -> Values:
    there = overlap.truth_count > 0
    if not there.any():
        return {}
    return {
        "map_miou": float(overlap.iou_at(MAP_THRESHOLD)[there].mean()),
        "map_miou_best": float(overlap.best_iou()[there].mean()),
    }
