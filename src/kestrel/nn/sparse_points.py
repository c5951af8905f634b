# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Points beside voxels: the point branch of point-voxel networks (SPVNAS, Tang et al. 2020, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kestrel.nn.sparse import Folded, SparseTensor, fold_norm, own_tensors
from kestrel.ops import (
    CoordinateSet,
    coordinate_set,
    devoxelize,
    point_rows,
    point_to_voxel,
    pointwise,
    trilinear_neighbours,
)
from kestrel.ops.coordinates import whole_numbers

_FOLDED: Final[WeakKeyDictionary[nn.Linear, Folded]] = WeakKeyDictionary()
"""Linear layers with their batch norm multiplied in, while the layers live."""


@dataclass(frozen=True)
class PointTensor:
    """Features of points; where they lie in a voxel grid is computed once per grid.

    features: (P, C).
    positions: (P, 4) floating point, columns batch, x, y, z in voxels of the finest grid.
    """

    features: Tensor
    positions: Tensor
    _rows: dict[CoordinateSet, Tensor] = field(default_factory=dict, repr=False)
    _trilinear: dict[CoordinateSet, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def replace(self, features: Tensor) -> PointTensor:
        """Return other features at the same positions."""
        return PointTensor(features, self.positions, self._rows, self._trilinear)

    def rows(self, voxels: CoordinateSet) -> Tensor:
        """Return the voxel of every point, see ``kestrel.ops.point_rows``."""
        if voxels not in self._rows:
            self._rows[voxels] = self._rows_of_finer(voxels)
        return self._rows[voxels]

    def _rows_of_finer(self, voxels: CoordinateSet) -> Tensor:
        """Return the rows through those of a finer grid if it leads here, otherwise by a search."""
        for finer, rows in self._rows.items():
            coarse = finer.rows_in(voxels)
            if coarse is not None:
                return torch.where(rows < 0, -1, coarse[rows.clamp(min=0)])
        return point_rows(self.positions, voxels)

    def trilinear(self, voxels: CoordinateSet) -> tuple[Tensor, Tensor]:
        """Return the eight voxels around every point, see ``kestrel.ops.trilinear_neighbours``."""
        if voxels not in self._trilinear:
            self._trilinear[voxels] = trilinear_neighbours(self.positions, voxels, self.rows(voxels))
        return self._trilinear[voxels]

    def voxelized(self) -> SparseTensor:
        """Return the occupied voxels with the mean of the features of their points."""
        indices = whole_numbers(self.positions.floor())
        voxels, rows = coordinate_set(indices)
        self._rows[voxels] = rows.int()
        return SparseTensor(point_to_voxel(self.features, self._rows[voxels], len(voxels)), voxels)


class PointToVoxel(nn.Module):
    """Average the points of every voxel of a grid."""

    def forward(self, voxels: CoordinateSet, points: PointTensor) -> SparseTensor:
        """Return the means on the given voxels."""
        return SparseTensor(point_to_voxel(points.features, points.rows(voxels), len(voxels)), voxels)


class VoxelToPoint(nn.Module):
    """Read a voxel grid at points by trilinear interpolation."""

    def forward(self, x: SparseTensor, points: PointTensor) -> PointTensor:
        """Return the interpolated features at the positions of the points."""
        rows, weights = points.trilinear(x.coordinates)
        return points.replace(devoxelize(x.features, rows, weights))


class PointTransform(nn.ModuleList):
    """A linear layer with batch norm and ReLU on every point, beside which voxels are read."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__((nn.Linear(in_channels, out_channels), nn.BatchNorm1d(out_channels)))

    def forward(self, x: SparseTensor, points: PointTensor) -> PointTensor:
        """Return the transformed features of the points plus the voxel features read at them."""
        return transform_and_read(x, points, cast(nn.Linear, self[0]), cast(nn.BatchNorm1d, self[1]))


def transform_and_read(
    x: SparseTensor, points: PointTensor, linear: nn.Linear, norm: nn.BatchNorm1d
) -> PointTensor:
    """Return relu(norm(linear(points))) plus voxels read at the points; outside of training in one pass."""
    read = (x.features, *points.trilinear(x.coordinates))
    if norm.training or torch.is_grad_enabled():
        transformed = torch.relu(cast(Tensor, norm(linear(points.features))))
        return points.replace(devoxelize(*read) + transformed)
    sources = own_tensors(linear) + own_tensors(norm)
    folded = _FOLDED.get(linear)
    if folded is None or not folded.is_of(sources, points.features.dtype):
        both, shift = fold_norm(torch.cat((linear.weight.T, linear.bias[None])), norm)
        folded = _FOLDED[linear] = Folded(sources, points.features.dtype, both[:-1], both[-1] + shift)
    features = pointwise(points.features, folded.matrices, bias=folded.bias, relu=True, read=read)
    return points.replace(features)
