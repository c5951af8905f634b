# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Four ways to see a cloud with the same number of parameters: points, a dense grid, both, sparse voxels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from kestrel.classes import POINT_CLASSES
from kestrel.models.dense_voxel import DenseVoxelNet
from kestrel.models.minkunet import scaled_channels
from kestrel.models.pointnet import PointNet
from kestrel.models.pvcnn import PVCNN
from kestrel.models.spvcnn import SPVCNN

CLASSES: Final = len(POINT_CLASSES)
VOXEL_SIZE: Final = 0.1
"""Metres, of the sparse voxels; dense cells are as large as the cloud demands."""

POSITION_SCALE: Final = 0.1
"""What positions [m] are multiplied by to be features beside an intensity of 0..1."""

NETWORKS: Final[dict[str, Callable[[], nn.Module]]] = {
    "PointNet": lambda: PointNet(CLASSES, width=0.65),
    "dense voxels": lambda: DenseVoxelNet(CLASSES, channels=(48, 80), resolution=32),
    "PVCNN": lambda: PVCNN(CLASSES, in_channels=4, width=0.375),
    "SPVCNN": lambda: SPVCNN(CLASSES, channels=scaled_channels(0.125)),
}
"""About 0.35 million parameters each; both grids have at most 32 cells a side."""


def point_logits(network: nn.Module, clouds: Tensor) -> Tensor:
    """Return (B, CLASSES, N) logits of one of NETWORKS for clouds (B, 4, N): x, y, z [m], intensity."""
    scale = clouds.new_tensor((POSITION_SCALE,) * 3 + (1.0,))
    features = clouds * scale[:, None]
    if not isinstance(network, SPVCNN):
        logits: Tensor = network(features)
        return logits
    count, _, points = clouds.shape
    cloud = torch.arange(count).repeat_interleave(points)
    places = clouds[:, :3].transpose(1, 2).reshape(-1, 3) / VOXEL_SIZE
    answers: Tensor = network(torch.cat((cloud[:, None], places), 1), features.transpose(1, 2).reshape(-1, 4))
    return answers.view(count, points, -1).transpose(1, 2)
