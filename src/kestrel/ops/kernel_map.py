# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Kernel maps: which input voxel meets which kernel slice at every output voxel of a sparse convolution.

The map of a convolution is a table (K, M): entry (k, j) is the input row at ``stride * p_j + offset_k``, or
-1. For a fixed slice no input row occurs twice, so the table has an inverse (K, N), which is the map of the
input gradient and of the transposed convolution.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from kestrel.errors import InputError, describe
from kestrel.ops.coordinates import pack, sort_unique, unpack
from kestrel.ops.neighbour_tables import Triple, covers_once, strided_tables, submanifold_table

_Strided: TypeAlias = tuple[tuple[Triple, ...], Triple, bool]
"""Offsets, stride and whether all voxels that any offset reaches are outputs."""


@dataclass(frozen=True)
class KernelMap:
    """Neighbour tables of one convolution with K kernel slices, N input and M output voxels.

    gather: (K, M) int32, input row of every output voxel and slice, -1 where there is none.
    inverse: (K, N) int32, output row of every input voxel and slice; None for a submanifold layer, whose
        inverse is ``gather`` with the slices in the opposite order.
    built: whether :class:`CoordinateSet` made it: its rows are not looked at once more.

    Raises:
        InputError: the tables are not of int32, not of the same slices, or name rows that there are not.
    """

    gather: Tensor
    inverse: Tensor | None
    built: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if not self.built:
            rows = {"gather": (self.gather, self.inputs), "scatter": (self.scatter, self.gather.shape[1])}
            for name, (table, count) in rows.items():
                _check_table(f"{name} of a kernel map", table, len(self.gather), count)

    @property
    def inputs(self) -> int:
        """Number N of input voxels."""
        return (self.gather if self.inverse is None else self.inverse).shape[1]

    @property
    def scatter(self) -> Tensor:
        """The (K, N) inverse, also where it is not kept."""
        return self.gather.flip(0) if self.inverse is None else self.inverse

    def transposed(self) -> KernelMap:
        """Return the map of the transposed convolution, from the outputs of this one back to its inputs."""
        return KernelMap(self.scatter, self.gather, self.built)


def _check_table(name: str, table: Tensor, slices: int, count: int) -> None:
    """Raise InputError unless a table is (slices, ...) int32 of rows below ``count``, or -1."""
    if table.ndim != 2 or len(table) != slices or table.dtype != torch.int32:
        found = f"{table.dtype} {tuple(table.shape)}"
        raise InputError(describe(name, expected=f"torch.int32 ({slices}, ...)", found=found))
    lowest, highest = (int(row) for row in torch.aminmax(table)) if table.numel() else (0, -1)
    if lowest < -1 or highest >= count:
        expected = f"rows below {count}, or -1"
        raise InputError(describe(name, expected=expected, found=f"{lowest} .. {highest}"))


