# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""PVCNN for semantic segmentation (Liu et al., NeurIPS 2019), in the form of its S3DIS release."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn

from kestrel.nn.pvconv import GridPositions, PVConv, SharedMLP

Blocks: TypeAlias = Sequence[tuple[int, int, int]]

BLOCKS: Final[Blocks] = ((64, 1, 32), (64, 2, 16), (128, 1, 16))
"""Channels at width 1, number of PVConv layers and resolution of their grid at resolution 1."""

POINT_CHANNELS: Final = 1024

S3DIS_CLASSES: Final = (
    *("clutter", "ceiling", "floor", "wall", "beam", "column", "door", "window"),
    *("table", "chair", "sofa", "bookcase", "board"),
)
"""Of the rooms of S3DIS, in the order of the release."""


def _dense(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return a linear layer with batch norm and ReLU, for what a whole cloud has one of."""
    return nn.Sequential(
        nn.Linear(in_channels, out_channels), nn.BatchNorm1d(out_channels), nn.ReLU(inplace=True)
    )


class PVCNN(nn.Module):
    """PVConv layers, a feature of the whole cloud, and a classifier that sees all of them at each point.

    Key for key the S3DIS release at width 0.125, 0.25 and 1, whose points are x, y, z within their block
    (metres), colour and place in the room (0..1).

    Args:
        num_classes: classes.
        in_channels: of the points; the first three are their position.
        width: multiplies all channels.
        resolution: multiplies the resolution of all grids.
        blocks: see BLOCKS.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 9,
        width: float = 1.0,
        resolution: float = 1.0,
        blocks: Blocks = BLOCKS,
    ) -> None:
        super().__init__()
        channels, joined = in_channels, 0
        layers: list[nn.Module] = []
        for base, count, cells in blocks:
            out_channels = int(width * base)
            for _ in range(count):
                layers.append(PVConv(channels, out_channels, int(resolution * cells)))
                channels = out_channels
                joined += channels
        wide = int(width * POINT_CHANNELS)
        layers.append(SharedMLP(channels, wide))
        self.point_features = nn.ModuleList(layers)
        first, second = int(width * 256), int(width * 128)
        self.cloud_features = nn.Sequential(_dense(wide, first), _dense(first, second))
        self.classifier = nn.Sequential(
            SharedMLP(joined + wide + second, int(width * 512)),
            nn.Dropout(0.3),
            SharedMLP(int(width * 512), int(width * 256)),
            nn.Dropout(0.3),
            nn.Conv1d(int(width * 256), num_classes, 1),
        )

    def forward(self, points: Tensor) -> Tensor:
        """Return (B, num_classes, N) logits of (B, in_channels, N) points."""
        places: dict[int, GridPositions] = {}
        features, seen = points, []
        for layer in self.point_features:
            if isinstance(layer, PVConv):
                side = layer.resolution
                if side not in places:
                    places[side] = GridPositions.of(points[:, :3], side)
                features = layer(features, places[side])
            else:
                features = layer(features)
            seen.append(features)
        cloud: Tensor = self.cloud_features(features.amax(2))
        seen.append(cloud[:, :, None].expand(-1, -1, points.shape[2]))
        logits: Tensor = self.classifier(torch.cat(seen, 1))
        return logits
