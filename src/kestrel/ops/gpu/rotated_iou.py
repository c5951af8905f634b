# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Overlap of turned rectangles: an integral along four edges for every pair, without branches."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kestrel.ops.gpu.launch import blocks, launch

_ROWS, _COLUMNS = 4, 64


@triton.jit
def clamp(value: tl.tensor, bound: tl.tensor) -> tl.tensor:
    """Return the value within the bound on both sides; NaN stays."""
    return tl.where(value > bound, bound, tl.where(value < -bound, -bound, value))


@triton.jit
def along(
    x0: tl.tensor, y0: tl.tensor, x1: tl.tensor, y1: tl.tensor, a: tl.tensor, b: tl.tensor
) -> tl.tensor:
    """Integrate clamp(x, -a, a) dy over the part of an edge with |y| <= b."""
    low, high = clamp(y0, b), clamp(y1, b)
    rise = tl.where(y1 == y0, 1.0, y1 - y0)
    start = x0 + (x1 - x0) * (low - y0) / rise
    end = x0 + (x1 - x0) * (high - y0) / rise
    left, right = clamp(start, a), clamp(end, a)
    run = tl.where(end == start, 1.0, end - start)
    mean = right + (left - right) * ((left - start) + (right - left) / 2) / run
    return (high - low) * mean


@triton.jit
def _iou(
    boxes: tl.tensor,
    others: tl.tensor,
    out: tl.tensor,
    count: tl.tensor,
    other_count: tl.tensor,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)[:, None]
    column = tl.program_id(1) * block_columns + tl.arange(0, block_columns)[None, :]
    there, known = row < count, column < other_count
    one, other = boxes + row * 6, others + column * 6
    a = tl.load(one + 2, mask=there, other=0)
    b = tl.load(one + 3, mask=there, other=0)
    cos = tl.load(one + 4, mask=there, other=1)
    sin = tl.load(one + 5, mask=there, other=0)
    length = tl.load(other + 2, mask=known, other=0)
    width = tl.load(other + 3, mask=known, other=0)
    other_cos = tl.load(other + 4, mask=known, other=1)
    other_sin = tl.load(other + 5, mask=known, other=0)
    dx = tl.load(other, mask=known, other=0) - tl.load(one, mask=there, other=0)
    dy = tl.load(other + 1, mask=known, other=0) - tl.load(one + 1, mask=there, other=0)
    turn_cos, turn_sin = cos * other_cos + sin * other_sin, cos * other_sin - sin * other_cos
    x, y = cos * dx + sin * dy, cos * dy - sin * dx
    ux, uy = turn_cos * length, turn_sin * length
    vx, vy = -turn_sin * width, turn_cos * width
    shared = along(x + ux - vx, y + uy - vy, x + ux + vx, y + uy + vy, a, b)
    shared += along(x + ux + vx, y + uy + vy, x - ux + vx, y - uy + vy, a, b)
    shared += along(x - ux + vx, y - uy + vy, x - ux - vx, y - uy - vy, a, b)
    shared += along(x - ux - vx, y - uy - vy, x + ux - vx, y + uy - vy, a, b)
    shared = tl.where(shared < 0, 0.0, shared)
    union = 4 * (a * b + length * width) - shared
    iou = tl.where(union > 0, shared / tl.where(union > 0, union, 1.0), 0.0 * shared)
    tl.store(out + row * other_count + column, iou, mask=there & known)


def rotated_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Compute kestrel::rotated_iou."""
    out = torch.empty(len(boxes), len(others), dtype=torch.float64, device=boxes.device)
    grid = blocks(len(boxes), _ROWS), blocks(len(others), _COLUMNS)
    sizes = len(boxes), len(others)
    tables = _prepared(boxes), _prepared(others)
    launch(_iou, grid, *tables, out, *sizes, block_rows=_ROWS, block_columns=_COLUMNS)
    return out.to(boxes.dtype)


def _prepared(boxes: Tensor) -> Tensor:
    """Return (N, 6) double: middle, half sizes, cosine and sine."""
    wide = boxes.double()
    return torch.cat((wide[:, :2], wide[:, 2:4] / 2, wide[:, 4:].cos(), wide[:, 4:].sin()), 1)
