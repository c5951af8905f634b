# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Grids of other cells, or of another extent, brought onto one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from kestrel.ops.axis_sampling import sample_axes_reference


class AxisSampler(nn.Module):
    """Bilinear values of square grids at places that are the same along both axes, side by side.

    Args:
        places: (N,) metres, within the grids.
        extent: half side of the grids, metres.
        sizes: cells of each grid along one side; their middles are the known places.
    """

    def __init__(self, places: Tensor, extent: float, sizes: Sequence[int]) -> None:
        super().__init__()
        self.grids = len(sizes)
        self.sample: Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], Tensor]
        self.sample = sample_axes_reference
        """Engines, which need no gradients, put kestrel.ops.sample_axes here."""
        for number, size in enumerate(sizes):
            position = ((places + extent) * (size / (2 * extent)) - 0.5).clamp(0, size - 1)
            lower = position.floor().clamp(max=size - 2)
            self.register_buffer(f"lower{number}", lower.int(), persistent=False)
            self.register_buffer(f"share{number}", position - lower, persistent=False)

    def forward(self, *grids: Tensor) -> Tensor:
        """Return the samples of all grids (B, C, size, size), (B, sum of C, N, N)."""
        lower = [self.get_buffer(f"lower{number}") for number in range(self.grids)]
        share = [self.get_buffer(f"share{number}") for number in range(self.grids)]
        return self.sample(grids, lower, share)
