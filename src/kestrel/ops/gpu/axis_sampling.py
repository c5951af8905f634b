# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Bilinear values at places that are the same along both axes."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from kestrel.ops.gpu.launch import block_of, blocks, launch

_PLACES = 16


@triton.jit
def _sample(
    grid: tl.tensor,
    lower: tl.tensor,
    share: tl.tensor,
    out: tl.tensor,
    size: tl.tensor,
    channels: tl.tensor,
    places: tl.tensor,
    stride: tl.tensor,
    block_places: tl.constexpr,
    block: tl.constexpr,
) -> None:
    line = tl.program_id(0).to(tl.int64)  # of all lines of all maps
    column = tl.program_id(1) * block_places + tl.arange(0, block_places)
    channel = tl.program_id(2) * block + tl.arange(0, block)
    there, known = column < places, channel < channels
    both = there[:, None] & known[None, :]
    image, row = line // places, line % places
    above, down = tl.load(lower + row).to(tl.int64), tl.load(share + row)
    before = tl.load(lower + column, mask=there, other=0).to(tl.int64)
    right = tl.load(share + column, mask=there, other=0)[:, None]
    first = grid + ((image * size + above) * size + before[:, None]) * channels + channel[None, :]
    a = tl.load(first, mask=both, other=0).to(tl.float32)
    b = tl.load(first + channels, mask=both, other=0).to(tl.float32)
    c = tl.load(first + size * channels, mask=both, other=0).to(tl.float32)
    d = tl.load(first + (size + 1) * channels, mask=both, other=0).to(tl.float32)
    left, beside = a + down * (c - a), b + down * (d - b)
    place = (line * places + column[:, None]) * stride + channel[None, :]
    tl.store(out + place, left + right * (beside - left), mask=both)


def sample_axes(grids: Sequence[Tensor], lower: Sequence[Tensor], share: Sequence[Tensor]) -> Tensor:
    """Compute kestrel::sample_axes."""
    batch, places = len(grids[0]), len(lower[0])
    out = grids[0].new_empty(batch, places, places, sum(grid.shape[1] for grid in grids))
    first = 0
    for grid, below, part in zip(grids, lower, share, strict=True):
        size, channels = grid.shape[2], grid.shape[1]
        block = block_of(channels, most=64)
        launch(
            _sample,
            (batch * places, blocks(places, _PLACES), blocks(channels, block)),
            *(grid.permute(0, 2, 3, 1).contiguous(), below.contiguous(), part.contiguous(), out[..., first:]),
            *(size, channels, places, out.shape[3]),
            block_places=_PLACES,
            block=block,
        )
        first += channels
    return out.permute(0, 3, 1, 2)
