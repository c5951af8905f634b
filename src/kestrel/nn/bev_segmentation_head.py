# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The map head of BEVFusion: resample to the output grid, classify every cell (section III-D)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kestrel.nn.conv import conv_bn_relu
from kestrel.nn.view_transform import Bound, cells_of


class BEVGridTransform(nn.Module):
    """Resample a map bilinearly at the cell centres of another grid; zero outside.

    Args:
        input_scope, output_scope: (x bound, y bound) of both grids, metres.
    """

    grid: Tensor

    def __init__(self, input_scope: Sequence[Bound], output_scope: Sequence[Bound]) -> None:
        super().__init__()
        axes = []
        for (lower, upper, _), out in zip(input_scope, output_scope, strict=True):
            centres = torch.arange(out[0] + out[2] / 2, out[1], out[2])
            axes.append((centres - lower) / (upper - lower) * 2 - 1)
        x, y = torch.meshgrid(*axes, indexing="ij")
        self.register_buffer("grid", torch.stack((y, x), dim=-1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y) to (B, C, X', Y')."""
        grid = self.grid.to(x.dtype).expand(len(x), -1, -1, -1)
        return nn.functional.grid_sample(x, grid, mode="bilinear", align_corners=False)


class BEVSegmentationHead(nn.Module):
    """Logits of every map layer.

    Args:
        in_channels: of the decoded map.
        num_classes: layers.
        input_scope, output_scope: grids, see BEVGridTransform.
        hidden_channels: of the two 3x3 convolutions; in_channels if not given.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        input_scope: Sequence[Bound],
        output_scope: Sequence[Bound],
        hidden_channels: int | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden_channels or in_channels
        self.transform = BEVGridTransform(input_scope, output_scope)
        self.output_shape = (cells_of(output_scope[0]), cells_of(output_scope[1]))
        self.classifier = nn.Sequential(
            *conv_bn_relu(in_channels, hidden, 3),
            *conv_bn_relu(hidden, hidden, 3),
            nn.Conv2d(hidden, num_classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, X, Y) to (B, num_classes, X', Y') logits; their sigmoid is the probability."""
        logits: Tensor = self.classifier(self.transform(x))
        return logits
