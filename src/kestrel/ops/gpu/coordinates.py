# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Search in sorted keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kestrel.ops.gpu.launch import blocks, launch

_BLOCK = 256


@triton.jit
def row_of(keys: tl.tensor, count: tl.tensor, steps: tl.tensor, wanted: tl.tensor) -> tl.tensor:
    """Return the row of each wanted key among ``count`` sorted ones, or -1; 2^steps must exceed the count."""
    low = tl.zeros_like(wanted)
    high = low + count
    for _ in range(steps):
        middle = (low + high) // 2
        searching = low < high
        below = tl.load(keys + middle, mask=searching, other=0) < wanted
        low = tl.where(searching & below, middle + 1, low)
        high = tl.where(searching & (below == 0), middle, high)
    found = tl.load(keys + low, mask=low < count, other=0) == wanted
    return tl.where(found & (low < count), low, -1).to(tl.int32)


@triton.jit
def _find(
    keys: tl.tensor,
    wanted: tl.tensor,
    rows: tl.tensor,
    count: tl.tensor,
    steps: tl.tensor,
    queries: tl.tensor,
    block: tl.constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < queries
    key = tl.load(wanted + at, mask=inside, other=-1)
    tl.store(rows + at, row_of(keys, count, steps, key), mask=inside)


def find(sorted_keys: Tensor, wanted: Tensor) -> Tensor:
    """Compute kestrel::find_keys."""
    keys, wanted = sorted_keys.contiguous(), wanted.contiguous()
    rows = torch.empty(wanted.shape, dtype=torch.int32, device=wanted.device)
    count, queries = len(keys), wanted.numel()
    grid = (blocks(queries, _BLOCK),)
    launch(_find, grid, keys, wanted, rows, count, count.bit_length(), queries, block=_BLOCK)
    return rows
