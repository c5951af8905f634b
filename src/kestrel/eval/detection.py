# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Detection metrics of nuScenes (configuration detection_cvpr_2019), vectorised over all frames.

Caesar et al., nuScenes: A multimodal dataset for autonomous driving, CVPR 2020, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from kestrel.classes import ATTRIBUTES, DETECTION_CLASSES, NO_ATTRIBUTE
from kestrel.types import Boxes3D, Float64Array, Int64Array

CLASS_RANGE_M: Final[Mapping[str, float]] = {
    "car": 50,
    "truck": 50,
    "bus": 50,
    "trailer": 50,
    "construction_vehicle": 50,
    "pedestrian": 40,
    "motorcycle": 40,
    "bicycle": 40,
    "traffic_cone": 30,
    "barrier": 30,
}
"""Boxes further away than this (in x and y) do not count."""

DISTANCES_M: Final = (0.5, 1.0, 2.0, 4.0)
TRUE_POSITIVE_DISTANCE_M: Final = 2.0
MIN_RECALL: Final = 0.1
MIN_PRECISION: Final = 0.1
RECALLS: Final = np.linspace(0, 1, 101)
FIRST_RECALL: Final = round(100 * MIN_RECALL) + 1
ERRORS: Final = ("translation", "scale", "orientation", "velocity", "attribute")
UNDEFINED: Final = {
    "traffic_cone": ("orientation", "velocity", "attribute"),
    "barrier": ("velocity", "attribute"),
}
"""Errors that a class has not: a cone looks the same from all sides and neither of them moves."""
HALF_TURN_CLASSES: Final = ("barrier",)

MOVING_MPS: Final = 0.2
"""Speed above which a box without an attribute is taken for one that moves."""

ATTRIBUTES_BY_SPEED: Final[Mapping[str, tuple[str, str]]] = {
    **dict.fromkeys(
        ("car", "truck", "construction_vehicle", "trailer"), ("vehicle.parked", "vehicle.moving")
    ),
    "bus": ("vehicle.stopped", "vehicle.moving"),
    "motorcycle": ("cycle.without_rider", "cycle.with_rider"),
    "bicycle": ("cycle.without_rider", "cycle.with_rider"),
    "pedestrian": ("pedestrian.standing", "pedestrian.moving"),
}
"""Attribute of what stands and of what moves, as mmdetection3d names them for networks that do not."""


@dataclass(frozen=True)
class BoxTable:
    """Boxes of many frames, one row each; vehicle at the origin of every frame.

    sample: (N,) int64 number of the frame. label: (N,) int64. center: (N, 3), size: (N, 3) length, width,
    height, yaw: (N,), velocity: (N, 2) NaN where unknown, score: (N,), all float64.
    num_points: (N,) int64, -1 where not counted. attribute: (N,) int64 index into classes.ATTRIBUTES.
    """

    sample: Int64Array
    label: Int64Array
    center: Float64Array
    size: Float64Array
    yaw: Float64Array
    velocity: Float64Array
    score: Float64Array
    num_points: Int64Array
    attribute: Int64Array

    def __len__(self) -> int:
        return len(self.sample)

    def take(self, rows: NDArray[np.bool_] | Int64Array) -> Self:
        """Return the chosen rows."""
        return type(self)(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})

    @classmethod
    def from_frames(cls, frames: Sequence[Boxes3D], class_names: Sequence[str] = DETECTION_CLASSES) -> Self:
        """Return the boxes of all frames; boxes of classes outside ``class_names`` are left out."""
        columns: dict[str, list[NDArray[np.generic]]] = {item.name: [] for item in fields(cls)}
        for number, boxes in enumerate(frames):
            lookup = [class_names.index(name) if name in class_names else -1 for name in boxes.class_names]
            label = np.array(lookup, np.int64)[boxes.label] if len(boxes) else np.zeros(0, np.int64)
            keep = label >= 0
            count = int(keep.sum())
            none = np.full(count, -1, np.int64)
            columns["sample"].append(np.full(count, number, np.int64))
            columns["label"].append(label[keep])
            for name in ("center", "size", "yaw", "velocity", "score"):
                columns[name].append(getattr(boxes, name)[keep].astype(np.float64))
            columns["num_points"].append(none if boxes.num_points is None else boxes.num_points[keep])
            columns["attribute"].append(none if boxes.attribute is None else boxes.attribute[keep])
        if not frames:
            return cls.empty()
        return cls(**{name: np.concatenate(parts) for name, parts in columns.items()})

    @classmethod
    def empty(cls) -> Self:
        """Return a table without rows."""
        none, real = np.zeros(0, np.int64), np.zeros(0)
        return cls(none, none, np.zeros((0, 3)), np.zeros((0, 3)), real, np.zeros((0, 2)), real, none, none)

    def with_attributes(self, class_names: Sequence[str] = DETECTION_CLASSES) -> Self:
        """Return the boxes; those without an attribute have what their class and speed suggest."""
        pairs = [ATTRIBUTES_BY_SPEED.get(name) for name in class_names]
        index = [
            [NO_ATTRIBUTE] * 2 if pair is None else [ATTRIBUTES.index(name) for name in pair]
            for pair in pairs
        ]
        moves = np.hypot(*self.velocity.T) > MOVING_MPS  # nothing where the velocity is not known
        guess = np.array(index, np.int64).reshape(-1, 2)[self.label, moves.astype(np.int64)]
        return replace(self, attribute=np.where(self.attribute == NO_ATTRIBUTE, guess, self.attribute))


