# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Between points and voxels: means of points per voxel, and trilinear reading of voxels at points."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kestrel.errors import InputError, describe
from kestrel.ops.backend import NATIVE, call, native_for, triton_for, triton_installed
from kestrel.ops.coordinates import COORDINATE_LIMIT, find, offset_key, pack, whole_numbers
from kestrel.ops.kernel_map import CoordinateSet, torchsparse_offsets
from kestrel.ops.operator import differentiable, operator


def point_rows(points: Tensor, voxels: CoordinateSet) -> Tensor:
    """Return the row of the voxel that contains each point, -1 where there is none, (P,) int32.

    Args:
        points: (P, 4) floating point, columns batch, x, y, z in voxels of the finest set.
        voxels: occupied voxels at their stride.

    Raises:
        InputError: points of another shape, not a number, or of a batch that fits no key.
    """
    _check_points(points)
    return find(voxels.keys, pack(_cells(points, voxels.stride)[0]))


def _check_points(points: Tensor) -> None:
    if points.ndim != 2 or points.shape[1] != 4:
        raise InputError(describe("points", expected="shape (P, 4)", found=tuple(points.shape)))


def trilinear_neighbours(
    points: Tensor, voxels: CoordinateSet, near: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return rows and weights of the eight voxels around each point.

    The voxels are floor(p / stride) + {0, 1}^3, z fastest. Missing ones have row -1 and weight 0; the others
    are divided by (their sum + 1e-8).

    Args:
        points: (P, 4) floating point, columns batch, x, y, z in voxels of the finest set.
        voxels: occupied voxels at their stride.
        near: (P,) int32 rows at which the search for each point begins, or None. Any are right; those of
            ``point_rows`` leave nothing to search for.

    Returns:
        (P, 8) int32 rows and (P, 8) weights in the dtype of the points.

    Raises:
        InputError: points of another shape, not a number, or of a batch that fits no key (the last two on a
            CPU); ``near`` of another shape or type.
    """
    _check_points(points)
    if near is not None and (near.shape != points.shape[:1] or near.dtype != torch.int32):
        found = f"{near.dtype} of shape {tuple(near.shape)}"
        raise InputError(describe("near", expected=f"int32 of shape ({len(points)},)", found=found))
    known = voxels.known_map(torchsparse_offsets(3))
    table = None if known is None else known.gather
    rows, weights = _trilinear_neighbours(points, voxels.keys, voxels.stride, table, near)
    return rows, weights


@operator("trilinear_neighbours")
def _trilinear_neighbours(
    points: Tensor, keys: Tensor, stride: Sequence[int], table: Tensor | None, near: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Search for the neighbours; ``table``, that of torchsparse_offsets(3), saves searches if it is known."""
    if NATIVE is None or points.device.type != "cpu" or points.dtype != torch.float32:
        return trilinear_reference(points, keys, stride)
    rows = torch.empty(len(points), 8, dtype=torch.int32, device="cpu")
    weights = points.new_empty(len(points), 8)
    threads = torch.get_num_threads()
    fit = call(
        NATIVE.trilinear, points, len(points), stride, keys, len(keys), table, rows, weights, threads, near
    )
    return (rows, weights) if fit else trilinear_reference(points, keys, stride)  # which says why not


@_trilinear_neighbours.register_cuda
def trilinear_neighbours_cuda(
    points: Tensor, keys: Tensor, stride: Sequence[int], table: Tensor | None, near: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute the operator on a GPU: in Triton where it is installed."""
    if points.dtype != torch.float32 or not triton_installed():
        return trilinear_reference(points, keys, stride)
    from kestrel.ops.gpu import point_voxel as gpu

    return gpu.trilinear_neighbours(points, keys, stride)


@_trilinear_neighbours.register_fake
def _(
    points: Tensor, keys: Tensor, stride: Sequence[int], table: Tensor | None, near: Tensor | None
) -> tuple[Tensor, Tensor]:
    shape = points.shape[0], 8
    return points.new_empty(shape, dtype=torch.int32), points.new_empty(shape)


def trilinear_reference(points: Tensor, keys: Tensor, stride: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Compute the operator in torch."""
    cells, fraction = _cells(points, stride)
    origin = pack(cells)
    corners = tuple(itertools.product((0, 1), (0, 1), (0, 1)))
    rows = torch.stack([find(keys, origin + offset_key(corner)) for corner in corners], dim=1)
    high = torch.tensor(corners, dtype=torch.bool, device=points.device)
    weights = torch.where(high, fraction[:, None], 1 - fraction[:, None]).prod(2)
    weights = weights.masked_fill(rows < 0, 0)  # also where a point lies at infinity
    return rows, weights / (weights.sum(1, keepdim=True) + 1e-8)


def _cells(points: Tensor, stride: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the (P, 4) int64 voxel indices of points and their (P, 3) position inside of the voxel, 0..1."""
    scaled = points[:, 1:] / torch.tensor(stride, dtype=points.dtype, device=points.device)
    lower = scaled.floor()
    inside = lower.clamp(-COORDINATE_LIMIT, COORDINATE_LIMIT - 1)
    return whole_numbers(torch.cat((points[:, :1], inside), dim=1)), scaled - lower


def point_to_voxel(features: Tensor, rows: Tensor, voxel_count: int) -> Tensor:
    """Return the mean of the features of the points in each voxel, zeros where there is none.

    Args:
        features: (P, C).
        rows: (P,) int32 voxel row of each point; points with -1 are left out.
        voxel_count: number of voxels M.

    Returns:
        (M, C) in the dtype of the features.

    Raises:
        InputError: features and rows of shapes or a type that do not fit, or a row of no voxel (on a CPU).
    """
    if features.ndim != 2 or tuple(rows.shape) != (len(features),) or rows.dtype != torch.int32:
        expected = "features (P, C) and int32 rows (P,)"
        found = f"{tuple(features.shape)} and {rows.dtype} {tuple(rows.shape)}"
        raise InputError(describe("points of voxels", expected=expected, found=found))
    result: Tensor = _scatter_mean(features, rows, voxel_count)[0]
    return result


def devoxelize(features: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Return ``sum_n weights[p, n] * features[rows[p, n]]``, rows of -1 counting as zero.

    Args:
        features: (M, C) voxel features.
        rows: (P, 8) int32, as of ``trilinear_neighbours``.
        weights: (P, 8); no gradient flows to them.

    Returns:
        (P, C) in the dtype of the features.

    Raises:
        InputError: features, rows and weights of shapes or a type that do not fit, or a row of no voxel (on
            a CPU).
    """
    check_reading(features, rows, weights)
    result: Tensor = _devoxelize(features, rows, weights.to(features.dtype))
    return result


def check_reading(
    features: Tensor, rows: Tensor, weights: Tensor, *, shape: tuple[int, int] | None = None
) -> None:
    """Raise InputError unless ``devoxelize`` can take these and returns ``shape``, where one is given."""
    points, channels = shape or (len(rows), features.shape[-1])
    fits = features.ndim == rows.ndim == 2 and rows.shape == weights.shape and rows.dtype == torch.int32
    if not fits or features.shape[1] != channels or len(rows) != points:
        expected = f"features (M, {channels}), int32 rows ({points}, 8), weights ({points}, 8)"
        found = f"{tuple(features.shape)}, {rows.dtype} {tuple(rows.shape)}, {tuple(weights.shape)}"
        raise InputError(describe("voxels to read", expected=expected, found=found))


def check_rows(rows: Tensor, voxel_count: int) -> None:
    """Raise InputError if a row is that of no voxel; on a GPU all would have to wait for the answer."""
    if rows.device.type != "cpu" or not rows.numel():
        return
    # By NumPy, in this thread: those that torch would wake up for it go on to take time from the kernels'.
    highest = int(rows.flatten().numpy().max())
    if highest >= voxel_count:
        raise InputError(describe("row of a voxel", expected=f"less than {voxel_count}", found=highest))


@differentiable("scatter_mean")
def _scatter_mean(features: Tensor, rows: Tensor, voxel_count: int) -> tuple[Tensor, Tensor]:
    check_rows(rows, voxel_count)
    native = native_for(features)
    if native is None:
        return scatter_mean_reference(features, rows, voxel_count)
    source = features.float()
    means, counts = source.new_empty(voxel_count, source.shape[1]), source.new_empty(voxel_count)
    sizes = (*source.shape, voxel_count, torch.get_num_threads())
    call(native.scatter_mean, source, rows, means, counts, *sizes)
    return means.to(features.dtype), counts.to(features.dtype)


@_scatter_mean.register_cuda
def scatter_mean_cuda(features: Tensor, rows: Tensor, voxel_count: int) -> tuple[Tensor, Tensor]:
    """Compute the operator on a GPU: in Triton where it is installed."""
    if not triton_for(features):
        return scatter_mean_reference(features, rows, voxel_count)
    from kestrel.ops.gpu import point_voxel as gpu

    return gpu.scatter_mean(features, rows, voxel_count)


@_scatter_mean.register_fake
def _(features: Tensor, rows: Tensor, voxel_count: int) -> tuple[Tensor, Tensor]:
    return features.new_empty(voxel_count, features.shape[1]), features.new_empty(voxel_count)


def _save_mean(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[1], output[1])


def _mean_backward(ctx: Any, gradient: Tensor, _counts: Tensor) -> tuple[Tensor, None, None]:
    rows, counts = ctx.saved_tensors
    # Row -1 is the last one, of zeros.
    shared = F.pad(gradient / counts.clamp(min=1)[:, None], (0, 0, 0, 1))
    return shared[rows.long().clamp(min=-1)], None, None


_scatter_mean.register_autograd(_mean_backward, setup_context=_save_mean)


def scatter_mean_reference(features: Tensor, rows: Tensor, voxel_count: int) -> tuple[Tensor, Tensor]:
    """Compute the operator in torch: means and the number of points of each voxel."""
    counts, wide = _counts(rows, voxel_count), features.to(_sum_type(features))
    # Row 0 collects the points without a voxel.
    sums = wide.new_zeros(voxel_count + 1, features.shape[1]).index_add_(0, rows.long() + 1, wide)
    means = sums[1:] / counts.clamp(min=1)[:, None]
    return means.to(features.dtype), counts.to(features.dtype)


def _sum_type(features: Tensor) -> torch.dtype:
    """Return the type of sums, in which half precision does not overflow."""
    return torch.promote_types(features.dtype, torch.float32)


def _counts(rows: Tensor, voxel_count: int) -> Tensor:
    return torch.bincount(rows.long() + 1, minlength=voxel_count + 1)[1:]


@differentiable("devoxelize")
def _devoxelize(features: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    check_rows(rows, len(features))
    native = native_for(features)
    if native is None:
        return devoxelize_reference(features, rows, weights)
    source = features.float()
    out = source.new_empty(len(rows), source.shape[1])
    sizes = (*rows.shape, source.shape[1], torch.get_num_threads())
    call(native.weighted_gather, source, rows, weights.float(), out, *sizes)
    return out.to(features.dtype)


@_devoxelize.register_cuda
def devoxelize_cuda(features: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Compute the operator on a GPU: in Triton where it is installed."""
    if not triton_for(features):
        return devoxelize_reference(features, rows, weights)
    from kestrel.ops.gpu import point_voxel as gpu

    return gpu.devoxelize(features, rows, weights)


@_devoxelize.register_fake
def _(features: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    return features.new_empty(rows.shape[0], features.shape[1])


@operator("devoxelize_gradient")
def _devoxelize_gradient(gradient: Tensor, rows: Tensor, weights: Tensor, voxel_count: int) -> Tensor:
    native = native_for(gradient)
    if native is None:
        return devoxelize_gradient_reference(gradient, rows, weights, voxel_count)
    source = gradient.float()
    out = source.new_zeros(voxel_count, source.shape[1])
    sizes = (*rows.shape, source.shape[1], torch.get_num_threads())
    call(native.weighted_scatter, source, rows, weights.float(), out, *sizes)
    return out.to(gradient.dtype)


@_devoxelize_gradient.register_cuda
def devoxelize_gradient_cuda(gradient: Tensor, rows: Tensor, weights: Tensor, voxel_count: int) -> Tensor:
    """Compute the operator on a GPU: in Triton where it is installed."""
    if not triton_for(gradient):
        return devoxelize_gradient_reference(gradient, rows, weights, voxel_count)
    from kestrel.ops.gpu import point_voxel as gpu

    return gpu.devoxelize_gradient(gradient, rows, weights, voxel_count)


@_devoxelize_gradient.register_fake
def _(gradient: Tensor, rows: Tensor, weights: Tensor, voxel_count: int) -> Tensor:
    return gradient.new_empty(voxel_count, gradient.shape[1])


def _save_devoxelize(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rows, weights = inputs
    ctx.voxel_count = len(features)
    ctx.save_for_backward(rows, weights)


def _devoxelize_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    rows, weights = ctx.saved_tensors
    return _devoxelize_gradient(gradient.contiguous(), rows, weights, ctx.voxel_count), None, None


_devoxelize.register_autograd(_devoxelize_backward, setup_context=_save_devoxelize)


def devoxelize_reference(features: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Compute the operator in torch."""
    wide, weights = features.to(_sum_type(features)), weights.masked_fill(rows < 0, 0)
    result = wide.new_zeros(len(rows), features.shape[1])
    if len(features):
        for row, weight in zip(rows.unbind(1), weights.unbind(1), strict=True):
            known = wide.index_select(0, row.clamp(min=0)).masked_fill_((row < 0)[:, None], 0)
            result.addcmul_(known, weight[:, None].to(wide.dtype))
    return result.to(features.dtype)


def devoxelize_gradient_reference(
    gradient: Tensor, rows: Tensor, weights: Tensor, voxel_count: int
) -> Tensor:
    """Compute the gradient of the voxel features in torch."""
    wide = gradient.to(_sum_type(gradient))
    # The last row collects what belongs to no voxel.
    result = wide.new_zeros(voxel_count + 1, gradient.shape[1])
    index = torch.where(rows < 0, voxel_count, rows)
    for row, weight in zip(index.unbind(1), weights.unbind(1), strict=True):
        result.index_add_(0, row, wide * weight[:, None].to(wide.dtype))
    return result[:voxel_count].to(gradient.dtype)
