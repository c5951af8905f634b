# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""SPVNAS sub-networks: SPVCNN in the widths and depths of a search (Tang et al. 2020, section 3.2)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from kestrel.errors import ModelError, describe
from kestrel.nn.sparse import SparseConv3d, SparseSequential, SparseTensor, concatenate
from kestrel.nn.sparse_points import PointTensor, PointToVoxel, VoxelToPoint, transform_and_read
from kestrel.ops import CoordinateSet

SUPERNET_CLASSIFIER_INPUTS = 128
"""The released classifiers keep the columns of the super-network; a sub-network uses the first ones."""


class SPVNAS(nn.Module):
    """One network of the SPVNAS search space, key for key its determinized release.

    Args:
        net_config: the released ``net.config``: widths and depths by layer name.
        num_classes: size of the output.
        in_channels: features per point.
        pres: edge length [m] of the unit of the positions.
        vres: edge length [m] of a voxel of the finest grid.
        classifier_inputs: columns of the classifier, at least those in use.

    Raises:
        ModelError: the configuration lacks an entry or holds one that cannot be built.
    """

    def __init__(
        self,
        net_config: Mapping[str, Any],
        num_classes: int,
        *,
        in_channels: int = 4,
        pres: float = 0.05,
        vres: float = 0.05,
        classifier_inputs: int = SUPERNET_CLASSIFIER_INPUTS,
    ) -> None:
        super().__init__()
        self.pres, self.vres = pres, vres
        config = _Config(net_config)
        widths = config.widths()
        c = widths[0]
        self.stem = SparseSequential(
            SparseConv3d(in_channels, c),
            nn.BatchNorm1d(c),
            nn.ReLU(),
            SparseConv3d(c, c),
            nn.BatchNorm1d(c),
            nn.ReLU(),
        )
        self.downsample = nn.ModuleList(_Stage(config, f"downsample.{i}", widths[i], 0) for i in range(4))
        self.upsample = nn.ModuleList(
            _Stage(config, f"upsample.{i}", widths[4 + i], widths[3 - i], transposed=True) for i in range(4)
        )
        point_inputs = (widths[0], widths[4], widths[6])
        self.point_transforms = nn.ModuleList(
            _PointTransform(inputs, config.integer(f"point_transforms.{i}"))
            for i, inputs in enumerate(point_inputs)
        )
        self.classifier = _SlicedClassifier(widths[8], max(widths[8], classifier_inputs), num_classes)
        self.to_voxel, self.to_point = PointToVoxel(), VoxelToPoint()

    def forward(self, positions: Tensor, features: Tensor) -> Tensor:
        """Classify points.

        Args:
            positions: (P, 4) columns batch, x, y, z in units of ``pres``; integers or floating point.
            features: (P, in_channels).

        Returns:
            (P, num_classes) logits in the order of the points.
        """
        scaled = positions.to(torch.float32, copy=True)
        if self.pres != self.vres:
            scaled[:, 1:] = scaled[:, 1:] * self.pres / self.vres
        points = PointTensor(features, scaled)
        x0: SparseTensor = self.stem(points.voxelized())
        z0: PointTensor = self.to_point(x0, points)
        skips = [x0]
        x: SparseTensor = self.to_voxel(x0.coordinates, z0)
        for down in self.downsample:
            x = down(x)
            skips.append(x)
        z1: PointTensor = self.point_transforms[0](x, z0)
        y: SparseTensor = self.to_voxel(x.coordinates, z1)
        y = self.upsample[1](self.upsample[0](y, skips[3]), skips[2])
        z2: PointTensor = self.point_transforms[1](y, z1)
        y = self.to_voxel(y.coordinates, z2)
        y = self.upsample[3](self.upsample[2](y, skips[1]), skips[0])
        z3: PointTensor = self.point_transforms[2](y, z2)
        logits: Tensor = self.classifier(z3.features)
        return logits


class _Config:
    """The released configuration with errors that name the missing entry."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self._entries = entries

    def integer(self, name: str) -> int:
        value = self._entries.get(name)
        if not isinstance(value, int) or value < 1:
            raise ModelError(describe(f"net.config {name}", expected="a positive integer", found=value))
        return value

    def widths(self) -> list[int]:
        value = self._entries.get("output_channels")
        if not isinstance(value, list) or len(value) != 9:
            raise ModelError(describe("net.config output_channels", expected="nine widths", found=value))
        return value

    def has(self, name: str) -> bool:
        return self._entries.get(name) is not None


class _Stage(nn.Module):
    """A strided (or transposed) transition followed by residual blocks."""

    def __init__(
        self, config: _Config, name: str, in_channels: int, skip_channels: int, *, transposed: bool = False
    ) -> None:
        super().__init__()
        width = config.integer(f"{name}.transition")
        self.transition = _Block(in_channels, width, 2, stride=2, transposed=transposed)
        blocks = []
        width += skip_channels
        for depth in range(config.integer(f"{name}.feature")):
            block = _Residual(config, f"{name}.feature.layers.{depth}", width)
            blocks.append(block)
            width = block.out_channels
        self.feature = nn.Sequential(*blocks)

    def forward(self, x: SparseTensor, skip: SparseTensor | None = None) -> SparseTensor:
        x = self.transition(x, None if skip is None else skip.coordinates)
        result: SparseTensor = self.feature(x if skip is None else concatenate(x, skip))
        return result


class _Block(nn.Module):
    """Convolution and batch norm, with ReLU unless a residual follows."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        transposed: bool = False,
        relu: bool = True,
    ) -> None:
        super().__init__()
        layers: list[tuple[str, nn.Module]] = [
            (
                "conv",
                SparseConv3d(in_channels, out_channels, kernel_size, stride=stride, transposed=transposed),
            ),
            ("bn", nn.BatchNorm1d(out_channels)),
        ]
        if relu:
            layers.append(("act", nn.ReLU()))
        self.net = SparseSequential(OrderedDict(layers))

    def forward(
        self,
        x: SparseTensor,
        target: CoordinateSet | None = None,
        residual: Tensor | None = None,
        relu: bool = False,
    ) -> SparseTensor:
        result: SparseTensor = self.net(x, target, residual, relu)
        return result


class _Residual(nn.Module):
    def __init__(self, config: _Config, name: str, in_channels: int) -> None:
        super().__init__()
        hidden = config.integer(f"{name}.net.layers.0")
        self.out_channels = config.integer(f"{name}.net.layers.1")
        self.net = nn.Sequential(_Block(in_channels, hidden), _Block(hidden, self.out_channels, relu=False))
        self.downsample: nn.Module = nn.Identity()
        if config.has(f"{name}.downsample"):
            self.downsample = _Block(in_channels, self.out_channels, 1, relu=False)

    def forward(self, x: SparseTensor) -> SparseTensor:
        shortcut: SparseTensor = self.downsample(x)
        result: SparseTensor = self.net[1](self.net[0](x), None, shortcut.features, True)
        return result


class _PointTransform(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            OrderedDict(
                conv=nn.Linear(in_channels, out_channels), bn=nn.BatchNorm1d(out_channels), act=nn.ReLU()
            )
        )

    def forward(self, x: SparseTensor, points: PointTensor) -> PointTensor:
        return transform_and_read(
            x, points, cast(nn.Linear, self.net.conv), cast(nn.BatchNorm1d, self.net.bn)
        )


class _SlicedClassifier(nn.Module):
    """A linear layer of which only the first input columns are in use."""

    def __init__(self, in_channels: int, columns: int, num_classes: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.linear = nn.Linear(columns, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.linear(features, self.linear.weight[:, : self.in_channels], self.linear.bias)
