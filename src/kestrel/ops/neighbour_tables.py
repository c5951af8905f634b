# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The operators that search for the neighbours of voxels: the tables that kernel maps are made of."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from types import ModuleType
from typing import TypeAlias

import torch
from torch import Tensor

from kestrel.errors import InputError, describe
from kestrel.ops.backend import NATIVE, call, triton_installed
from kestrel.ops.coordinates import find, offset_key, pack, pack_unchecked, sort_unique, unpack
from kestrel.ops.operator import operator

Triple: TypeAlias = tuple[int, int, int]


@operator("submanifold_table")
def submanifold_table(keys: Tensor, offsets: Sequence[int]) -> Tensor:
    """Return the (K, N) table of K offsets (3 K numbers), which are symmetric around the middle one."""
    if NATIVE is None or keys.device.type != "cpu":
        return submanifold_reference(keys, offsets)
    table = torch.empty((len(offsets) // 3, len(keys)), dtype=torch.int32, device="cpu")
    threads = torch.get_num_threads()
    call(NATIVE.submanifold_table, keys, len(keys), _triples(offsets), table, threads)
    return table


@submanifold_table.register_cuda
def submanifold_table_cuda(keys: Tensor, offsets: Sequence[int]) -> Tensor:
    """Compute the operator on a GPU: in Triton where it is installed."""
    if not triton_installed():
        return submanifold_reference(keys, offsets)
    from kestrel.ops.gpu import kernel_map as gpu

    return gpu.submanifold_table(keys, [offset_key(offset) for offset in _triples(offsets)])


@submanifold_table.register_fake
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


@operator("strided_tables")
def strided_tables(
    keys: Tensor, offsets: Sequence[int], stride: Sequence[int], shape: Sequence[int], dilate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the (M,) keys of the coarser set and the (K, M) and (K, N) tables from this set to it.

    offsets: 3 K numbers. stride: 3. shape: cells along each axis of the coarser grid, () without borders.
    dilate: see `CoordinateSet.downsample`.

    Raises:
        InputError: an offset is there twice.
    """
    triples, step = _triples(offsets), (stride[0], stride[1], stride[2])
    if NATIVE is not None and keys.device.type == "cpu" and (dilate or covers_once(tuple(triples), step)):
        return _native_tables(NATIVE, keys, triples, step, tuple(shape))
    return strided_reference(keys, triples, step, tuple(shape), dilate=dilate)


@strided_tables.register_fake
def _(
    keys: Tensor, offsets: Sequence[int], stride: Sequence[int], shape: Sequence[int], dilate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    slices, outputs = len(offsets) // 3, torch.library.get_ctx().new_dynamic_size()
    gather = keys.new_empty(slices, outputs, dtype=torch.int32)
    return keys.new_empty(outputs), gather, keys.new_empty(slices, keys.shape[0], dtype=torch.int32)


def strided_reference(
    keys: Tensor, offsets: Sequence[Triple], stride: Triple, shape: tuple[int, ...], *, dilate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the operator in torch."""
    indices = unpack(keys)
    steps = torch.tensor((1, *stride), device=indices.device)
    if dilate:
        reached = [_reached(indices, offset, steps, shape) for offset in offsets]
        coarse = sort_unique(torch.cat(reached))[0]
    else:
        around = indices.div(steps, rounding_mode="floor")
        coarse = sort_unique(pack(around[_within(around, shape)]))[0]
    origin = pack_unchecked(unpack(coarse) * steps)
    gather = torch.stack([find(keys, origin + offset_key(offset)) for offset in offsets])
    return coarse, gather, _inverse(gather, len(keys))


def _native_tables(
    native: ModuleType, source: Tensor, offsets: Sequence[Triple], stride: Triple, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    windows = math.prod(
        _most_windows({offset[axis] for offset in offsets}, stride[axis]) for axis in range(3)
    )
    capacity = windows * len(source)
    keys = torch.empty(capacity, dtype=torch.int64, device="cpu")
    inputs, slices, outputs = torch.empty(3, capacity, dtype=torch.int32, device="cpu")
    count, found = call(
        native.strided_triples,
        *(source, len(source), offsets, stride, shape, capacity),
        *(keys, inputs, slices, outputs, torch.get_num_threads()),
    )
    if count < 0:
        expected = f"each once, of which {capacity} pairs come at most"
        raise InputError(describe("offsets of a strided layer", expected=expected, found=offsets))
    gather = torch.full((len(offsets), found), -1, dtype=torch.int32, device="cpu")
    scatter = torch.full((len(offsets), len(source)), -1, dtype=torch.int32, device="cpu")
    inputs, slices, outputs = (part[:count] for part in (inputs, slices, outputs))
    gather.view(-1).index_copy_(0, slices.long() * found + outputs, inputs)
    scatter.view(-1).index_copy_(0, slices.long() * len(source) + inputs, outputs)
    return keys[:found].clone(), gather, scatter


def _most_windows(offsets: set[int], stride: int) -> int:
    """Return how many outputs read one input at most, along one axis."""
    return max(Counter(offset % stride for offset in offsets).values())


def _reached(indices: Tensor, offset: Triple, steps: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the keys of the outputs that read an input at one kernel offset."""
    moved = indices - torch.tensor((0, *offset), device=indices.device)
    outputs = moved.div(steps, rounding_mode="floor")
    keep = (outputs * steps == moved).all(1) & _within(outputs, shape)
    return pack(outputs[keep])


def _within(indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return which (N, 4) indices lie in a grid of that shape, all without borders."""
    if not shape:
        return torch.ones(len(indices), dtype=torch.bool, device=indices.device)
    limit = torch.tensor(shape, device=indices.device)
    return ((indices[:, 1:] >= 0) & (indices[:, 1:] < limit)).all(1)


def _inverse(gather: Tensor, inputs: int) -> Tensor:
    scatter = torch.full((len(gather), inputs), -1, dtype=torch.int32, device=gather.device)
    for row, into in zip(gather, scatter, strict=True):
        outputs = (row >= 0).nonzero().squeeze(1)
        into[row[outputs].long()] = outputs.int()
    return scatter


def _triples(numbers: Sequence[int]) -> list[Triple]:
    return list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))


def covers_once(offsets: tuple[Triple, ...], stride: Triple) -> bool:
    """Return whether kernel and stride are equal: then every voxel lies in the window of one output."""
    return offsets == tuple(itertools.product(*map(range, stride)))
