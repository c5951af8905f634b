# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Attention within shifted windows: one program for each window and head, from the map and back to it."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kestrel.ops.gpu.launch import block_of, blocks, launch
from kestrel.ops.window_attention import MOST_DEPTH, MOST_WINDOW

_LEAST = 16
"""The smallest side of a matrix product that every GPU multiplies."""


@triton.jit
def region(place: tl.tensor, length: tl.tensor, window: tl.tensor, shift: tl.tensor) -> tl.tensor:
    """Return which of the three parts of an axis a shifted place is of, 0 to 2."""
    return (place >= length - window).to(tl.int32) + (place >= length - shift).to(tl.int32)


@triton.jit
def _attend(
    qkv: tl.tensor,
    padding: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    down: tl.tensor,
    across: tl.tensor,
    heads: tl.tensor,
    depth: tl.tensor,
    window: tl.tensor,
    shift: tl.tensor,
    scale: tl.tensor,
    hidden: tl.tensor,
    precision: tl.constexpr,
    block: tl.constexpr,
    block_depth: tl.constexpr,
) -> None:
    head = tl.program_id(1)
    image, place = tl.program_id(0) // (down * across), tl.program_id(0) % (down * across)
    cell, lane = tl.arange(0, block), tl.arange(0, block_depth)
    inside, known = cell < window * window, lane < depth
    # Where a cell of the window is on the shifted map, and where it came from.
    y, x = place // across * window + cell // window, place % across * window + cell % window
    row, column = (y + shift) % (down * window), (x + shift) % (across * window)
    there = inside & (row < height) & (column < width)
    channels = heads * depth
    at = (image.to(tl.int64) * height + row) * width + column
    own = head * depth + lane
    both, border = there[:, None] & known[None, :], (inside & ~there)[:, None] & known[None, :]
    source = qkv + at[:, None] * (3 * channels) + own[None, :]
    edge = padding + own[None, :] + tl.zeros((block, 1), tl.int32)
    query = tl.load(source, mask=both, other=0) + tl.load(edge, mask=border, other=0)
    key = tl.load(source + channels, mask=both, other=0) + tl.load(edge + channels, mask=border, other=0)
    value = tl.load(source + 2 * channels, mask=both, other=0)
    value += tl.load(edge + 2 * channels, mask=border, other=0)
    scores = tl.dot(query, tl.trans(key), input_precision=precision) * scale
    pair = (head * window * window + cell[:, None]) * (window * window) + cell[None, :]
    pairs = inside[:, None] & inside[None, :]
    scores += tl.load(bias + pair, mask=pairs, other=0)
    if shift > 0:
        part = region(y, down * window, window, shift) * 3 + region(x, across * window, window, shift)
        scores += tl.where(part[:, None] != part[None, :], hidden, 0.0)
    scores = tl.where(inside[None, :], scores, float("-inf"))
    share = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    share = share / tl.sum(share, axis=1)[:, None]
    mixed = tl.dot(share.to(value.dtype), value, input_precision=precision)
    tl.store(out + at[:, None] * channels + own[None, :], mixed, mask=both)


def window_attention(
    qkv: Tensor, padding: Tensor, bias: Tensor, window: int, shift: int, hidden: float
) -> Tensor:
    """Compute kestrel::window_attention; ``hidden`` is added to the scores between what shifting joined."""
    qkv = qkv.contiguous()
    batch, height, width, channels = qkv.shape[0], *qkv.shape[1:3], qkv.shape[3] // 3
    heads = len(bias)
    depth, down, across = channels // heads, blocks(height, window), blocks(width, window)
    out = qkv.new_empty(batch, height, width, channels)
    launch(
        _attend,
        (batch * down * across, heads),
        *(qkv, padding.to(qkv.dtype).contiguous(), bias.float().contiguous(), out),
        *(height, width, down, across, heads, depth, window, shift, depth**-0.5, hidden),
        precision="ieee",
        block=block_of(window * window, least=_LEAST, most=MOST_WINDOW**2),
        block_depth=block_of(depth, least=_LEAST, most=MOST_DEPTH),
    )
    return out
