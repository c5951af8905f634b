# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Turn the points of one cloud into voxels with limits on their number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from kestrel.errors import InputError, describe
from kestrel.ops.backend import NATIVE, call, triton_installed
from kestrel.ops.coordinates import COORDINATE_LIMIT, pack
from kestrel.ops.operator import differentiable

Reduction = Literal["first", "mean", "max"]
_REDUCTIONS: Final = get_args(Reduction)
_NO_LIMIT: Final = 1 << 31


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
        InputError: points of another shape or type, or sizes that are not positive and finite.
    """
    if points.ndim != 2 or points.shape[1] < 3 or not points.is_floating_point():
        found = f"{points.dtype} of shape {tuple(points.shape)}"
        raise InputError(describe("points", expected="floating point (N, C >= 3)", found=found))
    lengths = len(voxel_size), len(point_cloud_range)
    if lengths != (3, 6) or not all(map(math.isfinite, (*voxel_size, *point_cloud_range))):
        found = f"{tuple(voxel_size)} and {tuple(point_cloud_range)}"
        raise InputError(describe("voxel size and range", expected="3 and 6 finite numbers", found=found))
    limits = [limit for limit in (max_points, max_voxels) if limit is not None]
    if min(*voxel_size, *limits) <= 0:
        found = f"{voxel_size}, {max_points}, {max_voxels}"
        raise InputError(describe("voxel size and limits", expected="positive", found=found))
    if reduction not in _REDUCTIONS:
        raise InputError(describe("reduction", expected="first, mean or max", found=reduction))
    shape = grid_shape(voxel_size, point_cloud_range)
    if not all(0 < cells < COORDINATE_LIMIT for cells in shape):
        raise InputError(
            describe("cells in the range", expected=f"1 to {COORDINATE_LIMIT - 1} per axis", found=shape)
        )
    voxels = torch.ops.kestrel.voxelize(
        points, voxel_size, point_cloud_range, reduction, max_points or _NO_LIMIT, max_voxels or _NO_LIMIT
    )
    return Voxels(*voxels)


def grid_shape(voxel_size: Sequence[float], point_cloud_range: Sequence[float]) -> tuple[int, int, int]:
    """Return the number of cells along x, y, z; sizes that do not divide the range are rounded."""
    lower, upper = point_cloud_range[:3], point_cloud_range[3:]
    x, y, z = (round((u - low) / s) for low, u, s in zip(lower, upper, voxel_size, strict=True))
    return x, y, z


@differentiable("voxelize")
def _voxelize(
    points: Tensor,
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
    reduction: str,
    max_points: int,
    max_voxels: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if NATIVE is None or points.device.type != "cpu" or points.dtype != torch.float32:
        return voxelize_reference(points, voxel_size, point_cloud_range, reduction, max_points, max_voxels)
    room = min(len(points), max_voxels)
    features = points.new_empty(room, points.shape[1])
    indices, counts = (
        torch.empty(room, 3, dtype=torch.int32, device="cpu"),
        torch.empty(room, dtype=torch.int32, device="cpu"),
    )
    first, rows = (
        torch.empty(room, dtype=torch.int64, device="cpu"),
        torch.empty(len(points), dtype=torch.int32, device="cpu"),
    )
    found = call(
        NATIVE.voxelize,
        *(points, *points.shape, point_cloud_range, voxel_size, grid_shape(voxel_size, point_cloud_range)),
        *(_REDUCTIONS.index(reduction), max_points, max_voxels),
        *(features, indices, counts, first, rows, torch.get_num_threads()),
    )
    return features[:found], indices[:found], counts[:found], first[:found], rows


@_voxelize.register_cuda
def voxelize_cuda(
    points: Tensor,
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
    reduction: str,
    max_points: int,
    max_voxels: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the operator on a GPU: in Triton where it is installed."""
    if points.dtype != torch.float32 or not triton_installed():
        return voxelize_reference(points, voxel_size, point_cloud_range, reduction, max_points, max_voxels)
    from kestrel.ops.gpu import voxelize as gpu

    shape = grid_shape(voxel_size, point_cloud_range)
    placed = gpu.cells_of(points, voxel_size, point_cloud_range, shape)
    return _voxels(points, *placed, (max_points, max_voxels), partial(gpu.reduce_voxels, reduction))


