# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Points around boxes: one program for each box and age, which walks all points twice."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kestrel.ops.gpu.launch import launch

_BLOCK = 1024


@triton.jit
def inside(
    at: tl.tensor, which: tl.tensor, points: tl.tensor, slot: tl.tensor, count: tl.tensor, region: tl.tensor
) -> tl.tensor:
    """Return which of the points ``at`` are of the slot and within the region."""
    there = at < count
    x = tl.load(points + at, mask=there, other=0)
    y = tl.load(points + count + at, mask=there, other=0)
    z = tl.load(points + 2 * count + at, mask=there, other=0)
    age = tl.load(points + 3 * count + at, mask=there, other=0)
    cos, sin = tl.load(region + 2), tl.load(region + 3)
    dx = x + tl.load(region + 10) * age - tl.load(region)
    dy = y + tl.load(region + 11) * age - tl.load(region + 1)
    there = there & (tl.load(slot + at, mask=there, other=-1) == which)
    there = there & (z > tl.load(region + 6)) & (z < tl.load(region + 7))
    there = there & (tl.abs(dx * cos + dy * sin) < tl.load(region + 4) + tl.load(region + 8) * age)
    return there & (tl.abs(dy * cos - dx * sin) < tl.load(region + 5) + tl.load(region + 9) * age)


@triton.jit
def _box_points(
    points: tl.tensor,
    slot: tl.tensor,
    regions: tl.tensor,
    rows: tl.tensor,
    found: tl.tensor,
    count: tl.tensor,
    slots: tl.tensor,
    limit: tl.tensor,
    block: tl.constexpr,
) -> None:
    which = tl.program_id(1)
    region = regions + tl.program_id(0) * 12
    out = tl.program_id(0).to(tl.int64) * slots + which
    lane = tl.arange(0, block)
    total = tl.zeros((), tl.int64)
    for first in range(0, count, block):
        total += tl.sum(inside(first + lane, which, points, slot, count, region).to(tl.int64), 0)
    tl.store(found + out, total)
    before = tl.zeros((), tl.int64)
    for first in range(0, count, block):
        mine = inside(first + lane, which, points, slot, count, region)
        number = before + tl.cumsum(mine.to(tl.int64), 0) - 1
        before += tl.sum(mine.to(tl.int64), 0)
        # Beyond the limit the first of those that fall onto the same place.
        crowd = tl.maximum(total, limit)
        place = number * limit // crowd
        chosen = mine & ((number == 0) | ((number - 1) * limit // crowd < place))
        tl.store(rows + out * limit + place, (first + lane).to(tl.int64), mask=chosen)


def box_points(
    points: Tensor, regions: Tensor, slots: int, slot_s: float, limit: int
) -> tuple[Tensor, Tensor]:
    """Compute kestrel::box_points."""
    rows = points.new_full((len(regions), slots, limit), -1, dtype=torch.int64)
    found = torch.empty(len(regions), slots, dtype=torch.int64, device=points.device)
    wide = points.double()
    slot = (wide[:, 4] / slot_s).round().clamp(0, slots - 1).int()
    columns = wide[:, [0, 1, 2, 4]].T.contiguous()
    grid = len(regions), slots
    sizes = len(points), slots, limit
    launch(_box_points, grid, columns, slot, regions.double().contiguous(), rows, found, *sizes, block=_BLOCK)
    return rows, found
