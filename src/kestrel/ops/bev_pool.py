# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Pooling of image features into bird's-eye-view cells (BEVFusion, Liu et al. 2022, section III-B).

A camera feature at every depth of its ray is a point in space; all points of one cell are summed. Which point
falls into which cell is found apart from that (kestrel.ops.frustum). The features of the points are depth
probability times context; :func:`lift_splat` never builds them. The compiled kernel multiplies inside of the
sum over the points of a cell; the reference multiplies by a sparse matrix: with A[cell, pixel] = sum of the
depth probabilities of that pixel's points in that cell, the map is A @ context.
"""

from __future__ import annotations

import warnings
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from kestrel.errors import InputError, describe
from kestrel.ops.backend import native_for, triton_for
from kestrel.ops.frustum import GridShape, LiftSplatIndex, Tables
from kestrel.ops.operator import differentiable, operator

_CHUNK: Final = 1 << 16
"""Points whose products with their cells the reference holds at once."""

# The one product we use (rows of a CSR matrix times a dense one) has been stable for years.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


def bev_cells(points: Tensor, lower: Tensor, step: Tensor, shape: GridShape) -> Tensor:
    """Return the cell of every point of a batch of frustums.

    Positions are truncated toward zero, not floored: points up to one cell below the lower bound count into
    cell 0, which is what the released checkpoints were trained with.

    Args:
        points: (B, ..., 3) metres.
        lower: (3,) lower corner of the grid, metres.
        step: (3,) size of a cell, metres.
        shape: cells along x, y, z.

    Returns:
        (B, ...) int64 index into cells ordered (batch, z, x, y), -1 outside the grid.
    """
    place = (points - lower) / step
    # What is not a number would be cell zero on some processors.
    index = torch.where(place.isnan(), -1, place).long()
    nx, ny, nz = shape
    x, y, z = index.unbind(-1)
    inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny) & (z >= 0) & (z < nz)
    batch = torch.arange(len(points), device=points.device).view(-1, *[1] * (points.dim() - 2))
    cell = ((batch * nz + z) * nx + x) * ny + y
    return torch.where(inside, cell, -1)


def bev_pool(features: Tensor, cells: Tensor, batch: int, shape: GridShape) -> Tensor:
    """Sum the features of all points of each cell.

    Args:
        features: (..., C) features of the points.
        cells: (...) int64 cell of each point, from :func:`bev_cells`.
        batch: number of samples.
        shape: cells along x, y, z.

    Returns:
        (batch, nz * C, nx, ny); channel = z * C + c.

    Raises:
        InputError: as many cells as points are expected.
    """
    if features.shape[:-1] != cells.shape:
        found = tuple(cells.shape)
        raise InputError(describe("cells of points", expected=tuple(features.shape[:-1]), found=found))
    nx, ny, nz = shape
    channels = features.shape[-1]
    pooled = torch.ops.kestrel.bev_pool(
        features.reshape(-1, channels), cells.reshape(-1), batch * nx * ny * nz
    )
    return _as_map(pooled, batch, shape)


def _as_map(pooled: Tensor, batch: int, shape: GridShape) -> Tensor:
    nx, ny, nz = shape
    return pooled.view(batch, nz, nx, ny, -1).permute(0, 1, 4, 2, 3).reshape(batch, -1, nx, ny)


@differentiable("bev_pool")
def _bev_pool(features: Tensor, cells: Tensor, num_cells: int) -> Tensor:
    return bev_pool_reference(features, cells, num_cells)


@_bev_pool.register_cuda
def bev_pool_cuda(features: Tensor, cells: Tensor, num_cells: int) -> Tensor:
    """Compute the operator on a GPU: in Triton where it is installed."""
    if not triton_for(features):
        return bev_pool_reference(features, cells, num_cells)
    from kestrel.ops.gpu import bev_pool as gpu

    return gpu.bev_pool(features, cells, num_cells)


@_bev_pool.register_fake
def _(features: Tensor, cells: Tensor, num_cells: int) -> Tensor:
    return features.new_empty(num_cells, features.shape[1])


def _pool_context(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor, int], output: Tensor
) -> None:
    ctx.save_for_backward(inputs[1])


def _pool_backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
    (cells,) = ctx.saved_tensors  # type: ignore[attr-defined]
    # Cell -1 is the last row, of zeros.
    return F.pad(grad, (0, 0, 0, 1))[cells.clamp(min=-1)], None, None


_bev_pool.register_autograd(_pool_backward, setup_context=_pool_context)


def bev_pool_reference(features: Tensor, cells: Tensor, num_cells: int) -> Tensor:
    """Compute the operator in torch."""
    kept = cells >= 0
    pooled = features.new_zeros(num_cells, features.shape[1])
    return pooled.index_add_(0, cells[kept], features[kept])


def lift_splat(depth: Tensor, context: Tensor, index: LiftSplatIndex) -> Tensor:
    """Lift image features along their rays and sum them per cell (Philion and Fidler 2020, section 3).

    Equals bev_pool(depth[..., None] * context[:, None], cells) without that outer product.

    Args:
        depth: (N, D, H, W) probability of each depth, N = batch * cameras.
        context: (N, C, H, W) features.
        index: of the calibration of these images.

    Returns:
        (batch, nz * C, nx, ny) in the dtype of the context, summed in float32 or better; channel = z * C + c.

    Raises:
        InputError: shapes that do not fit each other or the index.
    """
    images, _, height, width = index.points
    fits = context.ndim == 4 and (context.shape[0], *context.shape[2:]) == (images, height, width)
    if not fits or tuple(depth.shape) != index.points:
        expected = f"depth {index.points} and context ({images}, C, {height}, {width})"
        found = f"{tuple(depth.shape)} and {tuple(context.shape)}"
        raise InputError(describe("lift-splat", expected=expected, found=found))
    tables = index.row_start, index.runs, index.by_column, index.column_start
    nx, ny, _ = index.shape
    pooled = torch.ops.kestrel.lift_splat(depth.to(context.dtype), context, *tables, nx, ny)
    return _as_map(pooled, index.batch, index.shape)


def _frustum(depth: Tensor, context: Tensor, tables: Tables) -> tuple[object, ...]:
    """Return the first arguments of both compiled functions; the caller keeps the contiguous tables."""
    images, depths, height, width = depth.shape
    return (
        *(depth.data_ptr(), context.data_ptr(), depth.stride(), context.stride()),
        (images, depths, height, width, context.shape[1]),
        context.dtype == torch.bfloat16,
        [table.data_ptr() for table in tables],
    )


def _contiguous(row_start: Tensor, runs: Tensor, by_column: Tensor, column_start: Tensor) -> Tables:
    return row_start.contiguous(), runs.contiguous(), by_column.contiguous(), column_start.contiguous()


@differentiable("lift_splat")
def _lift_splat(
    depth: Tensor,
    context: Tensor,
    row_start: Tensor,
    runs: Tensor,
    by_column: Tensor,
    column_start: Tensor,
    nx: int,
    ny: int,
) -> Tensor:
    cells = len(row_start) - 1
    native = native_for(depth, context)
    if native is not None:
        out = context.new_empty(cells, context.shape[1])
        grid = cells // (nx * ny), nx, ny
        tables = _contiguous(row_start, runs, by_column, column_start)
        arguments = _frustum(depth, context, tables)
        native.lift_splat(*arguments, grid, out.data_ptr(), torch.get_num_threads())
        return out
    return lift_splat_reference(depth, context, row_start, runs)


@_lift_splat.register_cuda
def lift_splat_cuda(
    depth: Tensor,
    context: Tensor,
    row_start: Tensor,
    runs: Tensor,
    by_column: Tensor,
    column_start: Tensor,
    nx: int,
    ny: int,
) -> Tensor:
    """Compute the operator on a GPU: in Triton where it is installed."""
    if not triton_for(depth, context):
        return lift_splat_reference(depth, context, row_start, runs)
    from kestrel.ops.gpu import bev_pool as gpu

    return gpu.lift_splat(depth, context, row_start, runs)


@_lift_splat.register_fake
def _(
    depth: Tensor,
    context: Tensor,
    row_start: Tensor,
    runs: Tensor,
    by_column: Tensor,
    column_start: Tensor,
    nx: int,
    ny: int,
) -> Tensor:
    return context.new_empty(row_start.shape[0] - 1, context.shape[1])


@operator("lift_splat_backward")
def _lift_splat_backward(
    grad: Tensor,
    depth: Tensor,
    context: Tensor,
    row_start: Tensor,
    runs: Tensor,
    by_column: Tensor,
    column_start: Tensor,
) -> tuple[Tensor, Tensor]:
    native = native_for(depth, context, grad)
    if native is not None:
        to_depth, to_context = depth.new_zeros(depth.shape), context.new_empty(context.shape)
        tables, grad = _contiguous(row_start, runs, by_column, column_start), grad.contiguous()
        arguments = _frustum(depth, context, tables)
        addresses = (each.data_ptr() for each in (grad, to_depth, to_context))
        native.lift_splat_backward(*arguments, *addresses, torch.get_num_threads())
        return to_depth, to_context
    return lift_splat_backward_reference(grad, depth, context, row_start, runs)


@_lift_splat_backward.register_cuda
def lift_splat_backward_cuda(
    grad: Tensor,
    depth: Tensor,
    context: Tensor,
    row_start: Tensor,
    runs: Tensor,
    by_column: Tensor,
    column_start: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute the operator on a GPU: in Triton where it is installed."""
    if not triton_for(grad, depth, context):
        return lift_splat_backward_reference(grad, depth, context, row_start, runs)
    from kestrel.ops.gpu import bev_pool as gpu

    return gpu.lift_splat_backward(grad, depth, context, runs, by_column, column_start)


