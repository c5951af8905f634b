# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Sparse tensors and the convolution layers on them, for the SPVCNN family and for voxel encoders.

Names and shapes of the parameters follow the released checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias, cast, runtime_checkable

import torch
from torch import Tensor, nn

from kestrel.errors import InputError, describe
from kestrel.ops import (
    CoordinateSet,
    KernelMap,
    PackedWeight,
    dispatch_level,
    pack_weight,
    pointwise,
    sparse_conv,
    torchsparse_offsets,
)


@dataclass(frozen=True)
class SparseTensor:
    """Features of occupied voxels.

    features: (N, C), one row per voxel in the order of ``coordinates``.
    coordinates: the occupied voxels, with the kernel maps that were built on them.
    """

    features: Tensor
    coordinates: CoordinateSet

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or len(self.features) != len(self.coordinates):
            expected = f"shape ({len(self.coordinates)}, C)"
            raise InputError(describe("voxel features", expected=expected, found=tuple(self.features.shape)))

    def replace(self, features: Tensor) -> SparseTensor:
        """Return other features on the same voxels."""
        return SparseTensor(features, self.coordinates)


class SparseConvolution(nn.Module):
    """What all sparse convolutions share: subclasses say which matrices they hold and where they lead.

    Outside of training the parameters are kept packed until torch has counted a change of them, or they lie
    elsewhere. What is written through ``.data`` or NumPy it does not count, and the answers stay those of
    before: write under ``torch.no_grad()``.
    """

    int8 = False
    """Whether, outside of training, bytes are multiplied where that is possible, see `pack_weight`."""

    _folded: Folded | None = None

    def matrices(self) -> Tensor:
        """Return the (K, C_in, C_out) kernel slices, or (C_in, C_out) of a 1x1x1 layer of stride 1."""
        raise NotImplementedError

    def destination(
        self, source: CoordinateSet, target: CoordinateSet | None
    ) -> tuple[CoordinateSet, KernelMap | None]:
        """Return the output voxels and the map to them, no map for a 1x1x1 layer.

        target: the voxels a transposed layer leads back to; other layers ignore it.
        """
        raise NotImplementedError

    def forward(self, x: SparseTensor, target: CoordinateSet | None = None) -> SparseTensor:
        """Convolve without normalisation.

        Raises:
            InputError: the parameters were given up.
        """
        return self._apply_matrices(x, target, self._plain_matrices(), None, None, False)

    def normalised(
        self,
        x: SparseTensor,
        norm: nn.BatchNorm1d,
        *,
        target: CoordinateSet | None = None,
        residual: Tensor | None = None,
        relu: bool = False,
    ) -> SparseTensor:
        """Convolve, normalise, add a residual and apply ReLU; outside of training in one pass.

        Raises:
            InputError: the parameters were given up, and what is packed is not for this call.
        """
        if norm.training or torch.is_grad_enabled():
            plain = self.forward(x, target)
            y = norm(plain.features)
            y = y if residual is None else y + residual
            return plain.replace(torch.relu(y) if relu else y)
        folded = self._fold(norm, x.features.dtype)
        return self._apply_matrices(x, target, folded.matrices, folded.bias, residual, relu)

    def _apply_matrices(
        self,
        x: SparseTensor,
        target: CoordinateSet | None,
        matrices: Tensor | PackedWeight,
        bias: Tensor | None,
        residual: Tensor | None,
        relu: bool,
    ) -> SparseTensor:
        voxels, kernel_map = self.destination(x.coordinates, target)
        if kernel_map is not None:
            features = sparse_conv(x.features, matrices, kernel_map, bias=bias, residual=residual, relu=relu)
            return SparseTensor(features, voxels)
        features = pointwise(x.features, matrices, bias=bias, residual=residual, relu=relu)
        return SparseTensor(features, voxels)

    def keep_packed_alone(self, norm: nn.BatchNorm1d, dtype: torch.dtype) -> None:
        """Pack matrices and batch norm for features of ``dtype`` and give up the parameters."""
        packed = self._fold(norm, dtype)
        self._parameters = dict.fromkeys(self._parameters)
        packed.took(own_tensors(norm))

    def _fold(self, norm: nn.BatchNorm1d, dtype: torch.dtype) -> Folded:
        """Return matrices and bias with the batch norm multiplied in; kept until one of them changes."""
        sources = own_tensors(self) + own_tensors(norm)
        if self._folded is None or not self._folded.is_of(sources, dtype, int8=self.int8):
            matrices, bias = fold_norm(self._plain_matrices(), norm)
            self._folded = Folded(sources, dtype, matrices, bias, int8=self.int8)
        return self._folded

    def _plain_matrices(self) -> Tensor:
        if None in self._parameters.values():
            raise InputError(
                describe(
                    "use of a layer that keeps its packed weights alone",
                    expected="no gradients, and the type, batch norm and dispatch level that they are for",
                    found="others",
                )
            )
        return self.matrices()


