# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kestrel.pipelines.map_memory import CAMERAS_ALONE, HALVED_M, MOST_VIEWS, MapMemory, closeness
from kestrel.types import Float64Array

EXTENT, RESOLUTION, CELLS = 20.0, 0.5, 80
TENTH_NS = 100_000_000
MIDDLES = (torch.arange(CELLS) + 0.5) * RESOLUTION - EXTENT
X, Y = torch.meshgrid(MIDDLES, MIDDLES, indexing="ij")


def memory(layers: int = 1) -> MapMemory:
    return MapMemory(layers, EXTENT, RESOLUTION)


def pose(x: float = 0.0, y: float = 0.0, yaw: float = 0.0) -> Float64Array:
    matrix = np.eye(4)
    matrix[:2, :2] = [[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]
    matrix[:3, 3] = x, y, 0.3
    return matrix


def said(value: float) -> Tensor:
    return torch.full((1, CELLS, CELLS), value)


def look(
    kept: MapMemory, logits: Tensor, tenths: int, place: Float64Array | None, *, has_lidar: bool = True
) -> Tensor:
    return kept.look(logits, has_lidar=has_lidar, stamp_ns=tenths * TENTH_NS, fixed_from_base=place)


def world(place: Float64Array) -> Tensor:
    """Return what is true around the vehicle in a world of stripes 8 m wide, as log-odds."""
    x = place[0, 0] * X + place[0, 1] * Y + place[0, 3]
    y = place[1, 0] * X + place[1, 1] * Y + place[1, 3]
    return (4 * torch.sign(torch.sin(math.pi / 8 * (x + 0.3 * y))))[None].float()


def test_a_first_frame_says_what_it_says() -> None:
    logits = torch.randn(2, CELLS, CELLS)
    weight = closeness(torch.hypot(X, Y))
    for place in (None, pose(), pose(-3.5, 1e4)):
        evidence = look(memory(2), logits, 1, place)
        assert evidence.shape == (6, CELLS, CELLS)
        torch.testing.assert_close(evidence[:2], logits)
        torch.testing.assert_close(evidence[2:4], logits, atol=2e-3, rtol=0)
        torch.testing.assert_close(evidence[4], weight, atol=1e-3, rtol=0)
        assert torch.equal(evidence[5], weight)


@pytest.mark.parametrize("yaw", [0.0, math.pi / 2, 2.5])
def test_what_was_seen_stays_where_it_is_while_the_vehicle_moves_and_turns(yaw: float) -> None:
    kept, spot = memory(), (6.0, -3.0)
    logits = torch.where(torch.hypot(X - spot[0], Y - spot[1]) < 2, 4.0, -4.0)[None]
    look(kept, logits, 1, pose(100, -50))
    after = pose(102, -46, yaw)
    # Of a frame that does not know the averages are those of the one before.
    evidence = look(kept, 0 * logits, 2, after)[1]
    x, y, *_ = np.linalg.inv(after) @ (100 + spot[0], -50 + spot[1], 0.3, 1)
    found = evidence > 0.2
    assert float(X[found].mean()) == pytest.approx(x, abs=0.2)
    assert float(Y[found].mean()) == pytest.approx(y, abs=0.2)
    assert int(found.sum()) == pytest.approx(math.pi * 4 / RESOLUTION**2, rel=0.25)


def test_a_close_view_outvotes_distant_ones() -> None:
    kept = memory()
    for tenths in range(5):
        look(kept, said(-4.0), 1 + tenths, pose(0, 0))
    evidence = look(kept, said(3.0), 10, pose(16, 0))[1]
    row = (MIDDLES + 16).tolist()
    ahead = {round(x, 2): float(value) for x, value in zip(row, evidence[:, CELLS // 2], strict=True)}
    assert ahead[15.75] > 1  # now below the vehicle
    assert ahead[0.25] < -3  # below it before


def test_nothing_blurs_however_many_frames_there_are() -> None:
    kept = memory()
    for tenths in range(1, 200):
        place = pose(0.137 * tenths, 0.011 * tenths, 0.003 * tenths)
        evidence = look(kept, world(place), tenths, place)
    right = (evidence[1] > 0) == (world(place)[0] > 0)
    seen = torch.hypot(X, Y) < 15
    assert float(right[seen].float().mean()) > 0.97


def test_the_grid_follows_the_vehicle_as_far_as_it_drives() -> None:
    kept = memory()
    for tenths in range(1, 400):
        place = pose(2.0 * tenths, -1.0 * tenths, -0.46)
        evidence = look(kept, world(place), tenths, place)
    behind = (X < -5) & (torch.hypot(X, Y) < 18)
    right = (evidence[1] > 0) == (world(place)[0] > 0)
    assert float(right[behind].float().mean()) > 0.95
    assert float(evidence[2][behind].max()) > 0.9, "it was below the vehicle"


def test_more_frames_a_second_are_not_more_views() -> None:
    answers = []
    for step in (1, 5):
        kept = memory()
        for tenths in range(1, 21, step):
            evidence = look(kept, said(-2.0), tenths, pose())
        evidence = look(kept, said(2.0), 25, pose(3, 0))
        answers.append(float(evidence[1, CELLS // 2, CELLS // 2]))
    assert answers[0] == pytest.approx(answers[1], abs=0.35)


def test_what_changes_is_seen_in_time() -> None:
    kept = memory()
    for half_seconds in range(100):
        look(kept, said(-4.0), 5 * half_seconds, pose())
    views = 0
    while look(kept, said(4.0), 500 + 5 * views, pose())[1, CELLS // 2, CELLS // 2] < 0:
        views += 1
    assert 2 < views < 2 * MOST_VIEWS


def test_what_was_seen_counts_the_less_the_further_the_vehicle_went() -> None:
    """Odometry drifts."""
    kept = memory()
    look(kept, said(0.0), 10, pose())
    below = round((EXTENT - 8) / RESOLUTION)
    closest = look(kept, said(0.0), 20, pose(8, 0))[2, below, CELLS // 2]
    assert float(closest) == pytest.approx(0.5 ** (8 / HALVED_M), abs=0.01)


def test_what_the_lidar_saw_outlives_it() -> None:
    kept = memory()
    look(kept, said(4.0), 1, pose())
    for tenths in range(6, 30, 5):
        evidence = look(kept, said(-4.0), tenths, pose(), has_lidar=False)
    middle = evidence[:, CELLS // 2, CELLS // 2]
    assert float(middle[1]) > 2
    assert float(middle[3]) == pytest.approx(CAMERAS_ALONE, rel=0.01)
    evidence = look(kept, said(-4.0), 31, pose())
    assert float(evidence[1, CELLS // 2, CELLS // 2]) < 2


@pytest.mark.parametrize(
    ("tenths", "place"),
    [
        pytest.param(9, pose(), id="time jumped back"),
        pytest.param(10, pose(), id="the same time"),
        pytest.param(11, pose(40, 0), id="the pose jumped"),
    ],
)
def test_after_a_jump_everything_is_forgotten(tenths: int, place: Float64Array) -> None:
    kept = memory()
    look(kept, said(4.0), 10, pose())
    evidence = look(kept, said(-1.0), tenths, place)
    torch.testing.assert_close(evidence[1], said(-1.0)[0], atol=1e-3, rtol=0)


def test_a_frame_whose_place_nobody_knows_stands_alone_and_nothing_is_forgotten() -> None:
    kept = memory()
    look(kept, said(4.0), 10, pose())
    assert torch.equal(look(kept, said(-1.0), 11, None)[1], said(-1.0)[0])
    assert float(look(kept, said(-1.0), 12, pose())[1, CELLS // 2, CELLS // 2]) > 2


def test_cleared_it_is_as_new() -> None:
    kept = memory()
    look(kept, said(4.0), 10, pose())
    kept.clear()
    assert torch.equal(look(kept, said(-1.0), 3, pose(9, 9)), look(memory(), said(-1.0), 3, pose(9, 9)))


def test_one_frame_does_not_outvote_all_others() -> None:
    kept = memory()
    look(kept, said(1e6), 1, pose())
    for tenths in (6, 11, 16):
        evidence = look(kept, said(-4.0), tenths, pose())
    assert float(evidence[1].max()) < 0
