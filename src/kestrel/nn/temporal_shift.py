# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Layers that shift channels in time before they convolve (TSM, Lin et al. 2019, section 4)."""

from __future__ import annotations

from torch import Tensor, nn

from kestrel.ops.temporal_shift import temporal_shift


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
