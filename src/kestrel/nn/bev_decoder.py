# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Fusion and decoding of bird's-eye-view maps: ConvFuser, SECOND, SECONDFPN, GeneralizedResNet, LSSFPN.

All maps are (B, C, X, Y). Names, strides and normalisation constants are those of the released BEVFusion
checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kestrel.nn.conv import conv_bn_relu
from kestrel.nn.residual import BasicBlock

SECOND_EPS = 1e-3
SECOND_MOMENTUM = 0.01


class ConvFuser(nn.Sequential):
    """Concatenate the maps of all sensors and convolve (BEVFusion, section III-C). Order: camera, LiDAR."""

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__(*conv_bn_relu(sum(in_channels), out_channels, 3))
        self.in_channels = tuple(in_channels)
        self.out_channels = out_channels

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return (B, out_channels, X, Y)."""
        x = torch.cat(list(maps), dim=1)
        for layer in self:
            x = layer(x)
        return x


class SECOND(nn.Module):
    """Stages of 3x3 convolutions, each at its own stride (Yan et al. 2018, section 3.1.3).

    Args:
        in_channels: of the map.
        out_channels, layer_nums, layer_strides: per stage; a stage has 1 + layer_num convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: Sequence[int] = (128, 256),
        layer_nums: Sequence[int] = (5, 5),
        layer_strides: Sequence[int] = (1, 2),
    ) -> None:
        super().__init__()
        stages = []
        channels = in_channels
        for width, count, stride in zip(out_channels, layer_nums, layer_strides, strict=True):
            layers: list[nn.Module] = []
            for layer in range(1 + count):
                layers += [
                    nn.Conv2d(channels, width, 3, stride if layer == 0 else 1, 1, bias=False),
                    nn.BatchNorm2d(width, SECOND_EPS, SECOND_MOMENTUM),
                    nn.ReLU(inplace=True),
                ]
                channels = width
            stages.append(nn.Sequential(*layers))
        self.blocks = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the output of every stage, finest first."""
        outputs = []
        for stage in self.blocks:
            x = stage(x)
            outputs.append(x)
        return outputs


class SECONDFPN(nn.Module):
    """Bring all stages to one resolution and concatenate them.

    Args:
        in_channels, out_channels, upsample_strides: per stage; stride 1 is a 1x1 convolution, others a
            transposed one.
    """

    def __init__(
        self,
        in_channels: Sequence[int] = (128, 256),
        out_channels: Sequence[int] = (256, 256),
        upsample_strides: Sequence[int] = (1, 2),
    ) -> None:
        super().__init__()
        blocks = []
        for channels, width, stride in zip(in_channels, out_channels, upsample_strides, strict=True):
            layer: nn.Module = (
                nn.Conv2d(channels, width, 1, bias=False)
                if stride == 1
                else nn.ConvTranspose2d(channels, width, stride, stride, bias=False)
            )
            norm = nn.BatchNorm2d(width, SECOND_EPS, SECOND_MOMENTUM)
            blocks.append(nn.Sequential(layer, norm, nn.ReLU(inplace=True)))
        self.deblocks = nn.ModuleList(blocks)
        self.out_channels = sum(out_channels)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Return (B, sum of out_channels, X, Y) at the resolution of the finest stage."""
        return torch.cat([block(x) for block, x in zip(self.deblocks, stages, strict=True)], dim=1)


class GeneralizedResNet(nn.ModuleList):
    """Stages of basic residual blocks (the decoder of the camera-only networks).

    Args:
        in_channels: of the map.
        blocks: per stage (number of blocks, channels, stride).
    """

    def __init__(self, in_channels: int, blocks: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        channels = in_channels
        for count, width, stride in blocks:
            layers = [BasicBlock(channels, width, stride)]
            layers += [BasicBlock(width, width) for _ in range(count - 1)]
            self.append(nn.Sequential(*layers))
            channels = width

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the output of every stage, finest first."""
        outputs = []
        for stage in self:
            x = stage(x)
            outputs.append(x)
        return outputs


class LSSFPN(nn.Module):
    """Fuse one coarse and one fine stage, then upsample (Philion and Fidler 2020, decoder).

    Args:
        in_indices: the coarse and the fine stage.
        in_channels: their channels.
        out_channels: of the result.
        scale_factor: of the upsampling after the fusion.
    """

    def __init__(
        self,
        in_indices: tuple[int, int],
        in_channels: tuple[int, int],
        out_channels: int,
        scale_factor: int = 1,
    ) -> None:
        super().__init__()
        self.in_indices = in_indices
        self.fuse = nn.Sequential(
            *conv_bn_relu(sum(in_channels), out_channels, 1), *conv_bn_relu(out_channels, out_channels, 3)
        )
        self.upsample = (
            nn.Sequential(
                nn.Upsample(scale_factor=scale_factor, mode="bilinear", align_corners=True),
                *conv_bn_relu(out_channels, out_channels, 3),
            )
            if scale_factor > 1
            else nn.Identity()
        )
        self.out_channels = out_channels

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Return (B, out_channels, X, Y) at scale_factor times the fine stage's resolution."""
        coarse, fine = (stages[index] for index in self.in_indices)
        coarse = nn.functional.interpolate(coarse, fine.shape[-2:], mode="bilinear", align_corners=True)
        out: Tensor = self.upsample(self.fuse(torch.cat((coarse, fine), dim=1)))
        return out
