# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from kestrel.data.trajectory import Trajectory

MILLISECOND = 1_000_000


def pose(x: float, degrees: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix()
    matrix[0, 3] = x
    return matrix


@pytest.fixture
def trajectory() -> Trajectory:
    """Poses 100 ms apart, given in no order."""
    return Trajectory({at * MILLISECOND: pose(at / 100, at / 10) for at in (200, 100, 300)})


def test_between_two_poses_the_vehicle_moves_and_turns_evenly(trajectory: Trajectory) -> None:
    for at in (100, 125, 200, 280, 300):
        np.testing.assert_allclose(trajectory.at(at * MILLISECOND), pose(at / 100, at / 10), atol=1e-9)


def test_what_is_not_known_is_not_guessed(trajectory: Trajectory) -> None:
    assert trajectory.at(99 * MILLISECOND) is None
    assert trajectory.at(301 * MILLISECOND) is None
    assert len(Trajectory({})) == 0
    assert Trajectory({}).at(0) is None


@pytest.mark.parametrize(("gap_ms", "known"), [(1000, True), (1001, False)])
def test_in_a_long_silence_nothing_is_known(gap_ms: int, known: bool) -> None:
    found = Trajectory({at * MILLISECOND: pose(at / 1e3, 0.0) for at in (0, 10, 10 + gap_ms, 20 + gap_ms)})
    assert (found.at(500 * MILLISECOND) is not None) == known
    for at in (5, 10, 10 + gap_ms, 15 + gap_ms):
        np.testing.assert_allclose(found.at(at * MILLISECOND), pose(at / 1e3, 0.0), atol=1e-9)


def test_motion_is_where_the_vehicle_was_as_of_where_it_is(trajectory: Trajectory) -> None:
    now, then = (trajectory.at(at * MILLISECOND) for at in (300, 150))
    found = trajectory.motion(300 * MILLISECOND, 150 * MILLISECOND)
    np.testing.assert_allclose(now @ found, then, atol=1e-9)
    np.testing.assert_array_equal(trajectory.motion(300 * MILLISECOND, 400 * MILLISECOND), np.eye(4))
