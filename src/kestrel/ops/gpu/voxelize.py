# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Points into voxels: the cell of each point, and the reduction of the points of a voxel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kestrel.ops.gpu.launch import blocks, launch
from kestrel.ops.gpu.segments import reduce_segments

_BLOCK = 256


@triton.jit
def _cell_of(
    points: tl.tensor,
    grid: tl.tensor,
    shape: tl.tensor,
    cells: tl.tensor,
    count: tl.tensor,
    channels: tl.tensor,
    block: tl.constexpr,
) -> None:
    point = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    there = point < count
    kept = there
    # Nothing becomes an integer before it is known to fit.
    for axis in tl.static_range(3):
        value = tl.load(points + point * channels + axis, mask=there, other=0)
        lower = tl.load(grid + axis)
        kept = kept & (value >= lower) & (value < tl.load(grid + 3 + axis))
        # Rounded division: the fast one would move points across the borders of cells.
        at = tl.floor(tl.div_rn(value - lower, tl.load(grid + 6 + axis)))
        kept = kept & (at < tl.load(shape + axis).to(tl.float32))
        tl.store(cells + point * 3 + axis, tl.where(kept, at, -1.0).to(tl.int32), mask=there)


def cells_of(
    points: Tensor, voxel_size: Sequence[float], point_cloud_range: Sequence[float], shape: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the rows of the points in range, and their (n, 3) int64 cells."""
    points, count = points.contiguous(), len(points)
    grid = torch.tensor((*point_cloud_range, *voxel_size), dtype=torch.float32, device=points.device)
    limits = torch.tensor(shape, dtype=torch.int32, device=points.device)
    cells = torch.empty(count, 3, dtype=torch.int32, device=points.device)
    launch(
        _cell_of, (blocks(count, _BLOCK),), points, grid, limits, cells, count, points.shape[1], block=_BLOCK
    )
    # A point that leaves the range along an axis is marked at that axis and those after it.
    inside = (cells[:, 2] >= 0).nonzero().squeeze(1)
    return inside, cells[inside].long()


def reduce_voxels(reduction: str, points: Tensor, voxel: Tensor, first: Tensor, counts: Tensor) -> Tensor:
    """Return the row that stands for each voxel: its first point, their mean or their maximum."""
    if reduction == "first":
        return first
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    order = voxel.argsort(stable=True)
    reduced = reduce_segments(points, order, starts, maximum=reduction == "max")
    return reduced if reduction == "max" else reduced / counts[:, None]
