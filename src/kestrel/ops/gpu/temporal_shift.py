# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Temporal shift: every output is read once, from its own frame or a neighbour of it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kestrel.ops.gpu.launch import blocks, launch

_BLOCK = 1024


@triton.jit
def _shift(
    x: tl.tensor,
    out: tl.tensor,
    count: tl.tensor,
    n_segment: tl.tensor,
    frame: tl.tensor,
    channels: tl.tensor,
    channel_step: tl.tensor,
    fold: tl.tensor,
    first_step: tl.tensor,
    second_step: tl.tensor,
    block: tl.constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < count
    time = at // frame % n_segment
    channel = at // channel_step % channels
    # The frame that each element comes from, counted from its own.
    step = tl.where(channel < fold, first_step, tl.where(channel < 2 * fold, second_step, 0))
    exists = (time + step >= 0) & (time + step < n_segment)
    value = tl.load(x + at + step * frame, mask=inside & exists, other=0)
    tl.store(out + at, value, mask=inside)


def temporal_shift(x: Tensor, n_segment: int, fold: int, first: int, second: int) -> Tensor:
    """Compute kestrel::temporal_shift; the result lies in memory as the input does."""
    channels, area, result = x.shape[1], x.shape[2:].numel(), torch.empty_like(x)
    last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    x = x if last else x.contiguous()
    out = result if result.stride() == x.stride() else torch.empty_like(x)
    sizes = (x.numel(), n_segment, channels * area, channels, 1 if last else area, fold, first, second)
    launch(_shift, (blocks(x.numel(), _BLOCK),), x, out, *sizes, block=_BLOCK)
    return out if out is result else result.copy_(out)