@_lift_splat_backward.register_fake
def _(
    grad: Tensor,
    depth: Tensor,
    context: Tensor,
    row_start: Tensor,
    runs: Tensor,
    by_column: Tensor,
    column_start: Tensor,
) -> tuple[Tensor, Tensor]:
    return depth.new_empty(depth.shape), context.new_empty(context.shape)


def _splat_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])


def _splat_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.kestrel.lift_splat_backward(grad.contiguous(), *ctx.saved_tensors)
    return gradients[0], gradients[1], None, None, None, None, None, None


_lift_splat.register_autograd(_splat_backward, setup_context=_splat_context)


def lift_splat_reference(depth: Tensor, context: Tensor, row_start: Tensor, runs: Tensor) -> Tensor:
    """Compute the operator in torch."""
    # Sparse products know no half precision.
    pixels, weights, rows, pixel, _ = _expand(depth, context, row_start, runs)
    return torch.mm(_sparse(weights, rows, pixel, len(pixels)), pixels).to(context.dtype)


def lift_splat_backward_reference(
    grad: Tensor, depth: Tensor, context: Tensor, row_start: Tensor, runs: Tensor
) -> tuple[Tensor, Tensor]:
    """With M = A @ P: dP = A' @ dM, and dA = dM @ P' is needed only where A has entries."""
    pixels, weights, rows, pixel, point = _expand(depth, context, row_start, runs)
    grad = grad.to(pixels.dtype)
    matrix = _sparse(weights, rows, pixel, len(pixels))
    cell = torch.repeat_interleave(runs[:, 0], runs[:, 2])
    # Not by sampled_addmm, which refuses a matrix of more entries than places.
    chunks = (slice(first, first + _CHUNK) for first in range(0, len(point), _CHUNK))
    products = [(grad[cell[chunk]] * pixels[pixel[chunk]]).sum(1) for chunk in chunks]
    to_depth = weights.new_zeros(depth.numel()).index_copy_(0, point, torch.cat((weights[:0], *products)))
    images, channels, height, width = context.shape
    to_context = torch.mm(matrix.t(), grad).view(images, height, width, channels).permute(0, 3, 1, 2)
    return to_depth.view(depth.shape).to(depth.dtype), to_context.to(context.dtype).contiguous()


