# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Pooling into bird's-eye-view cells; lift-splat multiplies depth and context inside of the sum."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kestrel.ops.gpu.launch import block_of, blocks, launch
from kestrel.ops.gpu.segments import reduce_segments, sorted_by_segment


@triton.jit
def _splat(
    depth: tl.tensor,
    pixels: tl.tensor,
    row_start: tl.tensor,
    runs: tl.tensor,
    out: tl.tensor,
    depths: tl.tensor,
    area: tl.tensor,
    width: tl.tensor,
    channels: tl.tensor,
    block_rows: tl.constexpr,
    block: tl.constexpr,
) -> None:
    cell = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    inside = channel < channels
    total = tl.zeros((block,), tl.float32)
    for run in range(tl.load(row_start + cell), tl.load(row_start + cell + 1)):
        point = tl.load(runs + run * 3 + 1).to(tl.int64)
        length = tl.load(runs + run * 3 + 2)
        pixel = point // (depths * area) * area + point % area
        for start in range(0, length, block_rows):
            row = start + tl.arange(0, block_rows)
            there = row < length
            weight = tl.load(depth + point + row * width, mask=there, other=0).to(tl.float32)
            value = tl.load(
                pixels + (pixel + row * width)[:, None] * channels + channel[None, :],
                mask=there[:, None] & inside[None, :],
                other=0,
            )
            total += tl.sum(weight[:, None] * value.to(tl.float32), axis=0)
    tl.store(out + cell * channels + channel, total, mask=inside)


@triton.jit
def _splat_gradients(
    grad: tl.tensor,
    depth: tl.tensor,
    pixels: tl.tensor,
    runs: tl.tensor,
    by_column: tl.tensor,
    column_start: tl.tensor,
    to_depth: tl.tensor,
    to_pixels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    channels: tl.tensor,
    block_rows: tl.constexpr,
    block: tl.constexpr,
) -> None:
    column = tl.program_id(0)
    row = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    channel = tl.arange(0, block)
    inside = channel < channels
    pixel = (column // width * height + row).to(tl.int64) * width + column % width
    place = pixel[:, None] * channels + channel[None, :]
    whole = (row < height)[:, None] & inside[None, :]
    value = tl.load(pixels + place, mask=whole, other=0).to(tl.float32)
    total = tl.zeros((block_rows, block), tl.float32)
    for at in range(tl.load(column_start + column), tl.load(column_start + column + 1)):
        run = runs + tl.load(by_column + at).to(tl.int64) * 3
        point = tl.load(run + 1).to(tl.int64)
        first = point // width % height
        there = (row >= first) & (row < first + tl.load(run + 2))
        upstream = tl.load(grad + tl.load(run).to(tl.int64) * channels + channel, mask=inside, other=0)
        upstream = upstream.to(tl.float32)[None, :]
        below = depth + point + (row - first) * width
        weight = tl.load(below, mask=there, other=0).to(tl.float32)
        total += weight[:, None] * upstream
        product = tl.sum(value * upstream, axis=1)
        tl.store(to_depth + point + (row - first) * width, product, mask=there)
    tl.store(to_pixels + place, total, mask=whole)


def bev_pool(features: Tensor, cells: Tensor, num_cells: int) -> Tensor:
    """Compute kestrel::bev_pool."""
    return reduce_segments(features, *sorted_by_segment(cells, num_cells)).to(features.dtype)


def lift_splat(depth: Tensor, context: Tensor, row_start: Tensor, runs: Tensor) -> Tensor:
    """Compute kestrel::lift_splat."""
    depth, pixels = depth.contiguous(), _pixels(context)
    _, depths, height, width = depth.shape
    cells, channels = len(row_start) - 1, context.shape[1]
    out = context.new_empty(cells, channels)
    block = block_of(channels)
    launch(
        _splat,
        (cells, blocks(channels, block)),
        *(depth, pixels, row_start, runs.contiguous(), out, depths, height * width, width, channels),
        block_rows=8,
        block=block,
    )
    return out


def lift_splat_backward(
    grad: Tensor,
    depth: Tensor,
    context: Tensor,
    runs: Tensor,
    by_column: Tensor,
    column_start: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute kestrel::lift_splat_backward."""
    depth, pixels = depth.contiguous(), _pixels(context)
    _, _, height, width = depth.shape
    channels = context.shape[1]
    to_depth, to_pixels = torch.zeros_like(depth), torch.empty_like(pixels)
    # An instance holds all channels of its rows, since the gradient of a depth is a sum over them.
    block = block_of(channels, most=1 << 16)
    block_rows = block_of(height, most=max(1, 4096 // block))
    launch(
        _splat_gradients,
        (len(column_start) - 1, blocks(height, block_rows)),
        *(grad.contiguous(), depth, pixels, runs.contiguous(), by_column, column_start),
        *(to_depth, to_pixels, height, width, channels),
        block_rows=block_rows,
        block=block,
    )
    return to_depth, to_pixels.permute(0, 3, 1, 2).contiguous()


def _pixels(context: Tensor) -> Tensor:
    """Return the (N, H, W, C) context, whose channels an instance reads in one go."""
    return context.permute(0, 2, 3, 1).contiguous()
