# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Intersection over union: of the classes of points, of the layers of a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kestrel.classes import IGNORE
from kestrel.errors import InputError, describe
from kestrel.types import Float32Array, Float64Array

MAP_THRESHOLDS: Final = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65)
"""Thresholds among which BEVFusion's evaluation takes the best one per layer."""


class PointConfusion:
    """Counts true against predicted classes over any number of clouds.

    A point whose truth is ``ignore`` never counts; one predicted as ``ignore`` is a miss of its true class.
    """

    def __init__(self, num_classes: int, *, ignore: int = IGNORE) -> None:
        self.num_classes = num_classes
        self.ignore = ignore
        self.counts = np.zeros((num_classes, num_classes + 1), np.int64)

    def add(self, truth: NDArray[np.integer], predicted: NDArray[np.integer]) -> None:
        """Count the points of one cloud; both arrays have one class index per point."""
        if truth.shape != predicted.shape:
            raise InputError(describe("predicted classes", expected=truth.shape, found=predicted.shape))
        known = truth != self.ignore
        real, found = truth[known].astype(np.int64), predicted[known].astype(np.int64)
        found = np.where(found == self.ignore, self.num_classes, found)
        columns = self.num_classes + 1
        if len(real) and (
            not 0 <= real.min() <= real.max() < self.num_classes
            or not 0 <= found.min() <= found.max() < columns
        ):
            raise InputError(
                describe("point classes", expected=f"below {self.num_classes}", found=real.max())
            )
        counts = np.bincount(real * columns + found, minlength=self.counts.size)
        self.counts += counts.reshape(self.counts.shape)

    @property
    def truth_count(self) -> NDArray[np.int64]:
        """(C,) points per true class."""
        return np.asarray(self.counts.sum(1))

    def iou(self, *, without_truth: float = float("nan")) -> Float64Array:
        """Return the (C,) intersection over union; ``without_truth`` for a class that the truth has not.

        NaN leaves such a class out of the mean. SPVNAS' evaluation counts it as 1.
        """
        hit = np.diagonal(self.counts).astype(np.float64)
        union = self.truth_count + self.counts[:, :-1].sum(0) - hit
        result = np.full(self.num_classes, without_truth)
        return np.asarray(np.divide(hit, union, out=result, where=self.truth_count > 0))

    def mean_iou(self, *, without_truth: float = float("nan")) -> float:
        """Return the mean over the classes that have an IoU; NaN if none has."""
        return _mean(self.iou(without_truth=without_truth))


class MapOverlap:
    """Counts overlap of predicted and true map layers at several thresholds over any number of maps."""

    def __init__(self, num_layers: int, thresholds: Sequence[float] = MAP_THRESHOLDS) -> None:
        self.thresholds = tuple(thresholds)
        shape = (num_layers, len(self.thresholds))
        self.hit, self.wrong, self.missed = (np.zeros(shape, np.int64) for _ in range(3))

    def add(self, probability: Float32Array, truth: NDArray[np.bool_]) -> None:
        """Count one map: both (L, X, Y); a cell is predicted where its probability reaches the threshold."""
        if probability.shape != truth.shape or len(truth) != len(self.hit):
            expected = (len(self.hit), *truth.shape[1:])
            raise InputError(describe("map probability", expected=expected, found=probability.shape))
        for index, threshold in enumerate(self.thresholds):
            predicted = probability >= np.float32(threshold)
            self.hit[:, index] += (predicted & truth).sum((1, 2))
            self.wrong[:, index] += (predicted & ~truth).sum((1, 2))
            self.missed[:, index] += (~predicted & truth).sum((1, 2))

    def merge(self, other: MapOverlap) -> None:
        """Count what ``other`` has counted, at the same thresholds."""
        self.hit += other.hit
        self.wrong += other.wrong
        self.missed += other.missed

    @property
    def truth_count(self) -> NDArray[np.int64]:
        """(L,) cells that the truth has of each layer."""
        return np.asarray((self.hit + self.missed)[:, 0])

    def iou(self) -> Float64Array:
        """Return (L, T): by layer and threshold, 0 where neither truth nor prediction has a cell."""
        return np.asarray(self.hit / (self.hit + self.wrong + self.missed + 1e-7))

    def iou_at(self, threshold: float) -> Float64Array:
        """Return (L,) at one of the thresholds; NaN for a layer that the truth has not."""
        column = self.iou()[:, self.thresholds.index(threshold)]
        return np.where(self.truth_count > 0, column, np.nan)

    def best_iou(self) -> Float64Array:
        """Return (L,) at the best threshold of each layer."""
        return np.asarray(self.iou().max(1))


def _mean(values: Float64Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
