# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Turn the points of one cloud into voxels with limits on their number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kestrel.errors import InputError, describe
from kestrel.ops.backend import NATIVE, call
from kestrel.ops.coordinates import pack

Reduction = Literal["first", "mean", "max"]


@dataclass(frozen=True)
class Voxels:
    """Occupied voxels of one cloud, in the order in which their first points came.

    features: (M, C) reduced features of the kept points.
    indices: (M, 3) int32 cell along x, y, z, counted from the lower corner of the range.
    counts: (M,) int32 kept points.
    first: (M,) int64 row of the first point.
    rows: (N,) int32 voxel of every given point, -1 for points outside of the range or beyond a limit.
    """

    features: Tensor
    indices: Tensor
    counts: Tensor
    first: Tensor
    rows: Tensor


def voxelize(
    points: Tensor,
    voxel_size: tuple[float, float, float],
    point_cloud_range: tuple[float, float, float, float, float, float],
    *,
    reduction: Reduction = "mean",
    max_points: int | None = None,
    max_voxels: int | None = None,
) -> Voxels:
    """Group points by cell and reduce the features of each cell to one row.

    Points outside of the range (or not finite) are dropped before anything becomes an integer. Of a cell the
    first ``max_points`` points count, of the cells the first ``max_voxels``, both in the order of the points.

    Args:
        points: (N, C) with C >= 3 and x, y, z [m] first.
        voxel_size: edge lengths [m].
        point_cloud_range: x, y, z of the lower corner, then of the upper one [m]; the upper is excluded.
        reduction: which row stands for a cell: its first point, the mean or the maximum of each column.
        max_points: points of a cell that count, None for all.
        max_voxels: cells that are kept, None for all.

    Raises:
        InputError: points of another shape, or sizes that are not positive.
    """
    if points.ndim != 2 or points.shape[1] < 3:
        raise InputError(describe("points", expected="shape (N, C >= 3)", found=tuple(points.shape)))
    limits = [limit for limit in (max_points, max_voxels) if limit is not None]
    if min(*voxel_size, *limits) <= 0:
        found = f"{voxel_size}, {max_points}, {max_voxels}"
        raise InputError(describe("voxel size and limits", expected="positive", found=found))
    inside, cells = _cells(points[:, :3], voxel_size, point_cloud_range)
    keys = pack(torch.nn.functional.pad(cells, (1, 0)))
    first, voxel, rank = _group(keys)
    kept = torch.ones_like(voxel, dtype=torch.bool) if max_points is None else rank < max_points
    if max_voxels is not None:
        kept &= voxel < max_voxels
        first = first[:max_voxels]
    rows = points.new_full((len(points),), -1, dtype=torch.int32)
    rows[inside[kept]] = voxel[kept].int()
    counts = torch.bincount(voxel[kept], minlength=len(first))
    features = _reduce(points[inside[kept]], voxel[kept], points[inside[first]], counts, reduction)
    return Voxels(features, cells[first].int(), counts.int(), inside[first], rows)


def _cells(
    xyz: Tensor, voxel_size: tuple[float, float, float], bounds: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Return the rows of the points in range, and their (n, 3) int64 cells."""
    lower, upper = (torch.tensor(b, dtype=xyz.dtype, device=xyz.device) for b in (bounds[:3], bounds[3:]))
    size = torch.tensor(voxel_size, dtype=xyz.dtype, device=xyz.device)
    shape = ((upper - lower) / size).round().long()
    inside = ((xyz >= lower) & (xyz < upper)).all(1).nonzero().squeeze(1)
    # Division, not multiplication by the reciprocal: that would move points across the borders of cells.
    cells = ((xyz[inside] - lower) / size).floor().long()
    within = (cells < shape).all(1)
    return inside[within], cells[within]


def _group(keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number equal keys in the order of their first occurrence.

    Returns:
        First position of every group, group of every position, and how many of its group came before it.
    """
    if NATIVE is not None and keys.device.type == "cpu":
        first, group, rank = torch.empty(3, len(keys), dtype=torch.int64)
        count = call(NATIVE.group_keys, keys, len(keys), first, group, rank)
        return first[:count], group, rank
    ordered, order = keys.sort(stable=True)
    starts_group = torch.ones_like(ordered, dtype=torch.bool)
    starts_group[1:] = ordered[1:] != ordered[:-1]
    starts = starts_group.nonzero().squeeze(1)
    by_key = starts_group.cumsum(0) - 1
    first_by_key = order[starts]
    by_first = first_by_key.argsort()
    number = torch.empty_like(by_first)
    number[by_first] = torch.arange(len(by_first), device=keys.device)
    group, rank = torch.empty_like(order), torch.empty_like(order)
    group[order] = number[by_key]
    rank[order] = torch.arange(len(order), device=keys.device) - starts[by_key]
    return first_by_key[by_first], group, rank


def _reduce(points: Tensor, voxel: Tensor, first: Tensor, counts: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "first":
        return first
    if reduction == "max":
        index = voxel[:, None].expand_as(points)
        return torch.full_like(first, -torch.inf).scatter_reduce_(0, index, points, "amax")
    if reduction == "mean":
        return torch.zeros_like(first).index_add_(0, voxel, points) / counts[:, None]
    raise InputError(describe("reduction", expected="first, mean or max", found=reduction))