@dataclass(frozen=True)
class DetectionScores:
    """What the detections of one set of frames score.

    average_precision: (C, 4) by class and DISTANCES_M; 0 for a class without truth.
    errors: (C, 5) by class and ERRORS at TRUE_POSITIVE_DISTANCE_M; NaN where a class has no such error.
    truth_count: (C,) boxes of the truth that count. prediction_count: (C,).
    """

    class_names: tuple[str, ...]
    average_precision: Float64Array
    errors: Float64Array
    truth_count: Int64Array
    prediction_count: Int64Array

    @property
    def known(self) -> DetectionScores:
        """The same for the classes alone that the truth has."""
        there = np.flatnonzero(self.truth_count)
        return DetectionScores(
            tuple(self.class_names[label] for label in there),
            self.average_precision[there],
            self.errors[there],
            self.truth_count[there],
            self.prediction_count[there],
        )

    @property
    def mean_average_precision(self) -> float:
        """Mean over all classes and distances (mAP)."""
        return float(self.average_precision.mean())

    @property
    def mean_errors(self) -> Float64Array:
        """Mean of each error over the classes that have it: mATE, mASE, mAOE, mAVE, mAAE."""
        defined = ~np.isnan(self.errors)
        count = defined.sum(0)
        total = np.where(defined, self.errors, 0.0).sum(0)
        return np.asarray(np.divide(total, count, out=np.full(len(ERRORS), np.nan), where=count > 0))

    @property
    def nuscenes_detection_score(self) -> float:
        """NDS: half mAP, half the five errors; one that no class has earns nothing, as in the devkit."""
        return float((5 * self.mean_average_precision + np.fmax(0, 1 - self.mean_errors).sum()) / 10)


def in_range(boxes: BoxTable, class_names: Sequence[str], ranges: Mapping[str, float]) -> NDArray[np.bool_]:
    """Return which boxes are nearer to the vehicle than the range of their class."""
    limit = np.array([ranges[name] for name in class_names])[boxes.label]
    return np.asarray(np.hypot(boxes.center[:, 0], boxes.center[:, 1]) < limit)


def evaluate(
    truth: BoxTable,
    predicted: BoxTable,
    *,
    class_names: Sequence[str] = DETECTION_CLASSES,
    ranges: Mapping[str, float] = CLASS_RANGE_M,
) -> DetectionScores:
    """Return the scores of ``predicted`` boxes against ``truth``, both of the same frames.

    Frames with truth and without predictions count; pass every evaluated frame's truth. Truth without a
    single point inside is left out.
    """
    truth = truth.take(in_range(truth, class_names, ranges) & (truth.num_points != 0))
    predicted = predicted.take(in_range(predicted, class_names, ranges))
    count = len(class_names)
    precision = np.zeros((count, len(DISTANCES_M)))
    errors = np.ones((count, len(ERRORS)))
    for label, name in enumerate(class_names):
        real = truth.take(truth.label == label)
        found = predicted.take(predicted.label == label)
        found = found.take(np.argsort(found.score, kind="stable")[::-1])
        matches = match(real, found, DISTANCES_M)
        for index in range(len(DISTANCES_M)):
            precision[label, index] = average_precision(matches[index] >= 0, len(real))
        partner = matches[DISTANCES_M.index(TRUE_POSITIVE_DISTANCE_M)]
        errors[label] = _true_positive_errors(real, found, partner, half_turn=name in HALF_TURN_CLASSES)
        errors[label, [ERRORS.index(error) for error in UNDEFINED.get(name, ())]] = np.nan
    return DetectionScores(
        tuple(class_names),
        precision,
        errors,
        np.bincount(truth.label, minlength=count),
        np.bincount(predicted.label, minlength=count),
    )


