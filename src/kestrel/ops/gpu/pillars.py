# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The canvas of pillars: one program for each pillar that has points, which walks them twice."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kestrel.ops.gpu.launch import block_of, blocks, launch


@triton.jit
def _canvas(
    points: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    pillars: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    centers: tl.tensor,
    out: tl.tensor,
    side: tl.tensor,
    channels: tl.tensor,
    block: tl.constexpr,
) -> None:
    number = tl.program_id(0)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    inside = channel < channels
    pillar = tl.load(pillars + number)
    middle_x = tl.load(centers + pillar // side % side)
    middle_y = tl.load(centers + pillar % side)
    first, end = tl.load(starts + number), tl.load(starts + number + 1)
    sum_x, sum_y = tl.zeros((), tl.float32), tl.zeros((), tl.float32)
    for at in range(first, end):
        point = points + tl.load(order + at) * 5
        sum_x += tl.load(point)
        sum_y += tl.load(point + 1)
    count = (end - first).to(tl.float32)
    mean_x, mean_y = sum_x / count, sum_y / count
    added = tl.load(bias + channel, mask=inside, other=0)
    best = tl.zeros((block,), tl.float32)
    for at in range(first, end):
        point = points + tl.load(order + at) * 5
        total = added
        for column in tl.static_range(5):
            row = tl.load(weight + column * channels + channel, mask=inside, other=0)
            total += tl.load(point + column) * row
        x, y = tl.load(point), tl.load(point + 1)
        total += (x - middle_x) * tl.load(weight + 5 * channels + channel, mask=inside, other=0)
        total += (y - middle_y) * tl.load(weight + 6 * channels + channel, mask=inside, other=0)
        total += (x - mean_x) * tl.load(weight + 7 * channels + channel, mask=inside, other=0)
        total += (y - mean_y) * tl.load(weight + 8 * channels + channel, mask=inside, other=0)
        best = tl.maximum(best, total, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out + pillar * channels + channel, best, mask=inside)


def pillar_canvas(
    points: Tensor, pillar: Tensor, weight: Tensor, bias: Tensor, centers: Tensor, frames: int
) -> Tensor:
    """Return the maximum of relu(features @ weight + bias) over the points of each pillar.

    Args:
        points: (n, 5) inside of the grid.
        pillar: (n,) int64 pillar of each, counted by frame, x, y.
        weight: (9, C).
        bias: (C,).
        centers: (side,) middles of the pillars along one axis.
        frames: number of frames.

    Returns:
        (frames, C, side, side) in channels_last.
    """
    side, channels = len(centers), len(bias)
    out = points.new_zeros(frames, side, side, channels)
    ordered, order = pillar.sort(stable=True)
    taken, counts = torch.unique_consecutive(ordered, return_counts=True)
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    block = block_of(channels, most=64)
    arrays = points.contiguous(), order, starts, taken, weight.contiguous(), bias.contiguous()
    grid = len(taken), blocks(channels, block)
    launch(_canvas, grid, *arrays, centers.contiguous(), out, side, channels, block=block)
    return out.permute(0, 3, 1, 2)
