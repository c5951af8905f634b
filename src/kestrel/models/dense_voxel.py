# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A network on one dense grid: what point-voxel networks are compared with; points know their cell alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kestrel.nn.pvconv import GridPositions, VoxelBranch, through_grid


class DenseVoxelNet(nn.Module):
    """Points averaged per cell, pairs of 3D convolutions, the grid read at the points, a linear classifier.

    Args:
        num_classes: classes.
        in_channels: of the points; the first three are their position.
        channels: of each pair of convolutions.
        resolution: cells along each side of the grid, which just holds the cloud.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 4,
        channels: Sequence[int] = (32, 64),
        resolution: int = 64,
    ) -> None:
        super().__init__()
        self.resolution = resolution
        inputs = (in_channels, *channels[:-1])
        self.voxel_layers = nn.Sequential(
            *(VoxelBranch(before, after) for before, after in zip(inputs, channels, strict=True))
        )
        self.classifier = nn.Conv1d(channels[-1], num_classes, 1)

    def forward(self, points: Tensor) -> Tensor:
        """Return (B, num_classes, N) logits of (B, in_channels, N) points."""
        places = GridPositions.of(points[:, :3], self.resolution)
        logits: Tensor = self.classifier(through_grid(points, places, self.voxel_layers))
        return logits
