# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What the augmentation of sweeps changes, and what it leaves."""

from __future__ import annotations

import torch
from torch import Tensor

from kestrel.train.sweep_augmentation import (
    MOST_POINTS,
    SENSOR_HEIGHT_M,
    augment,
    by_beam,
    in_holes,
    in_sector,
)


def sweep(count: int = 4000) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    points = torch.rand(count, 4, generator=generator) * torch.tensor([80.0, 80.0, 3.0, 1.0])
    points[:, :2] -= 40.0
    return points, torch.arange(count) % 16


def test_an_augmented_sweep_keeps_points_with_their_labels_and_ranges() -> None:
    points, _ = sweep()
    whole = points.clone()
    ranges = points[:, :2].norm(dim=1)
    for seed in range(12):
        changed, kept = augment(points, torch.arange(len(points)), torch.Generator().manual_seed(seed))
        assert len(changed) == len(kept) > 200
        ratio = changed[:, :2].norm(dim=1)[ranges[kept] > 5] / ranges[kept][ranges[kept] > 5]
        assert float((ratio - 1.0).abs().max()) < 0.06
        assert float((changed[:, 2] - points[kept, 2]).abs().max()) < 3.0
        assert torch.equal(changed[:, 3], changed[:, 3].clamp(0, 1))
    torch.testing.assert_close(points, whole)


def test_a_dense_sweep_is_thinned_out() -> None:
    points, label = sweep(3 * MOST_POINTS)
    changed, _ = augment(points, label, torch.Generator().manual_seed(0))
    assert len(changed) < 1.1 * MOST_POINTS


def test_a_sector_is_what_lies_between_two_bearings() -> None:
    points, _ = sweep()
    inside = in_sector(points, torch.Generator().manual_seed(1))
    share = float(inside.float().mean())
    assert 80 / 360 - 0.1 < share < 240 / 360 + 0.1
    azimuth = torch.atan2(points[:, 1], points[:, 0])
    order = inside[azimuth.argsort()].int()
    assert int((order.diff().abs()).sum()) + int(order[0] != order[-1]) == 2


def test_holes_take_neighbours_and_leave_most_of_a_sweep() -> None:
    points, _ = sweep()
    gone = in_holes(points, torch.Generator().manual_seed(2))
    assert 1 <= int(gone.sum()) < len(points) // 4
    assert not bool(in_holes(points[:0], torch.Generator().manual_seed(2)).any())


def test_patches_of_a_wall_get_intensities_of_their_own() -> None:
    points, label = sweep()
    points[:, 3] = 0.4
    spreads = [
        float(augment(points, label, torch.Generator().manual_seed(seed))[0][:, 3].std())
        for seed in range(20)
    ]
    assert max(spreads) > 0.1
    assert min(spreads) < 0.01, "some sweeps have one intensity, or none"


def test_lasers_differ_and_each_is_even() -> None:
    points, _ = sweep()
    inclination = -0.4 + 0.004 * (torch.arange(len(points)) % 64) + 0.002
    points[:, 2] = SENSOR_HEIGHT_M + points[:, :2].norm(dim=1) * inclination.tan()
    value = by_beam(torch.full((len(points),), 0.3), points, torch.Generator().manual_seed(4))
    lasers = value[: len(points) // 64 * 64].view(-1, 64)
    assert float(lasers.std(0).max()) < 1e-6
    assert float(lasers.mean(0).std()) > 0.03
