# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Kestrel-Seg: a small SPVCNN for one sweep of any spinning LiDAR."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kestrel.models.spvcnn import SPVCNN


@dataclass(frozen=True)
class SegConfig:
    """Sizes of the network.

    channels: of the stem, the four stages down and the four stages up. voxel_size: metres.
    extent: half side of the square around base_link in which points are classified, metres.
    height_range: lowest and highest classified point over the ground, metres.
    """

    num_classes: int = 16
    channels: tuple[int, ...] = (16, 16, 32, 64, 96, 96, 64, 32, 32)
    voxel_size: float = 0.12
    extent: float = 100.0
    height_range: tuple[float, float] = (-4.0, 20.0)


class KestrelSeg(nn.Module):
    """The whole network: scaled point features and a sparse voxel network with a point branch."""

    def __init__(self, config: SegConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SegConfig()
        self.network = SPVCNN(
            config.num_classes,
            channels=config.channels,
            in_channels=4,
            pres=config.voxel_size,
            vres=config.voxel_size,
            dropout=0.0,
        )
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor([0.05, 0.05, 0.5, 1.0]), persistent=False)

    def inside(self, points: Tensor) -> Tensor:
        """Return which of the points (P, 4) lie where the network classifies, (P,) bool."""
        config = self.config
        low, high = config.height_range
        x, y, z = points[:, :3].unbind(1)  # in columns torch vectorizes, in rows of two or three it does not
        return (x.abs() < config.extent) & (y.abs() < config.extent) & (z >= low) & (z < high)

    def forward(self, points: Tensor, batch: Tensor) -> Tensor:
        """Classify points that are all :meth:`inside`.

        Args:
            points: (P, 4) float32 [x, y, z, intensity] in base_link axes.
            batch: (P,) int64 cloud of each point.

        Returns:
            (P, num_classes) logits.
        """
        positions = torch.cat((batch[:, None].float(), points[:, :3] / self.config.voxel_size), 1)
        logits: Tensor = self.network(positions, points * self.scale)
        return logits.float()
