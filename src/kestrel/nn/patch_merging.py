# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What is between the stages of a Swin Transformer (Liu et al., ICCV 2021, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PatchMerging(nn.Module):
    """Join 2 x 2 neighbours and project them to twice the channels.

    The order of the joined channels is c * 4 + 2 * row + column, unlike in the original Swin weights.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self._by_place = False

    @torch.no_grad()
    def order_by_place(self) -> None:
        """Put the weights into the order (2 * row + column) * C + c; answers stay the same.

        The channels of a neighbour are then copied in one piece. It is for copies that run: such weights are
        no checkpoint's.
        """
        if not self._by_place:
            for weight in (self.norm.weight, self.norm.bias, self.reduction.weight):
                weight.copy_(weight.view(*weight.shape[:-1], -1, 4).transpose(-2, -1).flatten(-2))
            self._by_place = True

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H / 2, W / 2, 2 C), odd sizes padded with zeros."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        batch, height, width, channels = x.shape
        x = x.view(batch, height // 2, 2, width // 2, 2, channels)
        x = x.permute(0, 1, 3, 2, 4, 5) if self._by_place else x.permute(0, 1, 3, 5, 2, 4)
        out: Tensor = self.reduction(self.norm(x.flatten(3)))
        return out
