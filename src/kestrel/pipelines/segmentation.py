# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""From one LiDAR sweep to the class of every point."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from kestrel.classes import IGNORE, POINT_CLASSES
from kestrel.engine.device import chosen_device
from kestrel.errors import ConfigError, describe
from kestrel.models.kestrel_seg import KestrelSeg
from kestrel.nn.sparse import keep_packed_alone, use_int8
from kestrel.ops import most_likely
from kestrel.pipelines.runtime import (
    Precision,
    check_finite,
    chosen_precision,
    load_network,
    set_threads,
    untrained_network,
)
from kestrel.types import PointCloud, PointLabels
from kestrel.weights import Manifest

PRECISIONS: Final[tuple[Precision, ...]] = ("auto", "float32", "int8")
"""What PointSegmenter computes in; auto: int8 where the processor has instructions for it."""


@dataclass(frozen=True)
class SweepViews:
    """Views of a sweep whose class probabilities are averaged; each costs as much as the sweep itself.

    turns: evenly spread turns about z, 1 for none. mirror: every turn also mirrored in y.
    """

    turns: int = 1
    mirror: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.turns <= 16:
            raise ConfigError(describe("test-time turns", expected="1 .. 16", found=self.turns))

    def matrices(self) -> Tensor:
        """Return the (V, 2, 2) maps of x, y; the first is the identity."""
        angle = torch.arange(self.turns) * (2 * torch.pi / self.turns)
        cosine, sine = angle.cos(), angle.sin()
        turns = torch.stack((torch.stack((cosine, -sine), 1), torch.stack((sine, cosine), 1)), 1)
        mirrored = turns @ torch.diag(torch.tensor([1.0, -1.0]))
        return torch.cat((turns, mirrored)) if self.mirror else turns


class PointSegmenter:
    """Labels every point of a sweep; each sweep stands alone.

    Args:
        weights: name of shipped weights or path of a .safetensors file.
        threads: threads that torch may use in this process, None for its default.
        views: of each sweep; by default the sweep alone.
        precision: of the convolutions, one of PRECISIONS; on a GPU "auto" is float32.
        device: where it computes, see kestrel.engine.device.chosen_device.

    Raises:
        ModelError: the weights cannot be used.
        ConfigError: there is no such device; int8 on a GPU or on a machine that does not multiply bytes, or
            another precision.
    """

    def __init__(
        self,
        weights: str | Path = "kestrel-seg",
        threads: int | None = None,
        views: SweepViews | None = None,
        precision: Precision = "auto",
        device: str = "cpu",
    ) -> None:
        self.device = chosen_device(device)
        set_threads(threads)
        network, manifest = load_network(KestrelSeg, weights, POINT_CLASSES, self.device)
        self._start(network, manifest, views, precision)

    @classmethod
    def untrained(
        cls,
        seed: int = 0,
        views: SweepViews | None = None,
        precision: Precision = "auto",
        device: str = "cpu",
    ) -> PointSegmenter:
        """Return the same network with random weights."""
        pipeline = cls.__new__(cls)
        pipeline.device = chosen_device(device)
        pipeline._start(untrained_network(KestrelSeg, seed, pipeline.device), None, views, precision)
        return pipeline

    def _start(
        self, network: KestrelSeg, manifest: Manifest | None, views: SweepViews | None, precision: Precision
    ) -> None:
        if precision not in PRECISIONS:
            raise ConfigError(describe("precision", expected=f"one of {PRECISIONS}", found=precision))
        self.precision = chosen_precision(precision, ["int8"], self.device)
        use_int8(network, self.precision == "int8")
        keep_packed_alone(network)
        self.network = network
        self.manifest = manifest
        self.classes = POINT_CLASSES
        self._matrices = (views or SweepViews()).matrices().to(self.device)

    at_lidar: Final = False
    """Sweeps are to be in base_link."""

    def segment(self, cloud: PointCloud) -> PointLabels:
        """Return the class and its probability for every point, in the order of the cloud.

        Args:
            cloud: one sweep in base_link axes (x forward, y left, z up, ground at z = 0). Points beyond the
                network's range get the label IGNORE and probability 0.

        Raises:
            ModelError: the network's answer is not finite.
        """
        label = np.full(len(cloud), IGNORE, np.uint8)
        probability = np.zeros(len(cloud), np.float32)
        points = torch.from_numpy(cloud.points)
        inside = self.network.inside(points)
        if bool(inside.any()):
            kept = points if bool(inside.all()) else points[inside]
            with torch.inference_mode():
                best, share = self._best(kept.to(self.device))
            label[inside.numpy()] = best.cpu().numpy()
            probability[inside.numpy()] = share.cpu().numpy()
        return PointLabels(label, probability, self.classes)

    def _best(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the likeliest class (P,) of points (P, 4) and its probability, the mean over all views."""
        logits = self._logits(points)
        if len(self._matrices) == 1:
            return most_likely(logits)
        total = logits.softmax(1)
        for matrix in self._matrices[1:]:
            # The square of the extent is not round: a turned corner may leave it, which the network bears.
            turned = torch.cat((points[:, :2] @ matrix.T, points[:, 2:]), 1)
            total += self._logits(turned).softmax(1)
        best = total.max(1)
        return best.indices.to(torch.uint8), best.values / len(self._matrices)

    def _logits(self, points: Tensor) -> Tensor:
        answer: Tensor = self.network(points, points.new_zeros(len(points), dtype=torch.int64))
        return check_finite("Kestrel-Seg", answer)
