# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""MinkUNet: a sparse U-Net on voxels (Choy et al. 2019) in the form of the SPVNAS release."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

import torch
from torch import Tensor, nn

from kestrel.errors import ModelError, describe
from kestrel.nn.sparse import (
    ConvBlock,
    ResidualBlock,
    SparseConv3d,
    SparseSequential,
    SparseTensor,
    concatenate,
)
from kestrel.nn.sparse_points import PointTensor, PointTransform
from kestrel.ops import pointwise

BASE_CHANNELS: Final = (32, 32, 64, 128, 256, 256, 128, 96, 96)
"""Channels after the stem, the four stages and the four up-sampling stages at width 1."""

STAGES: Final = (
    *((rf"stage{n}\.", "0") for n in range(1, 5)),
    *((rf"up{n}\.1\.", "") for n in range(1, 5)),
)
"""Where the residual blocks of each stage are in the keys, and the number below it that is no such block."""


def scaled_channels(cr: float) -> tuple[int, ...]:
    """Return the channels of a released network of relative width ``cr`` (1.0, 0.64 or 0.5)."""
    return tuple(int(cr * channels) for channels in BASE_CHANNELS)


class MinkUNet(nn.Module):
    """Sparse U-Net: stem, four strided stages, four transposed stages with skips, linear classifier.

    Key for key the released network, which carries the point transforms of SPVCNN without using them.

    Args:
        num_classes: size of the output.
        channels: nine widths, see BASE_CHANNELS.
        in_channels: features per point.
        pres: edge length [m] of the unit of the positions.
        vres: edge length [m] of a voxel of the finest grid.
        dropout: probability at the coarsest level and halfway up, in training.
        blocks: residual blocks of each of the eight stages.
        point_transforms: whether to carry them; mmdetection3d's MinkUNet does not.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        channels: Sequence[int] = BASE_CHANNELS,
        in_channels: int = 4,
        pres: float = 0.05,
        vres: float = 0.05,
        dropout: float = 0.3,
        blocks: Sequence[int] = (2,) * 8,
        point_transforms: bool = True,
    ) -> None:
        super().__init__()
        if len(blocks) != len(STAGES) or min(blocks) < 1:
            raise ModelError(describe("blocks", expected="eight positive numbers", found=list(blocks)))
        if len(channels) != len(BASE_CHANNELS) or min(channels) < 1:
            raise ModelError(describe("channels", expected="nine positive widths", found=list(channels)))
        self.pres, self.vres = pres, vres
        c = channels
        self.stem = SparseSequential(
            SparseConv3d(in_channels, c[0]),
            nn.BatchNorm1d(c[0]),
            nn.ReLU(),
            SparseConv3d(c[0], c[0]),
            nn.BatchNorm1d(c[0]),
            nn.ReLU(),
        )
        self.stage1 = _down(c[0], c[1], blocks[0])
        self.stage2 = _down(c[1], c[2], blocks[1])
        self.stage3 = _down(c[2], c[3], blocks[2])
        self.stage4 = _down(c[3], c[4], blocks[3])
        self.up1 = _up(c[4], c[5], c[3], blocks[4])
        self.up2 = _up(c[5], c[6], c[2], blocks[5])
        self.up3 = _up(c[6], c[7], c[1], blocks[6])
        self.up4 = _up(c[7], c[8], c[0], blocks[7])
        self.classifier = nn.Sequential(nn.Linear(c[8], num_classes))
        if point_transforms:
            self.point_transforms = nn.ModuleList(
                (PointTransform(c[0], c[4]), PointTransform(c[4], c[6]), PointTransform(c[6], c[8]))
            )
        self.dropout = nn.Dropout(dropout)

    def points(self, positions: Tensor, features: Tensor) -> PointTensor:
        """Return the points with positions in voxels of the finest grid."""
        scaled = positions.to(torch.float32, copy=True)
        # In this order even where pres = vres: the released networks interpolate at positions rounded so.
        scaled[:, 1:] = scaled[:, 1:] * self.pres / self.vres
        return PointTensor(features, scaled)

    def forward(self, positions: Tensor, features: Tensor) -> Tensor:
        """Classify points by the voxel they lie in.

        Args:
            positions: (P, 4) columns batch, x, y, z in units of ``pres``; integers or floating point.
            features: (P, in_channels).

        Returns:
            (P, num_classes) logits in the order of the points.
        """
        points = self.points(positions, features)
        x0: SparseTensor = self.stem(points.voxelized())
        # Names are used again: what nothing reads any more is freed, and features are most of the memory.
        *skips, y = self.encode(x0)
        y = climb(self.up1, y.replace(self.dropout(y.features)), skips.pop())
        y = climb(self.up2, y, skips.pop())
        y = climb(self.up3, y.replace(self.dropout(y.features)), skips.pop())
        y = climb(self.up4, y, x0)
        return self.classify(y.features)[points.rows(x0.coordinates).long()]

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of features (N, C)."""
        if torch.is_grad_enabled():
            return cast(Tensor, self.classifier(features))
        linear = cast(nn.Linear, self.classifier[0])
        return pointwise(features, linear.weight.T, bias=linear.bias)

    def encode(self, x0: SparseTensor) -> tuple[SparseTensor, SparseTensor, SparseTensor, SparseTensor]:
        """Return the outputs of the four strided stages."""
        x1: SparseTensor = self.stage1(x0)
        x2: SparseTensor = self.stage2(x1)
        x3: SparseTensor = self.stage3(x2)
        x4: SparseTensor = self.stage4(x3)
        return x1, x2, x3, x4


def climb(up: nn.ModuleList, x: SparseTensor, skip: SparseTensor) -> SparseTensor:
    """Return to the voxels of ``skip``, join its features and refine."""
    y = concatenate(up[0](x, skip.coordinates), skip)
    # Called as one module, the blocks would keep what they were given until the last of them is done.
    for block in cast(nn.Sequential, up[1]):
        y = block(y)
    return y


def _down(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        ConvBlock(in_channels, in_channels, 2, 2), *_blocks(in_channels, out_channels, blocks)
    )


def _up(in_channels: int, out_channels: int, skip_channels: int, blocks: int) -> nn.ModuleList:
    refine = nn.Sequential(*_blocks(out_channels + skip_channels, out_channels, blocks))
    return nn.ModuleList((ConvBlock(in_channels, out_channels, 2, 2, transposed=True), refine))


def _blocks(in_channels: int, out_channels: int, count: int) -> list[ResidualBlock]:
    inputs = [in_channels, *[out_channels] * (count - 1)]
    return [ResidualBlock(channels, out_channels) for channels in inputs]
