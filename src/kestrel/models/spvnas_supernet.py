# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The super-network of SPVNAS: one set of weights of which every sub-network uses a part.

Layers are elastic: they use the first columns of their kernels, as many as a configuration says, and as many
rows as features come in (Tang et al. 2020, section 3.2).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kestrel.models.spvnas import SPVNAS
from kestrel.models.spvnas_space import BLOCKS, STAGES, NetConfig, SearchSpace, stage_name
from kestrel.nn.sparse import SparseConv3d, SparseSequential, SparseTensor, concatenate
from kestrel.nn.sparse_points import PointTensor, PointToVoxel, VoxelToPoint
from kestrel.ops import CoordinateSet, pointwise, sparse_conv


class SPVNASSuperNet(nn.Module):
    """All networks of a search space in one set of weights, key for key the released super-network.

    Args:
        num_classes: size of the output.
        space: widths and depths; the default is the released one.
        in_channels: features per point.
        pres: edge length [m] of the unit of the positions.
        vres: edge length [m] of a voxel of the finest grid.
    """

    def __init__(
        self,
        num_classes: int,
        space: SearchSpace | None = None,
        *,
        in_channels: int = 4,
        pres: float = 0.05,
        vres: float = 0.05,
    ) -> None:
        super().__init__()
        self.space = space = space or SearchSpace()
        self.num_classes, self.in_channels, self.pres, self.vres = num_classes, in_channels, pres, vres
        widths, c = space.widths, space.widths[0]
        self.stem = SparseSequential(
            SparseConv3d(in_channels, c),
            nn.BatchNorm1d(c),
            nn.ReLU(),
            SparseConv3d(c, c),
            nn.BatchNorm1d(c),
            nn.ReLU(),
        )
        self.downsample = nn.ModuleList(_Stage(space, stage, 0) for stage in range(STAGES))
        self.upsample = nn.ModuleList(
            _Stage(space, STAGES + i, widths[STAGES - 1 - i]) for i in range(STAGES)
        )
        self.point_transforms = nn.ModuleList(
            _PointTransform(*pair)
            for pair in ((widths[0], widths[4]), (widths[4], widths[6]), (widths[6], widths[8]))
        )
        self.classifier = nn.Module()
        self.classifier.linear = nn.Linear(widths[8], num_classes)
        self.to_voxel, self.to_point = PointToVoxel(), VoxelToPoint()

    def forward(self, positions: Tensor, features: Tensor, config: NetConfig) -> Tensor:
        """Classify points with the sub-network ``config``.

        Args:
            positions: (P, 4) columns batch, x, y, z in units of ``pres``; integers or floating point.
            features: (P, in_channels).
            config: what ``SearchSpace.sample`` returns, or a released ``net.config``.

        Returns:
            (P, num_classes) logits in the order of the points.
        """
        self.space.check(config)
        scaled = positions.to(torch.float32, copy=True)
        if self.pres != self.vres:
            scaled[:, 1:] = scaled[:, 1:] * self.pres / self.vres
        points = PointTensor(features, scaled)
        x: SparseTensor = self.stem(points.voxelized())
        z: PointTensor = self.to_point(x, points)
        skips = [x]
        x = self.to_voxel(x.coordinates, z)
        for down in self.downsample:
            x = down(x, config)
            skips.append(x)
        widths = config["output_channels"]
        z = self._merge(x, z, 0, widths[4])
        x = self.to_voxel(skips.pop().coordinates, z)
        for i, up in enumerate(self.upsample):
            x = up(x, config, skips.pop())
            if i % 2:
                z = self._merge(x, z, i // 2 + 1, widths[STAGES + 1 + i])
                x = self.to_voxel(x.coordinates, z) if i < STAGES - 1 else x
        linear = cast(nn.Linear, self.classifier.linear)
        return F.linear(z.features, linear.weight[:, : z.features.shape[1]], linear.bias)

    def _merge(self, x: SparseTensor, points: PointTensor, stage: int, width: int) -> PointTensor:
        read: PointTensor = self.to_point(x, points)
        return read.replace(read.features + self.point_transforms[stage](points.features, width))

    def determinize(self, config: NetConfig) -> SPVNAS:
        """Return the sub-network ``config`` on its own, with a copy of its part of the weights.

        Raises:
            ModelError: the configuration is not one of this super-network.
        """
        self.space.check(config)
        network = SPVNAS(
            config,
            self.num_classes,
            in_channels=self.in_channels,
            pres=self.pres,
            vres=self.vres,
            classifier_inputs=self.space.widths[8],
        )
        mine = self.state_dict()
        state = {}
        for key, wanted in network.state_dict().items():
            value = mine[supernet_key(key)]
            rows = self._joined_rows(key, config)
            if rows is not None:
                value = value.index_select(value.ndim - 2, rows)
            state[key] = value[tuple(slice(size) for size in wanted.shape)].clone()
        network.load_state_dict(state)
        return network.train(self.training)

    def _joined_rows(self, key: str, config: NetConfig) -> Tensor | None:
        """Return the kernel rows of a layer that reads two joined tensors, None for other layers."""
        found = re.fullmatch(r"upsample\.(\d)\.feature\.0\.(net\.0|downsample)\.net\.conv\.kernel", key)
        if found is None:
            return None
        i = int(found[1])
        transition, skip = config[f"upsample.{i}.transition"], config["output_channels"][STAGES - 1 - i]
        return _joined(transition, skip, self.space.widths[STAGES + 1 + i])


def supernet_key(key: str) -> str:
    """Return the key of a super-network that holds the weights of a sub-network's ``key``."""
    if key.startswith(("stem.", "classifier.")):
        return key
    key = re.sub(r"\.feature\.(\d)\.", r".feature.layers.\1.", key)
    key = re.sub(r"(layers\.\d)\.net\.(\d)\.", r"\1.net.layers.\2.", key)
    if key.startswith("point_transforms."):
        key = key.replace(".net.conv.", ".net.conv.linear.")
    return key.replace(".net.bn.", ".net.bn.bn.")


def _joined(first: int, second: int, offset: int) -> Tensor:
    """Return rows for two joined tensors; those of the second start at the full width of the first."""
    return torch.cat((torch.arange(first), torch.arange(offset, offset + second)))


class _Norm(nn.Module):
    """A batch norm of which the first channels are in use."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, features: Tensor) -> Tensor:
        norm, count = self.bn, features.shape[1]
        return F.batch_norm(
            features,
            cast(Tensor, norm.running_mean)[:count],
            cast(Tensor, norm.running_var)[:count],
            norm.weight[:count],
            norm.bias[:count],
            norm.training,
            cast(float, norm.momentum),
            norm.eps,
        )


class _Block(nn.Module):
    """An elastic sparse convolution with batch norm."""

    def __init__(
        self, in_channels: int, out_channels: int, size: int = 3, *, transposed: bool = False
    ) -> None:
        super().__init__()
        stride = 2 if size == 2 else 1
        conv = SparseConv3d(in_channels, out_channels, size, stride=stride, transposed=transposed)
        self.net = nn.Sequential(OrderedDict(conv=conv, bn=_Norm(out_channels)))

    def forward(
        self,
        x: SparseTensor,
        width: int,
        *,
        rows: Tensor | None = None,
        target: CoordinateSet | None = None,
    ) -> SparseTensor:
        """Return the normalised convolution, before any activation."""
        conv = cast(SparseConv3d, self.net.conv)
        chosen = conv.kernel[..., : x.features.shape[1], :] if rows is None else conv.kernel[..., rows, :]
        kernel = chosen[..., :width].contiguous()
        voxels, kernel_map = conv.destination(x.coordinates, target)
        features = (
            pointwise(x.features, kernel)
            if kernel_map is None
            else sparse_conv(x.features, kernel, kernel_map)
        )
        return SparseTensor(cast(_Norm, self.net.bn)(features), voxels)


class _Depth(nn.Module):
    """Layers under the name that the released super-network gives them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class _Residual(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.net = _Depth(_Block(in_channels, out_channels), _Block(out_channels, out_channels))
        self.downsample: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.downsample = _Block(in_channels, out_channels, 1)

    def forward(self, x: SparseTensor, inner: int, width: int, rows: Tensor | None) -> SparseTensor:
        first, second = self.net.layers
        hidden = first(x, inner, rows=rows)
        y = second(hidden.replace(torch.relu(hidden.features)), width)
        short = self.downsample(x, width, rows=rows) if isinstance(self.downsample, _Block) else x
        return x.replace(torch.relu(y.features + short.features))


class _Stage(nn.Module):
    """An elastic transition followed by as many residual blocks as the configuration says."""

    def __init__(self, space: SearchSpace, stage: int, skip_channels: int) -> None:
        super().__init__()
        self.name, self.stage = stage_name(stage), stage
        width, self.transition_width = space.widths[stage + 1], space.transition_width(stage)
        self.transition = _Block(space.widths[stage], self.transition_width, 2, transposed=stage >= STAGES)
        first = self.transition_width + skip_channels
        self.feature = _Depth(*(_Residual(first if block == 0 else width, width) for block in range(BLOCKS)))

    def forward(self, x: SparseTensor, config: NetConfig, skip: SparseTensor | None = None) -> SparseTensor:
        target = None if skip is None else skip.coordinates
        x = self.transition(x, config[f"{self.name}.transition"], target=target)
        x = x.replace(torch.relu(x.features))
        rows = None
        if skip is not None:
            rows = _joined(x.features.shape[1], skip.features.shape[1], self.transition_width)
            x = concatenate(x, skip)
        width = config["output_channels"][self.stage + 1]
        for block in range(config[f"{self.name}.feature"]):
            inner = config[f"{self.name}.feature.layers.{block}.net.layers.0"]
            x = self.feature.layers[block](x, inner, width, rows if block == 0 else None)
        return x


class _PointTransform(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        conv = nn.Module()
        conv.linear = nn.Linear(in_channels, out_channels)
        self.net = nn.Sequential(OrderedDict(conv=conv, bn=_Norm(out_channels)))

    def forward(self, features: Tensor, width: int) -> Tensor:
        linear = cast(nn.Linear, cast(nn.Module, self.net.conv).linear)
        weight = linear.weight[:width, : features.shape[1]]
        return torch.relu(
            cast(Tensor, cast(_Norm, self.net.bn)(F.linear(features, weight, linear.bias[:width])))
        )
