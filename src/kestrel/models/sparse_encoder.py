# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The sparse voxel encoder of SECOND (Yan et al. 2018) in the form of the BEVFusion checkpoints."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from kestrel.nn.sparse import SparseConvolution, SparseSequential, SparseTensor, Stage
from kestrel.ops import CoordinateSet, KernelMap, coordinate_set
from kestrel.ops.neighbour_tables import Triple

_NORM_EPS: Final = 1e-3
_NORM_MOMENTUM: Final = 0.01


class GridConv3d(SparseConvolution):
    """A sparse convolution on a grid with borders.

    ``weight`` is (k0, k1, k2, C_in, C_out) along x, y, z. Stride 1 is submanifold; otherwise every output
    cell that the kernel reaches from an input exists.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Triple = (3, 3, 3),
        stride: Triple = (1, 1, 1),
        padding: Triple = (1, 1, 1),
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_channels * math.prod(kernel_size))
        self.weight = nn.Parameter(
            torch.empty(*kernel_size, in_channels, out_channels).uniform_(-bound, bound)
        )
        self.stride = stride
        self.offsets = tuple(
            (x - padding[0], y - padding[1], z - padding[2])
            for x in range(kernel_size[0])
            for y in range(kernel_size[1])
            for z in range(kernel_size[2])
        )

    def matrices(self) -> Tensor:
        """Return the kernel slices, z fastest."""
        return self.weight.flatten(0, 2)

    def destination(
        self, source: CoordinateSet, target: CoordinateSet | None
    ) -> tuple[CoordinateSet, KernelMap | None]:
        """Return the output voxels and the map to them."""
        if self.stride == (1, 1, 1):
            return source, source.submanifold_map(self.offsets)
        return source.downsample(self.offsets, self.stride, dilate=True)


def _norm(channels: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(channels, eps=_NORM_EPS, momentum=_NORM_MOMENTUM)


class SparseBasicBlock(nn.Module):
    """Two submanifold convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = GridConv3d(channels, channels), _norm(channels)
        self.conv2, self.bn2 = GridConv3d(channels, channels), _norm(channels)

    def sparse_stages(self) -> Iterator[Stage]:
        """Return each convolution, its batch norm, and whether a ReLU follows."""
        yield self.conv1, self.bn1, True
        yield self.conv2, self.bn2, True

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Return relu(x + residual branch)."""
        hidden = self.conv1.normalised(x, self.bn1, relu=True)
        return self.conv2.normalised(hidden, self.bn2, residual=x.features, relu=True)


class SparseEncoder(nn.Module):
    """Voxels of a LiDAR cloud to a dense bird's-eye-view map at an eighth of the resolution.

    Args:
        in_channels: features per voxel.
        sparse_shape: number of cells along x, y, z.
        base_channels: width of the first layer.
        encoder_channels: widths of the blocks of each stage; every stage but the last ends in a layer of
            stride 2 with the last width.
        encoder_paddings: padding of the strided layer of each stage along x, y, z.
        out_channels: width of the last layer; the map has that many channels for each remaining z cell.
    """

    def __init__(
        self,
        in_channels: int,
        sparse_shape: Triple,
        *,
        base_channels: int = 16,
        encoder_channels: Sequence[Sequence[int]] = ((16, 16, 32), (32, 32, 64), (64, 64, 128), (128, 128)),
        encoder_paddings: Sequence[Triple] = ((1, 1, 1), (1, 1, 1), (1, 1, 0)),
        out_channels: int = 128,
    ) -> None:
        super().__init__()
        self.sparse_shape = sparse_shape
        self.conv_input = _conv_norm_relu(GridConv3d(in_channels, base_channels), base_channels)
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        width = base_channels
        for number, widths in enumerate(encoder_channels):
            last = number == len(encoder_channels) - 1
            blocks: list[nn.Module] = [SparseBasicBlock(width) for _ in (widths if last else widths[:-1])]
            if not last:
                strided = GridConv3d(width, widths[-1], (3, 3, 3), (2, 2, 2), encoder_paddings[number])
                blocks.append(_conv_norm_relu(strided, widths[-1]))
            width = widths[-1]
            stages[f"encoder_layer{number + 1}"] = nn.Sequential(*blocks)
        self.encoder_layers = nn.Sequential(stages)
        self.conv_out = _conv_norm_relu(
            GridConv3d(width, out_channels, (1, 1, 3), (1, 1, 2), (0, 0, 0)), out_channels
        )

    def forward(
        self, features: Tensor, indices: Tensor, batch_size: int, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Encode the voxels of a batch.

        Args:
            features: (M, in_channels) voxel features.
            indices: (M, 4) unique integer cells, columns batch, x, y, z.
            batch_size: number of clouds.
            dtype: of all layers but the first one, which multiplies metres: of those bfloat16 has quarters
                alone from 32 on. None: that of the features.

        Returns:
            (batch_size, out_channels * nz, nx, ny) with channel = c * nz + z.
        """
        voxels, rows = coordinate_set(indices, spatial_shape=self.sparse_shape)
        ordered = torch.zeros_like(features).index_copy(0, rows, features)
        first: SparseTensor = self.conv_input(SparseTensor(ordered, voxels))
        x = self.encoder_layers(first.replace(first.features.to(dtype or features.dtype)))
        return dense_map(self.conv_out(x), batch_size)


def dense_map(x: SparseTensor, batch_size: int) -> Tensor:
    """Spread a sparse tensor on a grid with borders into (batch, C * nz, nx, ny), channel = c * nz + z."""
    shape = x.coordinates.spatial_shape
    if shape is None:
        raise ValueError("a dense map needs a grid with borders")
    nx, ny, nz = shape
    channels = x.features.shape[1]
    batch, i, j, k = x.coordinates.indices.unbind(1)
    dense = x.features.new_zeros(batch_size * nx * ny * nz, channels)
    dense = dense.index_copy(0, ((batch * nx + i) * ny + j) * nz + k, x.features)
    return dense.view(batch_size, nx, ny, nz, channels).permute(0, 4, 3, 1, 2).flatten(1, 2)


def _conv_norm_relu(conv: GridConv3d, channels: int) -> SparseSequential:
    return SparseSequential(conv, _norm(channels), nn.ReLU())
