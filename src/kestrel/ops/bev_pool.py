# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Pooling of image features into bird's-eye-view cells (BEVFusion, Liu et al. 2022, section III-B).

A camera feature at every depth of its ray is a point in space; all points of one cell are summed. Which point
falls into which cell depends on the calibration alone, so it is computed once (:func:`bev_cells`,
:class:`LiftSplatIndex`) and reused. The features of the points are depth probability times context;
:func:`lift_splat` never builds them: with A[cell, pixel] = sum of the depth probabilities of that pixel's
points in that cell, the map is A @ context.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

GridShape: TypeAlias = tuple[int, int, int]

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
    """
    nx, ny, nz = shape
    channels = features.shape[-1]
    pooled = torch.ops.kestrel.bev_pool(
        features.reshape(-1, channels), cells.reshape(-1), batch * nx * ny * nz
    )
    return _as_map(pooled, batch, shape)


def _as_map(pooled: Tensor, batch: int, shape: GridShape) -> Tensor:
    nx, ny, nz = shape
    return pooled.view(batch, nz, nx, ny, -1).permute(0, 1, 4, 2, 3).reshape(batch, -1, nx, ny)


@torch.library.custom_op("kestrel::bev_pool", mutates_args=())
def _bev_pool(features: Tensor, cells: Tensor, num_cells: int) -> Tensor:
    kept = cells >= 0
    pooled = features.new_zeros(num_cells, features.shape[1])
    return pooled.index_add_(0, cells[kept], features[kept])


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


@dataclass(frozen=True)
class LiftSplatIndex:
    """Which points of the camera frustums fall into which cell: depends on the calibration alone.

    The points inside the grid, sorted by cell (compressed sparse rows: rows are cells, columns pixels).

    row_start: (num_cells + 1,) int64 first kept point of each cell.
    pixel: (K,) int64 index into the flattened (N, H, W) pixels.
    point: (K,) int64 index into the flattened (N, D, H, W) points.
    batch, shape: of the map.
    """

    row_start: Tensor
    pixel: Tensor
    point: Tensor
    batch: int
    shape: GridShape

    @classmethod
    def build(cls, cells: Tensor, batch: int, shape: GridShape) -> LiftSplatIndex:
        """Sort the points by cell.

        Args:
            cells: (N, D, H, W) int64 from :func:`bev_cells`, N = batch * cameras, -1 for points to drop.
            batch: number of samples.
            shape: cells along x, y, z.
        """
        _, depths, height, width = cells.shape
        flat = cells.reshape(-1)
        kept = torch.nonzero(flat >= 0)[:, 0]
        point = kept[torch.argsort(flat[kept], stable=True)]
        row_start = flat.new_zeros(batch * shape[0] * shape[1] * shape[2] + 1)
        row_start[1:] = torch.bincount(flat[point], minlength=len(row_start) - 1).cumsum(0)
        area = height * width
        pixel = point.div(depths * area, rounding_mode="floor") * area + point % area
        return cls(row_start, pixel, point, batch, shape)


def lift_splat(depth: Tensor, context: Tensor, index: LiftSplatIndex) -> Tensor:
    """Lift image features along their rays and sum them per cell (Philion and Fidler 2020, section 3).

    Equals bev_pool(depth[..., None] * context[:, None], cells) without that outer product.

    Args:
        depth: (N, D, H, W) probability of each depth, N = batch * cameras.
        context: (N, C, H, W) features.
        index: of the calibration of these images.

    Returns:
        (batch, nz * C, nx, ny); channel = z * C + c.
    """
    pixels = context.permute(0, 2, 3, 1).reshape(-1, context.shape[1])
    weights = depth.reshape(-1)[index.point]
    pooled = torch.ops.kestrel.lift_splat(weights, pixels, index.row_start, index.pixel)
    return _as_map(pooled, index.batch, index.shape)


@torch.library.custom_op("kestrel::lift_splat", mutates_args=())
def _lift_splat(weights: Tensor, pixels: Tensor, row_start: Tensor, pixel: Tensor) -> Tensor:
    # Sparse products know no half precision.
    dtype = torch.promote_types(pixels.dtype, torch.float32)
    matrix = _sparse(weights.to(dtype), row_start, pixel, len(pixels))
    return torch.mm(matrix, pixels.to(dtype)).to(pixels.dtype)


@_lift_splat.register_fake
def _(weights: Tensor, pixels: Tensor, row_start: Tensor, pixel: Tensor) -> Tensor:
    return pixels.new_empty(len(row_start) - 1, pixels.shape[1])


def _splat_context(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor
) -> None:
    ctx.save_for_backward(*inputs)


@torch.library.custom_op("kestrel::lift_splat_backward", mutates_args=())
def _lift_splat_backward(
    grad: Tensor, weights: Tensor, pixels: Tensor, row_start: Tensor, pixel: Tensor
) -> tuple[Tensor, Tensor]:
    """With M = A @ P: dP = A' @ dM, and dA = dM @ P' is needed only where A has entries."""
    dtype = torch.promote_types(pixels.dtype, torch.float32)
    grad = grad.to(dtype).contiguous()
    matrix = _sparse(weights.to(dtype), row_start, pixel, len(pixels))
    grad_weights = torch.sparse.sampled_addmm(matrix, grad, pixels.to(dtype).t(), beta=0.0).values()
    return grad_weights.to(weights.dtype), torch.mm(matrix.t(), grad).to(pixels.dtype)


@_lift_splat_backward.register_fake
def _(
    grad: Tensor, weights: Tensor, pixels: Tensor, row_start: Tensor, pixel: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weights), pixels.new_empty(pixels.shape)


def _splat_backward(
    ctx: torch.autograd.function.FunctionCtx, grad: Tensor
) -> tuple[Tensor, Tensor, None, None]:
    weights, pixels, row_start, pixel = ctx.saved_tensors  # type: ignore[attr-defined]
    gradients = torch.ops.kestrel.lift_splat_backward(grad, weights, pixels, row_start, pixel)
    return gradients[0], gradients[1], None, None


_lift_splat.register_autograd(_splat_backward, setup_context=_splat_context)


def _sparse(weights: Tensor, row_start: Tensor, pixel: Tensor, pixels: int) -> Tensor:
    return torch.sparse_csr_tensor(
        row_start, pixel, weights, size=(len(row_start) - 1, pixels), check_invariants=False
    )
