# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Pooling of image features into bird's-eye-view cells (BEVFusion, Liu et al. 2022, section III-B).

A camera feature at every depth of its ray is a point in space; all points of one cell are summed. Which point
falls into which cell depends on where the cameras are alone, so it is computed once for as long as that stays
(:class:`FrustumRays`, :class:`LiftSplatIndex`); of a vehicle that moves it is computed for every frame. The
features of the points are depth probability times context; :func:`lift_splat` never builds them. The compiled
kernel multiplies inside of the sum over the points of a cell; the reference multiplies by a sparse matrix:
with A[cell, pixel] = sum of the depth probabilities of that pixel's points in that cell, the map is
A @ context.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kestrel.errors import InputError, describe
from kestrel.ops.backend import call, native_for, triton_for

GridShape: TypeAlias = tuple[int, int, int]
_Tables: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]

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
    index = ((points - lower) / step).long()
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


@dataclass(frozen=True)
class BevGrid:
    """Cells that points along rays fall into.

    lower: (x, y, z) of the lower corner, metres. step: size of a cell along them, metres. shape: how many.
    truncated: places are truncated toward zero, as in :func:`bev_cells`; else what is below the lower corner
        is outside.
    """

    lower: tuple[float, float, float]
    step: tuple[float, float, float]
    shape: GridShape
    truncated: bool = False


@dataclass(frozen=True)
class FrustumRays:
    """Where the points of N pictures are: origin + ray * depth.

    rays: (N, H, W, 3) metres per metre of depth. origins: (N, 3) metres. depths: (D,) metres.
    frames: (N,) int64 to which sample of a batch a picture belongs, -1 if it took no part.
    """

    rays: Tensor
    origins: Tensor
    depths: Tensor
    frames: Tensor

    def cells(self, grid: BevGrid) -> Tensor:
        """Return the (N, D, H, W) int64 cell of every point, ordered (sample, z, x, y), -1 outside."""
        rays, depths = self.rays[:, None], self.depths.view(1, -1, 1, 1, 1)
        points = rays * depths + self.origins[:, None, None, None]
        places = (points - points.new_tensor(grid.lower)) / points.new_tensor(grid.step)
        lowest = places > -1 if grid.truncated else places >= 0
        nx, ny, nz = grid.shape
        frame = self.frames.view(-1, 1, 1, 1)
        inside = (lowest & (places < places.new_tensor(grid.shape))).all(-1) & (frame >= 0)
        x, y, z = torch.where(inside[..., None], places, 0).long().unbind(-1)
        return torch.where(inside, ((frame * nz + z) * nx + x) * ny + y, -1)


@torch.library.custom_op("kestrel::bev_pool", mutates_args=())
def _bev_pool(features: Tensor, cells: Tensor, num_cells: int) -> Tensor:
    return bev_pool_reference(features, cells, num_cells)


@_bev_pool.register_kernel("cuda")
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
    return torch.where((cells >= 0)[:, None], grad[cells.clamp(min=0)], 0), None, None


_bev_pool.register_autograd(_pool_backward, setup_context=_pool_context)


def bev_pool_reference(features: Tensor, cells: Tensor, num_cells: int) -> Tensor:
    """Compute the operator in torch."""
    kept = cells >= 0
    pooled = features.new_zeros(num_cells, features.shape[1])
    return pooled.index_add_(0, cells[kept], features[kept])