@_voxelize.register_fake
def _(
    points: Tensor,
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
    reduction: str,
    max_points: int,
    max_voxels: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    found = torch.library.get_ctx().new_dynamic_size()
    return (
        points.new_empty(found, points.shape[1]),
        points.new_empty(found, 3, dtype=torch.int32),
        points.new_empty(found, dtype=torch.int32),
        points.new_empty(found, dtype=torch.int64),
        points.new_empty(points.shape[0], dtype=torch.int32),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, _, counts, first, rows = output
    ctx.reduction = inputs[3]
    ctx.mark_non_differentiable(*output[1:])
    kept = (inputs[0], features) if ctx.reduction == "max" else (None, None)
    ctx.save_for_backward(counts, first, rows, *kept)


def _backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    """Mean: shared among the points. First: to that one. Max: shared among those that are the maximum."""
    counts, first, rows, points, features = ctx.saved_tensors
    to_points = gradient.new_zeros(len(rows), gradient.shape[1])
    member = (rows >= 0).nonzero().squeeze(1)
    voxel = rows[member].long()
    if ctx.reduction == "first":
        to_points[first] = gradient
    elif ctx.reduction == "mean":
        to_points[member] = (gradient / counts[:, None])[voxel]
    else:
        highest = (points[member] == features[voxel]).to(gradient.dtype)
        ties = torch.zeros_like(gradient).index_add_(0, voxel, highest)
        to_points[member] = (gradient / ties)[voxel] * highest
    return to_points, None, None, None, None, None


_voxelize.register_autograd(_backward, setup_context=_save)


def voxelize_reference(
    points: Tensor,
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
    reduction: str,
    max_points: int,
    max_voxels: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the fields of Voxels in torch."""
    placed = _cells(points[:, :3], voxel_size, point_cloud_range)
    return _voxels(points, *placed, (max_points, max_voxels), partial(_reduce, reduction))


def _voxels(
    points: Tensor,
    inside: Tensor,
    cells: Tensor,
    limits: tuple[int, int],
    reduce: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the fields of Voxels of the points ``inside``, given the cell of each."""
    max_points, max_voxels = limits
    voxel, rank, first = _group(pack(torch.nn.functional.pad(cells, (1, 0))))
    kept = (rank < max_points) & (voxel < max_voxels)
    first = first[:max_voxels]
    rows = points.new_full((len(points),), -1, dtype=torch.int32)
    rows[inside[kept]] = voxel[kept].int()
    counts = torch.bincount(voxel[kept], minlength=len(first))
    features = reduce(points[inside[kept]], voxel[kept], points[inside[first]], counts)
    return features, cells[first].int(), counts.int(), inside[first], rows


def _cells(
    xyz: Tensor, voxel_size: Sequence[float], point_cloud_range: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return the rows of the points in range, and their (n, 3) int64 cells."""
    bounds = torch.tensor(point_cloud_range, dtype=xyz.dtype, device=xyz.device)
    size = torch.tensor(voxel_size, dtype=xyz.dtype, device=xyz.device)
    shape = torch.tensor(grid_shape(voxel_size, point_cloud_range), device=xyz.device)
    inside = ((xyz >= bounds[:3]) & (xyz < bounds[3:])).all(1).nonzero().squeeze(1)
    # Division, not multiplication by the reciprocal: that would move points across the borders of cells.
    cells = ((xyz[inside] - bounds[:3]) / size).floor().long()
    within = (cells < shape).all(1)
    return inside[within], cells[within]


def _group(keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number equal keys in the order of their first occurrence.

    Returns:
        Group of every position, how many of its group came before it, and the first position of every group.
    """
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
    return group, rank, first_by_key[by_first]


def _reduce(reduction: str, points: Tensor, voxel: Tensor, first: Tensor, counts: Tensor) -> Tensor:
    if reduction == "first":
        return first
    if reduction == "max":
        index = voxel[:, None].expand_as(points)
        return torch.full_like(first, -torch.inf).scatter_reduce_(0, index, points, "amax")
    return torch.zeros_like(first).index_add_(0, voxel, points) / counts[:, None]
