# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Small voxel sets for the tests of the operators."""

from __future__ import annotations

import torch
from torch import Tensor

from kestrel.ops import CoordinateSet, coordinate_set


def random_indices(count: int, *, extent: int = 8, batch: int = 2, seed: int = 0, low: int = 0) -> Tensor:
    """Return (count, 4) voxel indices within [low, low + extent); some occur twice."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(low, low + extent, (count, 3), generator=generator)
    return torch.cat((torch.randint(0, batch, (count, 1), generator=generator), cells), dim=1)


def random_voxels(count: int = 300, *, extent: int = 8, batch: int = 2, seed: int = 0) -> CoordinateSet:
    return coordinate_set(random_indices(count, extent=extent, batch=batch, seed=seed))[0]


def to_dense(features: Tensor, voxels: CoordinateSet, batch: int, shape: tuple[int, int, int]) -> Tensor:
    """Return (batch, C, X, Y, Z) with zeros in empty cells."""
    dense = features.new_zeros(batch, *shape, features.shape[1])
    b, x, y, z = voxels.indices.unbind(1)
    dense[b, x, y, z] = features
    return dense.permute(0, 4, 1, 2, 3)


def from_dense(dense: Tensor, voxels: CoordinateSet) -> Tensor:
    b, x, y, z = voxels.indices.unbind(1)
    return dense.permute(0, 2, 3, 4, 1)[b, x, y, z]
