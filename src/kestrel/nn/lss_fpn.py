# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The camera neck of BEVFusion: a feature pyramid that concatenates instead of adding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kestrel.nn.conv import ConvModule


class GeneralizedLSSFPN(nn.Module):
    """Merge every level with the (already merged) coarser one: upsample, concatenate, 1x1, 3x3.

    Args:
        in_channels: per level, finest first.
        out_channels: of every output.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        levels = len(in_channels) - 1
        self.lateral_convs = nn.ModuleList()
        self.fpn_convs = nn.ModuleList()
        for level in range(levels):
            coarser = in_channels[level + 1] if level == levels - 1 else out_channels
            self.lateral_convs.append(ConvModule(in_channels[level] + coarser, out_channels, 1))
            self.fpn_convs.append(ConvModule(out_channels, out_channels, 3, padding=1))
        self.out_channels = out_channels

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return one (N, out_channels, H, W) per level but the coarsest, finest first."""
        outputs: list[Tensor] = []
        coarser = inputs[-1]
        for level in reversed(range(len(self.lateral_convs))):
            fine = inputs[level]
            raised = nn.functional.interpolate(coarser, fine.shape[-2:], mode="bilinear", align_corners=False)
            coarser = self.lateral_convs[level](torch.cat((fine, raised), dim=1))
            coarser = self.fpn_convs[level](coarser)
            outputs.insert(0, coarser)
        return outputs