@dataclass(frozen=True)
class LiftSplatIndex:
    """Which points of the camera frustums fall into which cell: depends on the calibration alone.

    Points that follow each other down a picture column, at one depth and in one cell, form a run; a level
    camera has one run for each column and depth. The index holds the runs of all points inside of the grid.

    row_start: (num_cells + 1,) int32 first run of each cell.
    runs: (R, 3) int32 cell, index of the first point into the flattened (N, D, H, W) points, number of
        points; ordered by cell, within a cell by (n, w, d, h).
    by_column: (R,) int32 the runs in the order of (n, w, d, h).
    column_start: (N * W + 1,) int32 first entry of by_column of each picture column.
    batch, shape: of the map.
    points: N, D, H, W of the points.
    """

    row_start: Tensor
    runs: Tensor
    by_column: Tensor
    column_start: Tensor
    batch: int
    shape: GridShape
    points: tuple[int, int, int, int]

    @classmethod
    def build(cls, cells: Tensor, batch: int, shape: GridShape) -> LiftSplatIndex:
        """Sort the points by cell.

        Args:
            cells: (N, D, H, W) int64 from :func:`bev_cells`, N = batch * cameras, -1 for points to drop.
            batch: number of samples.
            shape: cells along x, y, z.

        Raises:
            InputError: cells of another shape or type, a cell that the map does not have, or more points
                than 32 bits count.
        """
        if cells.ndim != 4 or cells.dtype != torch.int64:
            found = f"{cells.dtype} of shape {tuple(cells.shape)}"
            raise InputError(describe("cells of points", expected="int64 (N, D, H, W)", found=found))
        images, depths, height, width = cells.shape
        points = images, depths, height, width
        num_cells = batch * shape[0] * shape[1] * shape[2]
        limit = torch.iinfo(torch.int32).max
        highest = int(cells.max()) if cells.numel() else -1
        if highest >= num_cells or max(cells.numel(), num_cells) > limit:
            found = f"{highest} in {cells.numel()} points and {num_cells} cells"
            raise InputError(describe("cell of a point", expected=f"below {num_cells}", found=found))
        return cls(*index_reference(cells, num_cells), batch, shape, points)

    @classmethod
    def along(cls, rays: FrustumRays, grid: BevGrid, batch: int) -> LiftSplatIndex:
        """Sort the points along rays by cell.

        Args:
            rays: of all pictures.
            grid: whose cells they fall into.
            batch: number of samples.

        Raises:
            InputError: a picture of a sample that the batch does not have, or more points than 32 bits count.
        """
        highest = int(rays.frames.max()) if len(rays.frames) else -1
        if highest >= batch:
            expected = f"below {batch}"
            raise InputError(describe("sample of a picture", expected=expected, found=highest))
        native = native_for(rays.rays, rays.origins, rays.depths)
        if native is None or rays.rays.dtype != torch.float32:
            return cls.build(rays.cells(grid), batch, grid.shape)
        images, height, width, _ = rays.rays.shape
        points = images, len(rays.depths), height, width
        num_cells = batch * math.prod(grid.shape)
        limit = torch.iinfo(torch.int32).max
        if max(math.prod(points), num_cells) > limit:
            found = f"{math.prod(points)} points and {num_cells} cells"
            raise InputError(describe("points along rays", expected=f"at most {limit}", found=found))
        row_start = torch.empty(num_cells + 1, dtype=torch.int32)
        runs = torch.empty(math.prod(points), 3, dtype=torch.int32)
        by_column = torch.empty(math.prod(points), dtype=torch.int32)
        column_start = torch.empty(images * width + 1, dtype=torch.int32)
        count = call(
            native.build_splat_index,
            *(rays.rays, rays.origins, rays.depths, rays.frames),
            *((*grid.lower, *grid.step), grid.truncated, (*points, *grid.shape), num_cells),
            *(row_start, runs, by_column, column_start, torch.get_num_threads()),
        )
        # The room for the worst case is given back.
        tables = row_start, runs[:count].clone(), by_column[:count].clone(), column_start
        return cls(*tables, batch, grid.shape, points)


def index_reference(cells: Tensor, num_cells: int) -> _Tables:
    """Compute the tensors of a LiftSplatIndex in torch."""
    images, depths, height, width = cells.shape

    def turned(values: Tensor) -> Tensor:
        return values.view(cells.shape).permute(0, 3, 1, 2).reshape(-1)

    column = turned(cells.contiguous())
    place = torch.arange(len(column), device=cells.device)
    breaks = place % height == 0
    breaks[1:] |= column[1:] != column[:-1]
    start = breaks.nonzero().squeeze(1)
    length = torch.diff(start, append=start.new_tensor([len(column)]))
    kept = column[start] >= 0
    start, length = start[kept], length[kept]
    cell, order = column[start].sort(stable=True)
    runs = torch.stack((cell, turned(place)[start[order]], length[order]), dim=1)
    row_start = _starts(cell, num_cells)
    column_start = _starts(start.div(depths * height, rounding_mode="floor"), images * width)
    return row_start, runs.int(), order.argsort().int(), column_start


def _starts(group: Tensor, groups: int) -> Tensor:
    """Return (groups + 1,) int32: how many entries belong to lower groups."""
    starts = torch.zeros(groups + 1, dtype=torch.int32, device=group.device)
    starts[1:] = torch.bincount(group, minlength=groups).cumsum(0)
    return starts


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


def _frustum(depth: Tensor, context: Tensor, tables: _Tables) -> tuple[object, ...]:
    """Return the first arguments of both compiled functions."""
    images, depths, height, width = depth.shape
    return (
        *(depth.data_ptr(), context.data_ptr(), depth.stride(), context.stride()),
        (images, depths, height, width, context.shape[1]),
        context.dtype == torch.bfloat16,
        [table.data_ptr() for table in tables],
    )


@torch.library.custom_op("kestrel::lift_splat", mutates_args=())
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
        arguments = _frustum(depth, context, (row_start, runs, by_column, column_start))
        native.lift_splat(*arguments, grid, out.data_ptr(), torch.get_num_threads())
        return out
    return lift_splat_reference(depth, context, row_start, runs)


@_lift_splat.register_kernel("cuda")
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


@torch.library.custom_op("kestrel::lift_splat_backward", mutates_args=())
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
        arguments = _frustum(depth, context, (row_start, runs, by_column, column_start))
        addresses = (each.data_ptr() for each in (grad, to_depth, to_context))
        native.lift_splat_backward(*arguments, *addresses, torch.get_num_threads())
        return to_depth, to_context
    return lift_splat_backward_reference(grad, depth, context, row_start, runs)


@_lift_splat_backward.register_kernel("cuda")
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
    grad_weights = torch.sparse.sampled_addmm(matrix, grad, pixels.t(), beta=0.0).values()
    to_depth = weights.new_zeros(depth.numel()).index_copy_(0, point, grad_weights)
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
