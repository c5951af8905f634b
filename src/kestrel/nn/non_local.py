# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Non-local block over space and time (Wang et al. 2018, embedded Gaussian form, figure 2)."""

from __future__ import annotations

from torch import Tensor, nn


class SpaceTimeAttention(nn.Module):
    """softmax(theta(x)' phi(x)) g(x) over all positions of a clip; keys and values are pooled in space."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.theta = nn.Conv3d(channels, inner, 1)
        self.phi = nn.Sequential(nn.Conv3d(channels, inner, 1), nn.MaxPool3d((1, 2, 2)))
        self.g = nn.Sequential(nn.Conv3d(channels, inner, 1), nn.MaxPool3d((1, 2, 2)))
        self.W = nn.Sequential(nn.Conv3d(inner, channels, 1), nn.BatchNorm3d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same shape."""
        query = self.theta(x).flatten(2).transpose(1, 2)
        attention = (query @ self.phi(x).flatten(2)).softmax(dim=-1)
        value = attention @ self.g(x).flatten(2).transpose(1, 2)
        out: Tensor = self.W(value.transpose(1, 2).unflatten(2, x.shape[2:])) + x
        return out


class NonLocalBlock(nn.Module):
    """A block of a picture network (``block``) followed by attention over its clip (``nl``)."""

    def __init__(self, block: nn.Module, channels: int, n_segment: int) -> None:
        super().__init__()
        self.block = block
        self.nl = SpaceTimeAttention(channels)
        self.n_segment = n_segment

    def forward(self, x: Tensor) -> Tensor:
        """(B * n_segment, C, H, W) to (B * n_segment, C', H', W')."""
        clips = self.block(x).unflatten(0, (-1, self.n_segment)).transpose(1, 2)
        out: Tensor = self.nl(clips).transpose(1, 2).flatten(0, 1)
        return out
