# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Attention within shifted windows of a map (Swin Transformer, Liu et al. 2021, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from kestrel.errors import InputError, describe
from kestrel.ops.backend import call, native_for, triton_for
from kestrel.ops.operator import operator

MOST_WINDOW: Final = 32
MOST_DEPTH: Final = 256
"""Sides of windows and channels of a head, of which the kernel of a GPU holds no more in one block."""

HIDDEN: Final = -100.0
"""Added to the scores between cells that only the cyclic shift brought together."""


def window_attention(qkv: Tensor, padding: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    """Let each cell attend to the cells of its window; no gradients.

    Args:
        qkv: (B, H, W, 3 C) float32 or bfloat16: query, key and value of every cell, each one head after the
            other.
        padding: (3 C,) of the cells by which the map is padded to whole windows, below and to the right.
        bias: (heads, P, P) added to the scores of the P = window^2 cells of a window.
        window: cells along one side.
        shift: cells by which the windows are moved down and to the right, below ``window``.

    Returns:
        (B, H, W, C).

    Raises:
        InputError: shapes that do not fit each other, or a shift as large as the window.
    """
    heads, positions = bias.shape[:2]
    if (
        qkv.ndim != 4
        or padding.shape != qkv.shape[3:]
        or bias.shape[1:] != (positions, positions)
        or positions != window * window
        or qkv.shape[3] % (3 * heads)
    ):
        wanted = f"(B, H, W, 3 C), (3 C,), (heads, P, P) with P = {window * window} and heads a divisor of C"
        found = ", ".join(str(tuple(part.shape)) for part in (qkv, padding, bias))
        raise InputError(describe("qkv, padding and bias", expected=wanted, found=found))
    if not 0 <= shift < window:
        raise InputError(describe("shift of the windows", expected=f"0 to {window - 1}", found=shift))
    attended: Tensor = torch.ops.kestrel.window_attention(qkv, padding, bias, window, shift)
    return attended


@operator("window_attention")
def _window_attention(qkv: Tensor, padding: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    native = native_for(qkv)
    if native is None:
        return window_attention_reference(qkv, padding, bias, window, shift)
    batch, height, width, channels = qkv.shape[0], *qkv.shape[1:3], qkv.shape[3] // 3
    depth = channels // len(bias)
    out = qkv.new_empty(batch, height, width, channels)
    call(
        native.window_attention,
        *(qkv, padding.to(qkv.dtype), bias.float(), out, batch, height, width, len(bias), depth),
        *(window, shift, depth**-0.5, HIDDEN, qkv.dtype == torch.bfloat16, torch.get_num_threads()),
    )
    return out


@_window_attention.register_cuda
def window_attention_cuda(qkv: Tensor, padding: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    """Compute the operator on a GPU: in Triton where it is installed."""
    depth = qkv.shape[3] // (3 * len(bias))
    if not triton_for(qkv) or window > MOST_WINDOW or depth > MOST_DEPTH:
        return window_attention_reference(qkv, padding, bias, window, shift)
    from kestrel.ops.gpu import window_attention as gpu

    return gpu.window_attention(qkv, padding, bias, window, shift, HIDDEN)


@_window_attention.register_fake
def _(qkv: Tensor, padding: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    return qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)


def window_attention_reference(qkv: Tensor, padding: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    """Do the same in torch, with gradients."""
    batch, height, width, channels = qkv.shape
    cell = padding.to(qkv.dtype).view(1, 1, 1, channels)
    right = cell.expand(batch, height, -width % window, channels)
    below = cell.expand(batch, -height % window, width + right.shape[2], channels)
    whole = torch.cat((torch.cat((qkv, right), 2), below), 1)
    if shift:
        whole = whole.roll((-shift, -shift), (1, 2))
    split = _windows(whole, window).view(-1, window * window, 3, len(bias), channels // (3 * len(bias)))
    query, key, value = split.permute(2, 0, 3, 1, 4)
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1) + bias
    if shift:
        mask = _mask(whole.shape[1], whole.shape[2], window, shift).to(scores)
        scores = (scores.view(-1, len(mask), *scores.shape[1:]) + mask[:, None]).flatten(0, 1)
    mixed = (scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
    attended = _merge(mixed, (*whole.shape[:3], mixed.shape[-1]), window)
    if shift:
        attended = attended.roll((shift, shift), (1, 2))
    return attended[:, :height, :width].contiguous()


def _mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """Separate the regions that the cyclic shift brought together (figure 4), (windows, P, P)."""

    def regions(length: int) -> Tensor:
        position = torch.arange(length)
        return (position >= length - window).int() + (position >= length - shift).int()

    region = regions(height)[:, None] * 3 + regions(width)
    region = _windows(region[None, :, :, None], window)[..., 0]
    return (region[:, :, None] != region[:, None]) * HIDDEN


def _windows(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C) to (B * windows, size * size, C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.transpose(2, 3).reshape(-1, size * size, channels)


def _merge(windows: Tensor, shape: Sequence[int], size: int) -> Tensor:
    """Undo _windows."""
    batch, height, width, channels = shape
    x = windows.view(batch, height // size, width // size, size, size, channels)
    return x.transpose(2, 3).reshape(batch, height, width, channels)
