# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What names the class of every point, by what a weights file says."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from kestrel.errors import ConfigError, describe
from kestrel.pipelines.released_segmenter import NETWORKS, ReleasedSegmenter
from kestrel.pipelines.runtime import Precision
from kestrel.pipelines.segmentation import PointSegmenter, SweepViews
from kestrel.types import PointCloud, PointLabels
from kestrel.weights import Manifest, read_manifest


class Segmenter(Protocol):
    """What names the class of every point, whatever the network.

    manifest: of the weights, None for random ones. classes: what it answers. precision: what its
    convolutions multiply, device: where. at_lidar: whether sweeps are to stay at the place of the LiDAR, in
    axes of base_link; if not, they are to be in base_link.
    """

    @property
    def manifest(self) -> Manifest | None:
        """See above."""

    @property
    def classes(self) -> tuple[str, ...]:
        """See above."""

    @property
    def precision(self) -> str:
        """See above."""

    @property
    def device(self) -> torch.device:
        """See above."""

    @property
    def at_lidar(self) -> bool:
        """See above."""

    def segment(self, cloud: PointCloud) -> PointLabels:
        """Return the class and its probability for every point, in the order of the cloud."""


def load_segmenter(
    weights: str | Path,
    threads: int | None = None,
    views: SweepViews | None = None,
    precision: Precision = "auto",
    device: str = "cpu",
) -> Segmenter:
    """Return Kestrel-Seg or a converted SPVCNN, MinkUNet or SPVNAS; arguments as for PointSegmenter.

    Raises:
        ModelError: the weights cannot be used.
        ConfigError: several views or another precision than float32 for a converted network, or what
            PointSegmenter does not take.
    """
    network = read_manifest(weights).network
    if network not in NETWORKS:
        return PointSegmenter(weights, threads, views, precision, device)
    if precision not in ("auto", ReleasedSegmenter.precision):
        expected = f"auto or {ReleasedSegmenter.precision} for a converted {network}"
        raise ConfigError(describe("precision", expected=expected, found=precision))
    if views not in (None, SweepViews()):
        expected = f"the sweep alone for a converted {network}"
        raise ConfigError(describe("test-time views", expected=expected, found=views))
    return ReleasedSegmenter(weights, threads, device)
