# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Layers that shift channels in time before they convolve (TSM, Lin et al. 2019, section 4)."""

from __future__ import annotations

from torch import Tensor, nn

from kestrel.ops.temporal_shift import temporal_shift, temporal_shift_step


class TemporalShift(nn.Module):
    """The offline shift of whole clips in front of a convolution (``net``).

    It stands for the first convolution of a residual branch, so the identity path keeps the unshifted
    features ("residual shift", figure 3b).
    """

    def __init__(
        self, net: nn.Module, n_segment: int, fold_div: int = 8, *, bidirectional: bool = True
    ) -> None:
        super().__init__()
        self.net = net
        self.n_segment = n_segment
        self.fold_div = fold_div
        self.bidirectional = bidirectional

    def forward(self, x: Tensor) -> Tensor:
        """Shift (N * n_segment, C, H, W) features, then convolve."""
        shifted = temporal_shift(x, self.n_segment, self.fold_div, bidirectional=self.bidirectional)
        out: Tensor = self.net(shifted)
        return out


class OnlineShift(nn.Module):
    """The shift of a stream, frame by frame; its state is passed in and out. Holds no parameters."""

    def __init__(self, channels: int, fold_div: int = 8) -> None:
        super().__init__()
        self.channels = channels
        self.fold_div = fold_div

    @property
    def state_channels(self) -> int:
        """Channels of the state."""
        return self.channels // self.fold_div

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the shifted (B, C, H, W) features and the state for the next frame."""
        return temporal_shift_step(x, state, self.fold_div)
