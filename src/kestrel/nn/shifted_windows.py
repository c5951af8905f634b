# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Windowed attention of the Swin Transformer (Liu et al. 2021) with the parameter names of mmdetection."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kestrel.ops.window_attention import window_attention_reference


class WindowAttention(nn.Module):
    """Multi-head attention within one window, with a learned bias per relative position (equation 4)."""

    relative_position_index: Tensor

    def __init__(self, channels: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        span = 2 * window_size - 1
        self.relative_position_bias_table = nn.Parameter(torch.zeros(span * span, num_heads))
        position = torch.arange(window_size)
        row, column = (axis.flatten() for axis in torch.meshgrid(position, position, indexing="ij"))
        index = (row[:, None] - row + window_size - 1) * span + column[:, None] - column + window_size - 1
        self.register_buffer("relative_position_index", index)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def bias(self) -> Tensor:
        """Return what is added to the scores, (heads, positions, positions)."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)


class ShiftedWindows(nn.Module):
    """Cut the map into windows, possibly shifted, and attend in each (section 3.2)."""

    def __init__(self, channels: int, num_heads: int, window_size: int, shift: int) -> None:
        super().__init__()
        self.w_msa = WindowAttention(channels, num_heads, window_size)
        self.window_size = window_size
        self.shift = shift
        self.attend: Callable[[Tensor, Tensor, Tensor, int, int], Tensor] = window_attention_reference
        """Engines, which need no gradients, put kestrel.ops.window_attention here."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape; the border is padded with zeros to whole windows."""
        layer = self.w_msa
        # What qkv makes of a zero is its bias.
        mixed = self.attend(layer.qkv(x), layer.qkv.bias, layer.bias(), self.window_size, self.shift)
        out: Tensor = layer.proj(mixed)
        return out