@functools.cache
def centred_offsets(kernel_size: Triple) -> tuple[Triple, ...]:
    """Return kernel offsets around zero, z fastest (the order of a dense [k0, k1, k2] kernel)."""
    return tuple(
        (x - (kernel_size[0] - 1) // 2, y - (kernel_size[1] - 1) // 2, z - (kernel_size[2] - 1) // 2)
        for x, y, z in itertools.product(*map(range, kernel_size))
    )


@functools.cache
def torchsparse_offsets(kernel_size: int) -> tuple[Triple, ...]:
    """Return the offsets of a cubic kernel in the order of the SPVNAS checkpoints.

    Odd sizes: x fastest, centred. Even sizes: z fastest, starting at zero.
    """
    offsets = centred_offsets((kernel_size,) * 3)
    return tuple((z, y, x) for x, y, z in offsets) if kernel_size % 2 else offsets


@dataclass(eq=False)
class CoordinateSet:
    """The occupied voxels of one resolution, sorted by (batch, x, y, z), with the maps built on them.

    Maps and coarser sets are built once and kept, so that all layers on one set share them.

    keys: (N,) int64, sorted, unique; see ``kestrel.ops.coordinates``. Indices count in units of ``stride``.
    stride: edge lengths of a voxel in voxels of the finest set.
    spatial_shape: number of cells along x, y, z where the grid has borders, else None.
    built: whether `coordinate_set` or a set made it: its keys are not looked at once more.

    Raises:
        InputError: keys of another type or order, or a stride that is not positive.
    """

    keys: Tensor
    stride: Triple = (1, 1, 1)
    spatial_shape: Triple | None = None
    built: bool = field(default=False, repr=False)
    _submanifold: dict[tuple[Triple, ...], KernelMap] = field(default_factory=dict, repr=False)
    _strided: dict[_Strided, tuple[CoordinateSet, KernelMap]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.built:
            _check_keys(self.keys)
            if len(self.stride) != 3 or min(self.stride) < 1:
                expected = "three positive numbers"
                raise InputError(describe("stride of voxels", expected=expected, found=self.stride))

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def indices(self) -> Tensor:
        """(N, 4) int64 voxel indices, columns batch, x, y, z."""
        return unpack(self.keys)

    def submanifold_map(self, offsets: Sequence[Triple]) -> KernelMap:
        """Return the map of a submanifold convolution: the outputs are the voxels of this set.

        offsets must be point-symmetric around the middle one, as those of every odd kernel are.

        Raises:
            InputError: they are not, or one is there twice.
        """
        wanted = tuple(offsets)
        if wanted not in self._submanifold:
            _check_offsets(wanted)
            # Half of the table is that of the opposite offsets.
            if len(wanted) % 2 == 0 or wanted != tuple((-x, -y, -z) for x, y, z in reversed(wanted)):
                expected = "point-symmetric ones, as of an odd kernel"
                raise InputError(describe("offsets of a submanifold layer", expected=expected, found=wanted))
            table = submanifold_table(self.keys, list(itertools.chain(*wanted)))
            self._submanifold[wanted] = KernelMap(table, None, built=True)
        return self._submanifold[wanted]

    def known_map(self, offsets: Sequence[Triple]) -> KernelMap | None:
        """Return the submanifold map of these offsets if it has been built."""
        return self._submanifold.get(tuple(offsets))

    def downsample(
        self, offsets: Sequence[Triple], stride: Triple, *, dilate: bool = False
    ) -> tuple[CoordinateSet, KernelMap]:
        """Return the coarser set of a strided convolution and the map from this set to it.

        Output p reads inputs ``stride * p + offset``. Without ``dilate`` the outputs are floor(index /
        stride) of all voxels; with it they are all voxels that any offset reaches from an input. In a grid
        with borders they are, as in spconv, those of the grid that a dense convolution would give, of
        floor((n + 2 padding - kernel) / stride) + 1 cells along an axis of n: a voxel behind the last window
        leads to none of them.

        Raises:
            InputError: an offset is there twice.
        """
        name = (tuple(offsets), stride, dilate)
        if name not in self._strided:
            _check_offsets(name[0])
            self._strided[name] = _strided_map(self, tuple(offsets), stride, dilate)
        return self._strided[name]

    def rows_in(self, coarse: CoordinateSet) -> Tensor | None:
        """Return the (N,) int32 row of the voxel of ``coarse`` around each voxel of this set.

        None where ``coarse`` is not known to come from this set through windows that cover each voxel once.
        """
        for (offsets, stride, _), (next_set, kernel_map) in self._strided.items():
            if self.spatial_shape is not None or not covers_once(offsets, stride):
                continue
            rows = kernel_map.scatter.amax(0)
            further = rows if next_set is coarse else next_set.rows_in(coarse)
            if further is not None:
                return rows if next_set is coarse else further[rows.long()]
        return None


def coordinate_set(indices: Tensor, *, spatial_shape: Triple | None = None) -> tuple[CoordinateSet, Tensor]:
    """Sort voxel indices into a set; repeated voxels become one.

    Args:
        indices: (P, 4) integers, columns batch, x, y, z.
        spatial_shape: number of cells along x, y, z of a grid with borders.

    Returns:
        The set, and the (P,) int64 row in the set of every given index.
    """
    keys, inverse = sort_unique(pack(indices))
    return CoordinateSet(keys, spatial_shape=spatial_shape, built=True), inverse


def _check_keys(keys: Tensor) -> None:
    """Raise InputError unless the compiled code can search in the keys."""
    if keys.ndim != 1 or keys.dtype != torch.int64:
        found = f"{keys.dtype} {tuple(keys.shape)}"
        raise InputError(describe("keys of voxels", expected="torch.int64 (N,)", found=found))
    wrong = (keys.diff(prepend=keys.new_tensor([-1])) <= 0).nonzero()
    if len(wrong):
        row = int(wrong[0])
        found = f"{int(keys[row])} in row {row}"
        raise InputError(describe("keys of voxels", expected="ascending ones from 0 on", found=found))


def _check_offsets(offsets: tuple[Triple, ...]) -> None:
    """Raise InputError if an offset is there twice: the compiled code would leave one of its rows unset."""
    twice = [offset for offset, count in Counter(offsets).items() if count > 1]
    if twice:
        raise InputError(describe("offsets of a kernel", expected="each once", found=f"{twice} twice"))


def _strided_map(
    source: CoordinateSet, offsets: tuple[Triple, ...], stride: Triple, dilate: bool
) -> tuple[CoordinateSet, KernelMap]:
    shape = _strided_shape(source.spatial_shape, offsets, stride)
    keys, gather, scatter = strided_tables(
        source.keys, list(itertools.chain(*offsets)), list(stride), list(shape or ()), dilate
    )
    coarse = CoordinateSet(keys, _scaled(source.stride, stride), shape, built=True)
    return coarse, KernelMap(gather, scatter, built=True)


def _scaled(stride: Triple, by: Triple) -> Triple:
    return (stride[0] * by[0], stride[1] * by[1], stride[2] * by[2])


def _strided_shape(shape: Triple | None, offsets: tuple[Triple, ...], stride: Triple) -> Triple | None:
    """Return the number of outputs along each axis, padding both sides by what the first offset needs."""
    if shape is None:
        return None
    cells = []
    for axis in range(3):
        low, high = min(o[axis] for o in offsets), max(o[axis] for o in offsets)
        padding = -low
        cells.append((shape[axis] + 2 * padding - (high - low + 1)) // stride[axis] + 1)
    return (cells[0], cells[1], cells[2])
