# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Average precision by centre distance, to choose among checkpoints (`kestrel eval` has the full metric)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from kestrel.pipelines.box_decoder import DecodedBoxes

MATCH_M = 2.0
LEAST_RECALL = LEAST_PRECISION = 0.1


class DetectionScore:
    """Collects frames; boxes match truth of their class within MATCH_M, best score first."""

    def __init__(self, num_classes: int) -> None:
        self._hits: list[list[tuple[float, bool]]] = [[] for _ in range(num_classes)]
        self._truths = [0] * num_classes

    def add(self, found: DecodedBoxes, truth: Tensor, label: Tensor, points: Tensor) -> None:
        """Match one frame; truth without a LiDAR point or beyond 50 m does not count."""
        near = (points > 0) & (truth[:, :2].norm(dim=1) < 50)
        answered = found.values[:, :2].norm(dim=1) < 50
        for index in range(len(self._hits)):
            places = truth[near & (label == index), :2].numpy()
            mine = answered & (found.label == index)
            self._truths[index] += len(places)
            free = np.ones(len(places), bool)
            for place, score in zip(found.values[mine, :2].numpy(), found.score[mine].tolist(), strict=True):
                distance = np.where(free, np.linalg.norm(places - place, axis=1), np.inf)
                best = int(distance.argmin()) if len(distance) else -1
                hit = best >= 0 and distance[best] < MATCH_M
                if hit:
                    free[best] = False
                self._hits[index].append((score, bool(hit)))

    def average_precision(self) -> list[float]:
        """Return the normalised area under the precision-recall curve per class; NaN without truth."""
        return [
            _area(hits, truths) if truths else float("nan")
            for hits, truths in zip(self._hits, self._truths, strict=True)
        ]


def _area(hits: list[tuple[float, bool]], truths: int) -> float:
    """As nuScenes defines it: recall and precision below a tenth are cut off, the rest is scaled to 0..1."""
    ranked = np.array([hit for _, hit in sorted(hits, key=lambda entry: -entry[0])], float)
    if not ranked.sum():
        return 0.0
    hit = ranked.cumsum()
    recall, precision = hit / truths, hit / np.arange(1, len(hit) + 1)
    curve = np.interp(np.linspace(0, 1, 101), recall, precision, right=0)
    above = np.clip(curve[round(100 * LEAST_RECALL) + 1 :] - LEAST_PRECISION, 0, None)
    return float(above.mean() / (1 - LEAST_PRECISION))
