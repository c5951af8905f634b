# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Points encoded by the pillar they are in (PointPillars, Lang et al., CVPR 2019, section 2.1)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from kestrel.ops.pillars import LEAST_POINTS, PillarGrid, pillar_canvas, pillar_features, pillar_maximum

FEATURE_SCALE: Final = (0.02, 0.02, 0.5, 1.0, 2.0, 2.5, 2.5, 2.5, 2.5)
"""Brings the columns of pillar_features to about one."""

_MOMENTUM: Final = 0.1
"""Share of a batch in the running statistics."""


class PillarEncoder(nn.Module):
    """The canvas that a layer with batch normalisation and ReLU makes of the points; see kestrel.ops.pillars.

    grid: which pillars there are. channels: of the canvas.
    """

    def __init__(self, grid: PillarGrid, channels: int) -> None:
        super().__init__()
        self.grid = grid
        self.linear = nn.Linear(len(FEATURE_SCALE), channels, bias=False)
        self.norm = nn.BatchNorm1d(channels, momentum=_MOMENTUM)

    def forward(
        self, points: Tensor, batch: Tensor, batch_size: int, vehicle: Tensor | None = None
    ) -> Tensor:
        """Return the canvas (B, C, X, Y) float32; empty pillars are zero.

        Args:
            points: (P, 5) float32 x, y, z [m], intensity, age [s].
            batch: (P,) int64 frame of each.
            batch_size: number of frames.
            vehicle: (B, 2) from where x and y are counted, metres; None: from the middle of the grid.
        """
        features, pillar = pillar_features(points, batch, self.grid, batch_size)
        if len(features) < LEAST_POINTS:
            return points.new_zeros(batch_size, self.linear.out_features, self.grid.side, self.grid.side)
        if vehicle is not None:
            features[:, :2] -= vehicle[pillar // self.grid.side**2]
        weight, bias = self._normalised(features if self.training else None)
        return pillar_maximum(features, pillar, weight, bias, batch_size, self.grid.side)

    def _normalised(self, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the layer's weight (9, C) and bias (C,), with scale and normalisation in them.

        Mean and variance of what a linear layer answers follow from those of its inputs, of which there are
        fewer: so training normalises the weights by ``features`` (n, 9), not the answers. None: by the
        running statistics.
        """
        norm = self.norm
        weight = self.linear.weight * self.linear.weight.new_tensor(FEATURE_SCALE)
        known = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        mean, variance = known
        if features is not None:
            # In double precision, which no narrower arithmetic replaces.
            middle = features.mean(0, dtype=torch.float64)
            apart = features - middle.float()
            spread = (apart.t().double() @ apart.double() / len(features)).float()
            mean = (weight * middle.float()).sum(1)
            variance = (weight[:, :, None] * spread * weight[:, None]).sum((1, 2))
            with torch.no_grad():
                known[0].lerp_(mean, _MOMENTUM)
                known[1].lerp_(variance * len(features) / (len(features) - 1), _MOMENTUM)
                norm.get_buffer("num_batches_tracked").add_(1)
        factor = norm.weight * (variance + norm.eps).rsqrt()
        return (weight * factor[:, None]).t().contiguous(), norm.bias - mean * factor

    def folded(self) -> Callable[[Tensor, Tensor, int], Tensor]:
        """Return what does the same without gradients, with scale and normalisation in the weights.

        The module has to be in evaluation mode; later changes of its weights are not seen.
        """
        weight, bias = self._normalised(None)
        return partial(_encode_pillars, weight.detach(), bias.detach(), self.grid)


def _encode_pillars(
    weight: Tensor, bias: Tensor, grid: PillarGrid, points: Tensor, batch: Tensor, batch_size: int
) -> Tensor:
    return pillar_canvas(points, batch, weight, bias, grid, batch_size)
