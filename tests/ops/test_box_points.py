# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kestrel.errors import InputError
from kestrel.ops import box_points
from kestrel.ops.box_points import box_points_reference
from tests.ops.levels import needs_kernels, on_every_level


def region(
    x: float,
    y: float,
    yaw: float,
    length: float,
    width: float,
    *,
    along: float = 0,
    velocity: tuple[float, float] = (0, 0),
) -> Tensor:
    """Half lengths; from z 0 to 2."""
    angle = torch.tensor(yaw)
    head = torch.tensor([x, y])
    turn = torch.stack((angle.cos(), angle.sin()))
    return torch.cat((head, turn, torch.tensor([length, width, 0, 2, along, 0, *velocity])))


def test_a_turned_region_holds_what_is_in_it_and_between_its_heights() -> None:
    points = torch.tensor(
        [
            [1.0, 3.4, 1, 0, 0],  # ahead
            [3.4, 1.0, 1, 0, 0],  # aside
            [1.0, 3.4, 2.1, 0, 0],  # above
            [1.0, 3.4, 0.0, 0, 0],  # on the border below
        ]
    )
    rows, found = box_points(points, region(1, 1, torch.pi / 2, 2.5, 0.5)[None], slots=1, slot_s=1, limit=3)
    assert rows.tolist() == [[[0, -1, -1]]]
    assert found.tolist() == [[1]]


def test_what_is_older_may_be_farther_off() -> None:
    age = torch.tensor([0.0, 0.11, 0.2, 0.31, 2.0])
    points = torch.stack((1.5 + 0 * age, 0 * age, 1 + 0 * age, 0 * age, age), 1)
    around = torch.stack((region(0, 0, 0, 1, 1, along=2), region(0, 0, 0, 1, 1, along=20)))
    rows, found = box_points(points, around, slots=3, slot_s=0.2, limit=2)
    assert rows.tolist() == [[[-1, -1], [-1, -1], [3, 4]], [[-1, -1], [1, 2], [3, 4]]]
    assert found.tolist() == [[0, 0, 2], [0, 2, 2]]


def test_a_region_was_elsewhere_before() -> None:
    points = torch.tensor([[0.0, 0, 1, 0, 0], [0, 0, 1, 0, 0.2], [-2, 1, 1, 0, 0.2], [2, -1, 1, 0, 0.2]])
    rows, _ = box_points(
        points, region(0, 0, 1, 0.5, 0.5, velocity=(10, -5))[None], slots=2, slot_s=0.2, limit=1
    )
    assert rows.tolist() == [[[0], [2]]]


def test_of_too_many_points_every_so_many_th_is_there() -> None:
    points = torch.zeros(103, 5)
    points[:, 2] = 1
    rows, found = box_points(points, region(0, 0, 0, 1, 1)[None], slots=1, slot_s=0.2, limit=10)
    assert found.item() == 103
    steps = rows[0, 0].diff()
    assert rows[0, 0, 0] == 0
    assert set(steps.tolist()) == {10, 11}


def scene(points: int, regions: int, *, extent: float = 30) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(points + regions)
    cloud = torch.rand(points, 5, generator=generator)
    cloud[:, :2] = (cloud[:, :2] - 0.5) * 2 * extent
    cloud[:, 4] = torch.randint(3, (points,), generator=generator) * 0.2
    yaw = 7 * torch.rand(regions, generator=generator)
    place = (torch.rand(regions, 2, generator=generator) - 0.5) * 2 * extent
    rest = torch.rand(regions, 8, generator=generator) * torch.tensor([6.0, 3, 0.4, 0, 20, 3, 9, -9])
    rest[:, 3] = 0.7
    return cloud, torch.cat((place, yaw.cos()[:, None], yaw.sin()[:, None], rest), 1)


@needs_kernels
@pytest.mark.parametrize(("points", "regions"), [(4000, 60), (4000, 1), (0, 5), (2, 9), (50, 0)])
def test_the_compiled_code_equals_the_reference(points: int, regions: int) -> None:
    cloud, around = scene(points, regions)
    arguments = cloud, around, 3, 0.2, 7
    expected = box_points_reference(*arguments)
    for rows, found in on_every_level(lambda: torch.ops.kestrel.box_points(*arguments)).values():
        assert torch.equal(rows, expected[0])
        assert torch.equal(found, expected[1])
    assert points < 4000 or regions < 60 or int((expected[1] > 7).sum()) > 10


def test_what_is_no_number_is_around_nothing() -> None:
    cloud, around = scene(500, 20)
    rows, _ = box_points(cloud, around, slots=3, slot_s=0.2, limit=9)
    odd = torch.tensor([[torch.nan] * 5, [torch.inf, 0, 0.5, 0, 0], [0, 0, 0.5, 0, torch.nan]])
    lost = torch.cat((around, torch.full((1, 12), torch.nan)))
    found, counts = box_points(torch.cat((cloud, odd)), lost, slots=3, slot_s=0.2, limit=9)
    assert torch.equal(found[:-1], rows)
    assert counts[-1].tolist() == [0, 0, 0]


def test_bad_input_is_named() -> None:
    cloud, around = scene(10, 2)
    with pytest.raises(InputError, match=r"points: expected float32 \(N, 5\), found torch.float64"):
        box_points(cloud.double(), around, slots=3, slot_s=0.2, limit=5)
    with pytest.raises(InputError, match=r"regions: expected float32 \(N, 12\)"):
        box_points(cloud, around[:, :10], slots=3, slot_s=0.2, limit=5)
    with pytest.raises(InputError, match="slots, slot_s and limit: expected positive numbers"):
        box_points(cloud, around, slots=3, slot_s=0.0, limit=5)


@needs_kernels
def test_a_region_that_shrinks_back_in_time_holds_what_is_in_it() -> None:
    shrinking = region(0, 0, 0, 4, 4, along=-0.9)
    points = torch.tensor([[3.9, 3.9, 1, 0, 0], [2.9, 0, 1, 0, 1.0], [6.0, 3, 1, 0, -3.0], [0, 0, 1, 0, 4.0]])
    expected = box_points_reference(points, shrinking[None], 3, 0.5, 4)
    assert 0 in expected[0]
    torch.testing.assert_close(box_points(points, shrinking[None], slots=3, slot_s=0.5, limit=4), expected)


@needs_kernels
def test_points_of_the_future_and_a_region_without_an_end_hide_nothing() -> None:
    moving = region(0, 0, 0, 1, 1, velocity=(10, 0))
    endless = region(50, 0, 0, torch.inf, torch.inf)
    points = torch.tensor([[-10.0, 0, 1, 0, 1.0], [10.0, 0, 1, 0, -1.0], [0.0, 400, 1, 0, 0]])
    for regions in (moving[None], torch.stack((moving, endless)), endless[None]):
        for some in (points, points[1:], points[2:]):
            expected = box_points_reference(some, regions, 3, 0.5, 4)
            found = box_points(some, regions, slots=3, slot_s=0.5, limit=4)
            torch.testing.assert_close(found, expected)