def use_int8(network: nn.Module, enabled: bool) -> None:
    """Say to all sparse convolutions of a network whether to multiply bytes, see `SparseConvolution`."""
    for module in network.modules():
        if isinstance(module, SparseConvolution):
            module.int8 = enabled


def keep_packed_alone(network: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Let the sparse convolutions of a network that is only run pack their parameters and give them up.

    That halves what the weights take. The network can then not be trained, saved, copied, or run with
    features of another type or at another dispatch level. Say `use_int8` before.
    """
    for module in network.modules():
        if isinstance(module, Staged):
            for conv, norm, _ in module.sparse_stages():
                conv.keep_packed_alone(norm, dtype)


def own_tensors(module: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of the module alone; in a tenth of the time of its iterators."""
    held = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in held if tensor is not None]


class Folded:
    """Matrices and bias of a layer with its batch norm multiplied in, packed for one dispatch level."""

    def __init__(
        self,
        sources: list[Tensor],
        dtype: torch.dtype,
        matrices: Tensor,
        bias: Tensor,
        *,
        int8: bool = False,
    ) -> None:
        self.dtype, self.int8 = dtype, int8
        self.matrices, self.bias = pack_weight(matrices.to(dtype), int8=int8), bias.detach().to(dtype)
        self.took(sources)

    def took(self, sources: list[Tensor]) -> None:
        """Say what the matrices are of: when it changes, they are no longer valid."""
        # The memory of the sources stays taken: no other tensor can appear at its address.
        self._kept = [tensor.detach() for tensor in sources]
        self._state = self._state_of(sources, self.dtype, self.int8)

    def is_of(self, sources: list[Tensor], dtype: torch.dtype, *, int8: bool = False) -> bool:
        """Return whether the sources are unchanged, the types the same and the packed form can be read.

        Unchanged as far as torch counts that; to know more all weights would be read at every call.
        """
        return self._state == self._state_of(sources, dtype, int8)

    @staticmethod
    def _state_of(sources: list[Tensor], dtype: torch.dtype, int8: bool) -> object:
        # Tensors of inference mode count no versions: they are changed in inference mode alone.
        versions = (None if each.is_inference() else each._version for each in sources)
        tensors = tuple(
            (each.data_ptr(), version, each.dtype) for each, version in zip(sources, versions, strict=True)
        )
        return dtype, int8, dispatch_level(), tensors


