# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Between points and voxels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kestrel.ops.coordinates import AXIS_BITS, COORDINATE_LIMIT
from kestrel.ops.gpu.coordinates import row_of
from kestrel.ops.gpu.launch import block_of, blocks, launch
from kestrel.ops.gpu.segments import reduce_segments, sorted_by_segment

_POINTS = 128
_BITS = tl.constexpr(AXIS_BITS)
_BIAS = tl.constexpr(1 << (AXIS_BITS - 1))
_LIMIT = tl.constexpr(COORDINATE_LIMIT)


@triton.jit
def _trilinear(
    points: tl.tensor,
    keys: tl.tensor,
    strides: tl.tensor,
    rows: tl.tensor,
    weights: tl.tensor,
    point_count: tl.tensor,
    count: tl.tensor,
    steps: tl.tensor,
    block: tl.constexpr,
) -> None:
    point = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = point < point_count
    corner = tl.arange(0, 8)
    key = tl.load(points + point * 4, mask=inside, other=0).to(tl.int64)[:, None]
    weight = tl.full((block, 8), 1.0, tl.float32)
    for axis in tl.static_range(3):
        value = tl.load(points + point * 4 + axis + 1, mask=inside, other=0)
        # Rounded division: the fast one would move points across the borders of voxels.
        scaled = tl.div_rn(value, tl.load(strides + axis))
        lower = tl.floor(scaled)
        behind = (scaled - lower)[:, None]
        beyond = (corner >> (2 - axis) & 1)[None, :]
        weight *= tl.where(beyond == 1, behind, 1 - behind)
        index = tl.minimum(tl.maximum(lower, -_LIMIT), _LIMIT - 1).to(tl.int64)
        key = (key << _BITS) + (index[:, None] + _BIAS + beyond)
    row = row_of(keys, count, steps, key)
    weight = tl.where(row >= 0, weight, 0.0)
    weight = tl.div_rn(weight, tl.sum(weight, axis=1)[:, None] + 1e-8 + tl.zeros_like(weight))
    place = point[:, None] * 8 + corner[None, :]
    tl.store(rows + place, row, mask=inside[:, None])
    tl.store(weights + place, weight, mask=inside[:, None])


@triton.jit
def _gather(
    features: tl.tensor,
    rows: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    points: tl.tensor,
    channels: tl.tensor,
    neighbours: tl.tensor,
    block_points: tl.constexpr,
    block: tl.constexpr,
) -> None:
    point = tl.program_id(0).to(tl.int64) * block_points + tl.arange(0, block_points)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    there, inside = point < points, channel < channels
    total = tl.zeros((block_points, block), tl.float32)
    for n in range(neighbours):
        row = tl.load(rows + point * neighbours + n, mask=there, other=-1).to(tl.int64)
        # A missing row has no weight, not even one that is no number.
        weight = tl.load(weights + point * neighbours + n, mask=row >= 0, other=0).to(tl.float32)
        value = tl.load(
            features + row[:, None] * channels + channel[None, :],
            mask=(row >= 0)[:, None] & inside[None, :],
            other=0,
        )
        total += weight[:, None] * value.to(tl.float32)
    place = point[:, None] * channels + channel[None, :]
    tl.store(out + place, total, mask=there[:, None] & inside[None, :])


def trilinear_neighbours(points: Tensor, keys: Tensor, stride: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Compute kestrel::trilinear_neighbours."""
    points, keys, count = points.contiguous(), keys.contiguous(), len(keys)
    rows = torch.empty(len(points), 8, dtype=torch.int32, device=points.device)
    weights = torch.empty(len(points), 8, dtype=torch.float32, device=points.device)
    strides = torch.tensor(stride, dtype=torch.float32, device=points.device)
    grid = (blocks(len(points), _POINTS),)
    sizes = (len(points), count, count.bit_length())
    launch(_trilinear, grid, points, keys, strides, rows, weights, *sizes, block=_POINTS)
    return rows, weights


def scatter_mean(features: Tensor, rows: Tensor, voxel_count: int) -> tuple[Tensor, Tensor]:
    """Compute kestrel::scatter_mean."""
    order, starts = sorted_by_segment(rows, voxel_count)
    counts = starts.diff().to(features.dtype)
    sums = reduce_segments(features, order, starts)
    return (sums / starts.diff().clamp(min=1)[:, None]).to(features.dtype), counts


def devoxelize(features: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Compute kestrel::devoxelize."""
    features, rows, weights = features.contiguous(), rows.contiguous(), weights.contiguous()
    (points, neighbours), channels = rows.shape, features.shape[1]
    out = features.new_empty(points, channels)
    block = block_of(channels, most=64)
    grid = blocks(points, 32), blocks(channels, block)
    sizes = points, channels, neighbours
    launch(_gather, grid, features, rows, weights, out, *sizes, block_points=32, block=block)
    return out


def devoxelize_gradient(gradient: Tensor, rows: Tensor, weights: Tensor, voxel_count: int) -> Tensor:
    """Compute kestrel::devoxelize_gradient."""
    order, starts = sorted_by_segment(rows, voxel_count)
    return reduce_segments(gradient, order, starts, weights).to(gradient.dtype)
