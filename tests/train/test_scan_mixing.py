# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kestrel.train.scan_mixing import COPIES, laser_mix, paste_things, polar_mix
from kestrel.train.sweep_augmentation import LabelledSweep

Mix = Callable[[LabelledSweep, LabelledSweep, torch.Generator], LabelledSweep]


def sweep(label: int, seed: int) -> LabelledSweep:
    points = 10 * torch.randn(4000, 4, generator=torch.Generator().manual_seed(seed))
    return points, torch.full((4000,), label)


@pytest.mark.parametrize("mix", [polar_mix, laser_mix])
def test_points_of_two_sweeps_never_share_a_sector_or_zone(mix: Mix) -> None:
    first, second = sweep(0, 1), sweep(1, 2)
    points, label = mix(first, second, torch.Generator().manual_seed(3))
    assert {0, 1} == set(label.tolist())
    # The same cut of two equal sweeps gives that sweep again: nothing is lost and nothing is twice there.
    same, _ = mix(first, first, torch.Generator().manual_seed(3))
    assert torch.equal(same.sort(0).values, first[0].sort(0).values)
    kept = {tuple(row) for row in points[label == 0].tolist()}
    assert kept < {tuple(row) for row in first[0].tolist()}


def test_copied_things_keep_their_distance_and_class_at_every_heading() -> None:
    first, (points, label) = sweep(0, 1), sweep(1, 2)
    label[:50] = 7
    mixed, classes = paste_things(first, (points, label), (7,))
    assert len(mixed) == 4000 + 50 * len(COPIES)
    assert (classes == 7).sum() == 50 * len(COPIES)
    distance = mixed[classes == 7, :2].norm(dim=1).view(len(COPIES), 50)
    torch.testing.assert_close(distance, points[:50, :2].norm(dim=1).expand_as(distance))


def test_mixing_with_a_sweep_without_points_leaves_a_part_of_the_other() -> None:
    empty = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    points, label = polar_mix(sweep(0, 1), empty, torch.Generator().manual_seed(0))
    assert 0 < len(points) == len(label) < 4000
