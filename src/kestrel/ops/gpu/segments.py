# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Sums and maxima of rows that belong together: what the other operators are made of.

Rows are sorted by segment first, and each segment is reduced in that order by instances of its own. The
result repeats bit by bit, which atomic additions do not give.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kestrel.ops.gpu.launch import block_of, blocks, launch


@triton.jit
def _reduce(
    values: tl.tensor,
    weights: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    out: tl.tensor,
    channels: tl.tensor,
    neighbours: tl.tensor,
    weighted: tl.constexpr,
    maximum: tl.constexpr,
    block: tl.constexpr,
) -> None:
    segment = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    inside = channel < channels
    total = tl.full((block,), float("-inf") if maximum else 0.0, tl.float32)
    for at in range(tl.load(starts + segment), tl.load(starts + segment + 1)):
        entry = tl.load(order + at)
        value = tl.load(values + entry // neighbours * channels + channel, mask=inside, other=0)
        value = value.to(tl.float32)
        if weighted:
            value *= tl.load(weights + entry).to(tl.float32)
        if maximum:
            total = tl.maximum(total, value, propagate_nan=tl.PropagateNan.ALL)
        else:
            total += value
    tl.store(out + segment * channels + channel, total, mask=inside)


def sorted_by_segment(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sort entries by the segment they belong to.

    Args:
        rows: segment of each entry, any shape; -1 for none.
        count: number of segments.

    Returns:
        Entries in the order of their segments, those of none first, and the (count + 1,) starts of segments.
    """
    ordered, order = rows.reshape(-1).sort(stable=True)
    segments = torch.arange(count + 1, dtype=ordered.dtype, device=ordered.device)
    return order, torch.searchsorted(ordered, segments)


def reduce_segments(
    values: Tensor,
    order: Tensor,
    starts: Tensor,
    weights: Tensor | None = None,
    *,
    maximum: bool = False,
) -> Tensor:
    """Return the (M, C) float32 sums, or maxima, of the rows of each segment.

    Args:
        values: (P, C).
        order: entries in the order of segments; entry e is row e // neighbours of the values.
        starts: (M + 1,) first entry of each segment.
        weights: (P, neighbours) factor of each entry; without them every row is one entry.
        maximum: whether to take the largest value, NaN above all.
    """
    values = values.contiguous()
    segments, channels = len(starts) - 1, values.shape[1]
    out = torch.empty(segments, channels, dtype=torch.float32, device=values.device)
    block = block_of(channels)
    launch(
        _reduce,
        (segments, blocks(channels, block)),
        *(values, None if weights is None else weights.contiguous(), order, starts, out, channels),
        1 if weights is None else weights.shape[1],
        weighted=weights is not None,
        maximum=maximum,
        block=block,
    )
    return out
