# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Voxel coordinates as sorted 64-bit keys.

A voxel index (batch, x, y, z) becomes one integer whose order is the order of the tuple, so that sorting,
set operations and neighbour searches work on plain integers, and the neighbour at (dx, dy, dz) is the key
plus a constant.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from kestrel.errors import InputError, describe
from kestrel.ops.backend import NATIVE, call, triton_installed
from kestrel.ops.operator import operator

AXIS_BITS: Final = 17
_AXIS_BIAS: Final = 1 << (AXIS_BITS - 1)
_AXIS_MASK: Final = (1 << AXIS_BITS) - 1
_BATCH_LIMIT: Final = 1 << (63 - 3 * AXIS_BITS)

COORDINATE_LIMIT: Final = _AXIS_BIAS - 64
"""Voxel indices must lie in [-COORDINATE_LIMIT, COORDINATE_LIMIT); the margin keeps neighbours in range."""


def pack(indices: Tensor) -> Tensor:
    """Return the (N,) int64 keys of (N, 4) integer voxel indices, columns batch, x, y, z.

    Raises:
        InputError: wrong shape, or an index outside of the range that fits a key.
    """
    if indices.ndim != 2 or indices.shape[1] != 4 or indices.is_floating_point():
        found = f"{indices.dtype} of shape {tuple(indices.shape)}"
        raise InputError(describe("voxel indices", expected="integers of shape (N, 4)", found=found))
    return _pack_keys(indices)


def whole_numbers(values: Tensor) -> Tensor:
    """Return floating-point values as int64, and for what is not a number one that ``pack`` refuses.

    Processors differ: x86-64 makes it the least integer there is, aarch64 zero, which is a voxel.
    """
    return values.long().masked_fill_(values.isnan(), torch.iinfo(torch.int64).min)


@operator("pack_keys")
def _pack_keys(indices: Tensor) -> Tensor:
    wide = indices.long()
    if NATIVE is not None and wide.device.type == "cpu":
        keys = torch.empty(len(wide), dtype=torch.int64, device="cpu")
        if call(NATIVE.pack_keys, wide, len(wide), keys, torch.get_num_threads()):
            return keys
    if len(wide):
        low, high = torch.aminmax(wide, dim=0)
        fits = bool((low[1:] >= -COORDINATE_LIMIT).all() and (high[1:] < COORDINATE_LIMIT).all())
        if not fits or low[0] < 0 or high[0] >= _BATCH_LIMIT:
            expected = f"batch in [0, {_BATCH_LIMIT}), x, y, z within +-{COORDINATE_LIMIT}"
            found = f"from {low.tolist()} to {high.tolist()}"
            raise InputError(describe("voxel indices", expected=expected, found=found))
    return pack_unchecked(wide)


@_pack_keys.register_fake
def _(indices: Tensor) -> Tensor:
    return indices.new_empty(indices.shape[0], dtype=torch.int64)


def pack_unchecked(wide: Tensor) -> Tensor:
    """Return the keys of (N, 4) int64 indices that are known to lie within a kernel of valid ones."""
    batch, x, y, z = wide.unbind(1)
    key = batch << AXIS_BITS | (x + _AXIS_BIAS)
    return (key << AXIS_BITS | (y + _AXIS_BIAS)) << AXIS_BITS | (z + _AXIS_BIAS)


def unpack(keys: Tensor) -> Tensor:
    """Return the (N, 4) int64 voxel indices (batch, x, y, z) of (N,) keys."""
    x = (keys >> 2 * AXIS_BITS & _AXIS_MASK) - _AXIS_BIAS
    y = (keys >> AXIS_BITS & _AXIS_MASK) - _AXIS_BIAS
    z = (keys & _AXIS_MASK) - _AXIS_BIAS
    return torch.stack((keys >> 3 * AXIS_BITS, x, y, z), dim=1)


def offset_key(offset: tuple[int, int, int]) -> int:
    """Return what to add to a key to reach the voxel at ``offset`` (dx, dy, dz)."""
    dx, dy, dz = offset
    return (dx << 2 * AXIS_BITS) + (dy << AXIS_BITS) + dz


@operator("sort_unique")
def sort_unique(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (M,) sorted keys without repetition and the (N,) int64 position of each given key there."""
    if NATIVE is None or keys.device.type != "cpu":
        unique, inverse = torch.unique(keys, return_inverse=True)
        return unique, inverse
    unique, inverse = torch.empty_like(keys), torch.empty_like(keys)
    count = call(NATIVE.unique_keys, keys, len(keys), unique, inverse, torch.get_num_threads())
    return unique[:count].clone(), inverse


@sort_unique.register_fake
def _(keys: Tensor) -> tuple[Tensor, Tensor]:
    return keys.new_empty(torch.library.get_ctx().new_dynamic_size()), torch.empty_like(keys)


@operator("find_keys")
def find(sorted_keys: Tensor, wanted: Tensor) -> Tensor:
    """Return, for every wanted key, its row in ``sorted_keys`` as int32, or -1 where it is not there."""
    if NATIVE is None or wanted.device.type != "cpu":
        return find_reference(sorted_keys, wanted)
    found = torch.empty(wanted.shape, dtype=torch.int32, device="cpu")
    threads = torch.get_num_threads()
    call(NATIVE.find_keys, sorted_keys, len(sorted_keys), wanted, wanted.numel(), found, threads)
    return found


@find.register_cuda
def find_keys_cuda(sorted_keys: Tensor, wanted: Tensor) -> Tensor:
    """Compute the operator on a GPU: in Triton where it is installed."""
    if not triton_installed():
        return find_reference(sorted_keys, wanted)
    from kestrel.ops.gpu import coordinates as gpu

    return gpu.find(sorted_keys, wanted)


@find.register_fake
def _(sorted_keys: Tensor, wanted: Tensor) -> Tensor:
    return wanted.new_empty(wanted.shape, dtype=torch.int32)


def find_reference(sorted_keys: Tensor, wanted: Tensor) -> Tensor:
    """Compute the operator in torch."""
    if not len(sorted_keys):
        return torch.full(wanted.shape, -1, dtype=torch.int32, device=wanted.device)
    rows = torch.searchsorted(sorted_keys, wanted).clamp_(max=len(sorted_keys) - 1)
    return torch.where(sorted_keys[rows] == wanted, rows, -1).int()
