# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Which points of several sweeps are around which box."""

from __future__ import annotations

import torch
from torch import Tensor

from kestrel.errors import InputError, describe
from kestrel.ops.backend import NATIVE, call, triton_installed
from kestrel.ops.operator import operator

REGION_COLUMNS = 12


def box_points(
    points: Tensor, regions: Tensor, *, slots: int, slot_s: float, limit: int
) -> tuple[Tensor, Tensor]:
    """Return the points in upright regions that move and, back in time, grow; by age.

    Args:
        points: (P, 5) float32 x, y, z [m], intensity, age [s].
        regions: (K, 12) float32 x, y of the middle, cosine and sine of the yaw, half length, half width,
            lowest and highest z [m], by how much half length and half width grow with the age [m/s], where
            negative shrink, and the velocity in x and y [m/s]. Borders do not belong to them.
        slots: how many ages are told apart.
        slot_s: seconds from one to the next; a point belongs to the nearest, beyond the last to that.
        limit: of more points in a slot every so many-th is returned, so many in all.

    Returns:
        rows: (K, slots, limit) int64 of the points, in their order, -1 behind the last.
        found: (K, slots) int64 how many there are, also beyond the limit.

    Raises:
        InputError: inputs of another shape or dtype, or numbers that are not positive.
    """
    for name, given, columns in (("points", points, 5), ("regions", regions, REGION_COLUMNS)):
        if given.ndim != 2 or given.shape[1] != columns or given.dtype != torch.float32:
            found = f"{given.dtype} of shape {tuple(given.shape)}"
            raise InputError(describe(name, expected=f"float32 (N, {columns})", found=found))
    if slots < 1 or limit < 1 or not slot_s > 0:
        found = f"{slots}, {slot_s}, {limit}"
        raise InputError(describe("slots, slot_s and limit", expected="positive numbers", found=found))
    rows, counts = _box_points(points, regions, slots, slot_s, limit)
    return rows, counts


@operator("box_points")
def _box_points(
    points: Tensor, regions: Tensor, slots: int, slot_s: float, limit: int
) -> tuple[Tensor, Tensor]:
    if NATIVE is None or points.device.type != "cpu":
        return box_points_reference(points, regions, slots, slot_s, limit)
    rows = torch.empty(len(regions), slots, limit, dtype=torch.int64, device="cpu")
    found = torch.empty(len(regions), slots, dtype=torch.int64, device="cpu")
    call(
        NATIVE.box_points,
        *(points, len(points), regions, len(regions)),
        *(slots, slot_s, limit, rows, found, torch.get_num_threads()),
    )
    return rows, found


@_box_points.register_cuda
def box_points_cuda(
    points: Tensor, regions: Tensor, slots: int, slot_s: float, limit: int
) -> tuple[Tensor, Tensor]:
    """Compute the operator in Triton where it is installed, as ``box_points`` says."""
    if not triton_installed():
        return box_points_reference(points, regions, slots, slot_s, limit)
    from kestrel.ops.gpu import box_points as gpu

    return gpu.box_points(points, regions, slots, slot_s, limit)


@_box_points.register_fake
def _(points: Tensor, regions: Tensor, slots: int, slot_s: float, limit: int) -> tuple[Tensor, Tensor]:
    rows = points.new_empty(regions.shape[0], slots, limit, dtype=torch.int64)
    return rows, points.new_empty(regions.shape[0], slots, dtype=torch.int64)


def box_points_reference(
    points: Tensor, regions: Tensor, slots: int, slot_s: float, limit: int
) -> tuple[Tensor, Tensor]:
    """Compute the operator in torch."""
    rows = points.new_full((len(regions), slots, limit), -1, dtype=torch.int64)
    found = rows.new_zeros(len(regions), slots)
    x, y, z, _, age = points.double().unbind(1)
    slot = (age / slot_s).round().clamp(0, slots - 1).long()
    for number, region in enumerate(regions.double()):
        middle_x, middle_y, cos, sin, length, width, low, high, along, across, vx, vy = region
        dx, dy = x + vx * age - middle_x, y + vy * age - middle_y
        inside = (z > low) & (z < high)
        inside &= (dx * cos + dy * sin).abs() < length + along * age
        inside &= (dy * cos - dx * sin).abs() < width + across * age
        for which in range(slots):
            mine = (inside & (slot == which)).nonzero()[:, 0]
            found[number, which] = len(mine)
            if len(mine) > limit:
                # The first of those that fall onto the same place.
                place = torch.arange(len(mine), device=mine.device) * limit // len(mine)
                mine = mine[torch.searchsorted(place, torch.arange(limit, device=mine.device))]
            rows[number, which, : len(mine)] = mine
    return rows, found
