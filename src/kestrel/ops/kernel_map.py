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
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TypeAlias

import torch
from torch import Tensor

from kestrel.errors import InputError, describe
from kestrel.ops.backend import NATIVE, call, triton_installed
from kestrel.ops.coordinates import find, offset_key, pack, pack_unchecked, sort_unique, unpack
from kestrel.ops.operator import operator

Triple: TypeAlias = tuple[int, int, int]
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
    """

    keys: Tensor
    stride: Triple = (1, 1, 1)
    spatial_shape: Triple | None = None
    _submanifold: dict[tuple[Triple, ...], KernelMap] = field(default_factory=dict, repr=False)
    _strided: dict[_Strided, tuple[CoordinateSet, KernelMap]] = field(default_factory=dict, repr=False)

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
            InputError: they are not.
        """
        wanted = tuple(offsets)
        if wanted not in self._submanifold:
            # Half of the table is that of the opposite offsets.
            if len(wanted) % 2 == 0 or wanted != tuple((-x, -y, -z) for x, y, z in reversed(wanted)):
                expected = "point-symmetric ones, as of an odd kernel"
                raise InputError(describe("offsets of a submanifold layer", expected=expected, found=wanted))
            table = _submanifold_table(self.keys, list(itertools.chain(*wanted)))
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
        stride) of all voxels; with it they are all voxels that any offset reaches from an input.
        """
        name = (tuple(offsets), stride, dilate)
        if name not in self._strided:
            self._strided[name] = _strided_map(self, tuple(offsets), stride, dilate)
        return self._strided[name]

    def rows_in(self, coarse: CoordinateSet) -> Tensor | None:
        """Return the (N,) int32 row of the voxel of ``coarse`` around each voxel of this set.

        None where ``coarse`` is not known to come from this set through windows that cover each voxel once.
        """
        for (offsets, stride, _), (next_set, kernel_map) in self._strided.items():
            if self.spatial_shape is not None or not _covers_once(offsets, stride):
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
    return CoordinateSet(keys, spatial_shape=spatial_shape), inverse


@operator("submanifold_table")
def _submanifold_table(keys: Tensor, offsets: Sequence[int]) -> Tensor:
    """Return the (K, N) table of K offsets (3 K numbers), which are symmetric around the middle one."""
    if NATIVE is None or keys.device.type != "cpu":
        return submanifold_reference(keys, offsets)
    table = torch.empty((len(offsets) // 3, len(keys)), dtype=torch.int32, device="cpu")
    threads = torch.get_num_threads()
    call(NATIVE.submanifold_table, keys, len(keys), _triples(offsets), table, threads)
    return table


@_submanifold_table.register_cuda
def submanifold_table_cuda(keys: Tensor, offsets: Sequence[int]) -> Tensor:
    """Compute the operator on a GPU: in Triton where it is installed."""
    if not triton_installed():
        return submanifold_reference(keys, offsets)
    from kestrel.ops.gpu import kernel_map as gpu

    return gpu.submanifold_table(keys, [offset_key(offset) for offset in _triples(offsets)])


@_submanifold_table.register_fake
def _(keys: Tensor, offsets: Sequence[int]) -> Tensor:
    return keys.new_empty(len(offsets) // 3, keys.shape[0], dtype=torch.int32)


def submanifold_reference(keys: Tensor, offsets: Sequence[int]) -> Tensor:
    """Compute the operator in torch."""
    count, middle = len(offsets) // 3, len(offsets) // 6
    table = torch.full((count, len(keys)), -1, dtype=torch.int32, device=keys.device)
    for k, offset in enumerate(_triples(offsets)[:middle]):
        # A pair (j, i) at one offset is the pair (i, j) at the opposite one: half of the searches suffice.
        found = find(keys, keys + offset_key(offset))
        table[k] = found
        outputs = (found >= 0).nonzero().squeeze(1)
        table[count - 1 - k, found[outputs].long()] = outputs.int()
    table[middle] = torch.arange(len(keys), dtype=torch.int32, device=keys.device)
    return table


def _triples(numbers: Sequence[int]) -> list[Triple]:
    return list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))


def _covers_once(offsets: tuple[Triple, ...], stride: Triple) -> bool:
    """Return whether kernel and stride are equal: then every voxel lies in the window of one output."""
    return offsets == tuple(itertools.product(*map(range, stride)))


def _strided_map(
    source: CoordinateSet, offsets: tuple[Triple, ...], stride: Triple, dilate: bool
) -> tuple[CoordinateSet, KernelMap]:
    if NATIVE is not None and source.keys.device.type == "cpu" and (dilate or _covers_once(offsets, stride)):
        return _strided_map_native(NATIVE, source, offsets, stride)
    indices = source.indices
    steps = torch.tensor((1, *stride), device=indices.device)
    shape = _strided_shape(source.spatial_shape, offsets, stride)
    if dilate:
        reached = [_reached(indices, offset, steps, shape) for offset in offsets]
        keys = sort_unique(torch.cat(reached))[0]
    else:
        keys = sort_unique(pack(indices.div(steps, rounding_mode="floor")))[0]
    coarse = CoordinateSet(keys, _scaled(source.stride, stride), shape)
    origin = pack_unchecked(unpack(keys) * steps)
    gather = torch.stack([find(source.keys, origin + offset_key(offset)) for offset in offsets])
    return coarse, KernelMap(gather, _inverse(gather, len(source)), built=True)


def _strided_map_native(
    native: ModuleType, source: CoordinateSet, offsets: tuple[Triple, ...], stride: Triple
) -> tuple[CoordinateSet, KernelMap]:
    shape = _strided_shape(source.spatial_shape, offsets, stride)
    windows = math.prod(
        _most_windows({offset[axis] for offset in offsets}, stride[axis]) for axis in range(3)
    )
    capacity = windows * len(source)
    keys = torch.empty(capacity, dtype=torch.int64, device="cpu")
    inputs, slices, outputs = torch.empty(3, capacity, dtype=torch.int32, device="cpu")
    count, found = call(
        native.strided_triples,
        *(source.keys, len(source), offsets, stride, shape or (), capacity),
        *(keys, inputs, slices, outputs, torch.get_num_threads()),
    )
    gather = torch.full((len(offsets), found), -1, dtype=torch.int32, device="cpu")
    scatter = torch.full((len(offsets), len(source)), -1, dtype=torch.int32, device="cpu")
    inputs, slices, outputs = (part[:count] for part in (inputs, slices, outputs))
    gather.view(-1).index_copy_(0, slices.long() * found + outputs, inputs)
    scatter.view(-1).index_copy_(0, slices.long() * len(source) + inputs, outputs)
    coarse = CoordinateSet(keys[:found].clone(), _scaled(source.stride, stride), shape)
    return coarse, KernelMap(gather, scatter, built=True)


def _most_windows(offsets: set[int], stride: int) -> int:
    """Return how many outputs read one input at most, along one axis."""
    return max(Counter(offset % stride for offset in offsets).values())


def _scaled(stride: Triple, by: Triple) -> Triple:
    return (stride[0] * by[0], stride[1] * by[1], stride[2] * by[2])


def _reached(indices: Tensor, offset: Triple, steps: Tensor, shape: Triple | None) -> Tensor:
    """Return the keys of the outputs that read an input at one kernel offset."""
    moved = indices - torch.tensor((0, *offset), device=indices.device)
    outputs = moved.div(steps, rounding_mode="floor")
    keep = (outputs * steps == moved).all(1)
    if shape is not None:
        limit = torch.tensor(shape, device=indices.device)
        keep &= ((outputs[:, 1:] >= 0) & (outputs[:, 1:] < limit)).all(1)
    return pack(outputs[keep])


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


def _inverse(gather: Tensor, inputs: int) -> Tensor:
    scatter = torch.full((len(gather), inputs), -1, dtype=torch.int32, device=gather.device)
    for row, into in zip(gather, scatter, strict=True):
        outputs = (row >= 0).nonzero().squeeze(1)
        into[row[outputs].long()] = outputs.int()
    return scatter