def _expand(depth: Tensor, context: Tensor, row_start: Tensor, runs: Tensor) -> tuple[Tensor, ...]:
    """Return what the sparse product needs, in float32 or better.

    Returns:
        (P, C) pixels, (K,) weight of each point, (num_cells + 1,) first point of each cell, and the pixel and
        the place in ``depth`` of each point.
    """
    dtype = torch.promote_types(context.dtype, torch.float32)
    _, depths, height, width = depth.shape
    length = runs[:, 2].long()
    ends = length.cumsum(0)
    run = torch.repeat_interleave(length)
    below = torch.arange(len(run), device=runs.device) - (ends - length)[run]
    point = runs[:, 1].long()[run] + below * width
    area = height * width
    pixel = point.div(depths * area, rounding_mode="floor") * area + point % area
    rows = torch.cat((ends.new_zeros(1), ends))[row_start.long()]
    pixels = context.permute(0, 2, 3, 1).reshape(-1, context.shape[1]).to(dtype)
    return pixels, depth.reshape(-1)[point].to(dtype), rows, pixel, point


def _sparse(weights: Tensor, row_start: Tensor, pixel: Tensor, pixels: int) -> Tensor:
    return torch.sparse_csr_tensor(
        row_start, pixel, weights, size=(len(row_start) - 1, pixels), check_invariants=False
    )
