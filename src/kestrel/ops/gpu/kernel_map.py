# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Neighbour tables of submanifold convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kestrel.ops.gpu.coordinates import row_of
from kestrel.ops.gpu.launch import blocks, launch

_BLOCK = 256


@triton.jit
def _table(
    keys: tl.tensor,
    offsets: tl.tensor,
    table: tl.tensor,
    count: tl.tensor,
    steps: tl.tensor,
    block: tl.constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < count
    k = tl.program_id(1)
    wanted = tl.load(keys + at, mask=inside, other=0) + tl.load(offsets + k)
    tl.store(table + k * count.to(tl.int64) + at, row_of(keys, count, steps, wanted), mask=inside)


def submanifold_table(keys: Tensor, offset_keys: Sequence[int]) -> Tensor:
    """Return the (K, N) rows of the keys at every offset, given as what it adds to a key."""
    keys, count = keys.contiguous(), len(keys)
    offsets = torch.tensor(offset_keys, dtype=torch.int64, device=keys.device)
    table = torch.empty(len(offsets), count, dtype=torch.int32, device=keys.device)
    grid = blocks(count, _BLOCK), len(offsets)
    launch(_table, grid, keys, offsets, table, count, count.bit_length(), block=_BLOCK)
    return table