def match(truth: BoxTable, predicted: BoxTable, distances: Sequence[float]) -> Int64Array:
    """Give each prediction, best first, the nearest box of the truth that no better one has taken.

    Args:
        truth: boxes of one class.
        predicted: boxes of that class, best score first.
        distances: largest distance of the centres in x and y; each is matched on its own.

    Returns:
        (len(distances), P) row of the matched truth, -1 for none.
    """
    result = np.full((len(distances), len(predicted)), -1, np.int64)
    if len(truth) == 0 or len(predicted) == 0:
        return result
    samples, frame = np.unique(truth.sample, return_inverse=True)
    column = _rank(frame)
    shape = (len(samples), int(column.max()) + 1)
    row = np.full(shape, -1, np.int64)
    row[frame, column] = np.arange(len(truth))
    center = np.full((*shape, 2), np.inf)
    center[frame, column] = truth.center[:, :2]
    taken = np.zeros((len(distances), *shape), bool)

    usable = np.flatnonzero(np.isin(predicted.sample, samples))
    place = np.searchsorted(samples, predicted.sample[usable])
    turn = _rank(place)
    # The n-th prediction of all frames at once: frames do not influence each other.
    order = np.argsort(turn, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(turn[order])) + 1):
        chosen, where = usable[group], place[group]
        gap = predicted.center[chosen, None, :2] - center[where]
        distance = np.hypot(gap[..., 0], gap[..., 1])
        for index, limit in enumerate(distances):
            free = np.where(taken[index, where], np.inf, distance)
            nearest = free.argmin(1)
            hit = free[np.arange(len(group)), nearest] < limit
            taken[index, where[hit], nearest[hit]] = True
            result[index, chosen[hit]] = row[where[hit], nearest[hit]]
    return result


def _rank(group: Int64Array) -> Int64Array:
    """Return for each element how many earlier ones are in its group."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(group) else np.zeros(0, np.int64)
    lengths = np.diff(np.r_[starts, len(group)])
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(starts, lengths)
    return rank


def average_precision(hit: NDArray[np.bool_], truth_count: int) -> float:
    """Return the AP of predictions, best first, of which ``hit`` says whether each is right."""
    if truth_count == 0 or not hit.any():
        return 0.0
    true_positives = np.cumsum(hit).astype(np.float64)
    precision = true_positives / np.arange(1, len(hit) + 1)
    sampled = np.interp(RECALLS, true_positives / truth_count, precision, right=0)
    return float(np.maximum(sampled[FIRST_RECALL:] - MIN_PRECISION, 0).mean() / (1 - MIN_PRECISION))


def _true_positive_errors(
    truth: BoxTable, predicted: BoxTable, partner: Int64Array, *, half_turn: bool
) -> Float64Array:
    """Return the (5,) mean errors over recalls from 0.11 to the highest reached; 1 if never."""
    hit = partner >= 0
    if len(truth) == 0 or not hit.any():
        return np.ones(len(ERRORS))
    score = np.interp(RECALLS, np.cumsum(hit) / len(truth), predicted.score, right=0)
    reached = np.flatnonzero(score)
    last = int(reached[-1]) if len(reached) else 0
    if last < FIRST_RECALL:
        return np.ones(len(ERRORS))
    found, real = predicted.take(hit), truth.take(partner[hit])
    result = np.ones(len(ERRORS))
    for index, error in enumerate(_errors(real, found, half_turn=half_turn)):
        running = _running_mean(error)
        sampled = np.interp(score[::-1], found.score[::-1], running[::-1])[::-1]
        result[index] = sampled[FIRST_RECALL : last + 1].mean()
    return result


def _errors(truth: BoxTable, predicted: BoxTable, *, half_turn: bool) -> tuple[Float64Array, ...]:
    translation = np.hypot(*(predicted.center[:, :2] - truth.center[:, :2]).T)
    common = np.minimum(truth.size, predicted.size).prod(1)
    scale = 1 - common / (truth.size.prod(1) + predicted.size.prod(1) - common)
    period = np.pi if half_turn else 2 * np.pi
    turn = np.abs((truth.yaw - predicted.yaw + period / 2) % period - period / 2)
    velocity = np.hypot(*(predicted.velocity - truth.velocity).T)
    attribute = np.where(
        truth.attribute == NO_ATTRIBUTE, np.nan, (truth.attribute != predicted.attribute).astype(np.float64)
    )
    return translation, scale, turn, velocity, attribute


def _running_mean(values: Float64Array) -> Float64Array:
    """Return the mean of all values so far, NaN skipped; ones if all are NaN."""
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    count = np.cumsum(known)
    total = np.cumsum(np.where(known, values, 0.0))
    return np.asarray(np.divide(total, count, out=np.zeros(len(values)), where=count > 0))