def fold_norm(matrices: Tensor, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Return (..., C_in, C_out) matrices scaled as the batch norm scales, and the bias it adds."""
    scale = norm.weight / torch.sqrt(cast(Tensor, norm.running_var) + norm.eps)
    return matrices * scale, norm.bias - cast(Tensor, norm.running_mean) * scale


class SparseConv3d(SparseConvolution):
    """A cubic sparse convolution without bias, with the parameter layout of the SPVNAS checkpoints.

    Odd kernels of stride 1 are submanifold, stride 2 leads to floor(index / 2), a transposed layer back from
    there. ``kernel`` is (K, C_in, C_out), or (C_in, C_out) for size 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.transposed = kernel_size, stride, transposed
        slices = kernel_size**3
        shape = (slices, in_channels, out_channels) if slices > 1 else (in_channels, out_channels)
        bound = 1 / math.sqrt((out_channels if transposed else in_channels) * slices)
        self.kernel = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

    def matrices(self) -> Tensor:
        """Return the kernel slices in the order of ``torchsparse_offsets``."""
        return self.kernel

    def destination(
        self, source: CoordinateSet, target: CoordinateSet | None
    ) -> tuple[CoordinateSet, KernelMap | None]:
        """Return the output voxels and the map to them."""
        if self.kernel_size == 1:
            return source, None
        offsets = torchsparse_offsets(self.kernel_size)
        strides = (self.stride, self.stride, self.stride)
        if self.transposed:
            if target is None:
                raise InputError(describe("target of a transposed layer", expected="voxels", found=None))
            return target, target.downsample(offsets, strides)[1].transposed()
        if self.stride == 1:
            return source, source.submanifold_map(offsets)
        return source.downsample(offsets, strides)


Stage: TypeAlias = tuple[SparseConvolution, nn.BatchNorm1d, bool]


@runtime_checkable
class Staged(Protocol):
    """What is made of sparse convolutions and says which batch norm is behind which."""

    def sparse_stages(self) -> Iterator[Stage]:
        """Return each convolution, its batch norm, and whether a ReLU follows."""


class SparseSequential(nn.Sequential):
    """Convolution, batch norm and (optional) ReLU, repeated; each such group runs as one step."""

    def forward(
        self,
        x: SparseTensor,
        target: CoordinateSet | None = None,
        residual: Tensor | None = None,
        relu: bool = False,
    ) -> SparseTensor:
        """Run all groups; residual and ReLU, if given, end the last one."""
        *first, (conv, norm, act) = self.sparse_stages()
        for early, early_norm, early_act in first:
            x = early.normalised(x, early_norm, target=target, relu=early_act)
        return conv.normalised(x, norm, target=target, residual=residual, relu=act or relu)

    def sparse_stages(self) -> Iterator[Stage]:
        """Return each convolution, its batch norm, and whether a ReLU follows."""
        layers = [*self, None]
        for index, layer in enumerate(layers):
            if isinstance(layer, SparseConvolution):
                norm = cast(nn.BatchNorm1d, layers[index + 1])
                yield layer, norm, isinstance(layers[index + 2], nn.ReLU)


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions beside an identity, or beside a 1x1x1 convolution where channels change."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.net = SparseSequential(
            SparseConv3d(in_channels, out_channels),
            nn.BatchNorm1d(out_channels),
            nn.ReLU(),
            SparseConv3d(out_channels, out_channels),
            nn.BatchNorm1d(out_channels),
        )
        self.downsample: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.downsample = SparseSequential(
                SparseConv3d(in_channels, out_channels, 1), nn.BatchNorm1d(out_channels)
            )

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Return relu(net(x) + downsample(x))."""
        shortcut: SparseTensor = self.downsample(x)
        result: SparseTensor = self.net(x, residual=shortcut.features, relu=True)
        return result


class ConvBlock(nn.Module):
    """Strided or transposed convolution, batch norm and ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, *, transposed: bool = False
    ) -> None:
        super().__init__()
        self.net = SparseSequential(
            SparseConv3d(in_channels, out_channels, kernel_size, stride=stride, transposed=transposed),
            nn.BatchNorm1d(out_channels),
            nn.ReLU(),
        )

    def forward(self, x: SparseTensor, target: CoordinateSet | None = None) -> SparseTensor:
        """Run the block; a transposed one needs the finer voxels it leads to."""
        result: SparseTensor = self.net(x, target)
        return result


def concatenate(first: SparseTensor, second: SparseTensor) -> SparseTensor:
    """Join the channels of two tensors on the same voxels."""
    return first.replace(torch.cat((first.features, second.features), dim=1))
