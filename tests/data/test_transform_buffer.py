# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The buffer of transforms: exact interpolation, chains, and errors instead of guesses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from kestrel.data.trajectory import moved
from kestrel.data.transform_buffer import TransformBuffer, invert
from kestrel.errors import CalibrationError

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
IDENTITY = (0.0, 0.0, 0.0, 1.0)


def quaternion(*euler_deg: float) -> tuple[float, float, float, float]:
    x, y, z, w = Rotation.from_euler("xyz", euler_deg, degrees=True).as_quat().tolist()
    return (x, y, z, w)


@given(ratio=st.floats(0, 1), seed=st.integers(0, 1000))
def test_interpolation_equals_scipy_slerp_and_a_straight_line(ratio: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    rotations = Rotation.random(2, rng=random)
    positions = random.normal(size=(2, 3))
    buffer = TransformBuffer()
    for index in range(2):
        x, y, z, w = rotations[index].as_quat().tolist()
        buffer.add("odom", "base_link", START + index * SECOND // 50, tuple(positions[index]), (x, y, z, w))
    stamp = START + round(ratio * SECOND / 50)
    exact = (stamp - START) / (SECOND / 50)

    found = buffer.lookup("odom", "base_link", stamp)

    np.testing.assert_allclose(found[:3, 3], positions[0] + exact * (positions[1] - positions[0]), atol=1e-9)
    np.testing.assert_allclose(found[:3, :3], Slerp([0, 1], rotations)([exact]).as_matrix()[0], atol=1e-7)


@pytest.mark.parametrize("beyond_ms", [10, 60, 120])
@pytest.mark.parametrize("ahead", [True, False])
def test_beyond_what_is_known_the_motion_goes_on_as_it_was(beyond_ms: int, ahead: bool) -> None:
    """On a circle, whose motion is the same everywhere; odometry at 10 Hz that comes a sweep late."""
    buffer = TransformBuffer(tolerance_s=0.15)

    def pose(at_ms: int) -> tuple[np.ndarray, float]:
        angle = 0.0004 * at_ms
        return 20 * np.array([np.sin(angle), 1 - np.cos(angle), 0]), angle

    for at_ms in range(0, 600, 100):
        place, angle = pose(at_ms)
        buffer.add(
            "odom",
            "base_link",
            START + at_ms * SECOND // 1000,
            tuple(place),
            quaternion(0, 0, np.degrees(angle)),
        )
    asked_ms = 500 + beyond_ms if ahead else -beyond_ms
    place, angle = pose(asked_ms)
    found = buffer.lookup("odom", "base_link", START + asked_ms * SECOND // 1000)
    # Between two poses there is a straight line, 4 mm from the circle.
    np.testing.assert_allclose(found[:3, 3], place, atol=0.02)
    assert np.arctan2(found[1, 0], found[0, 0]) == pytest.approx(angle, abs=1e-6)
    with pytest.raises(CalibrationError, match="odom <- base_link"):
        buffer.lookup("odom", "base_link", START + (660 if ahead else -160) * SECOND // 1000)


def test_opposite_signs_of_a_quaternion_interpolate_the_short_way() -> None:
    buffer = TransformBuffer()
    buffer.add("odom", "base_link", START, (0, 0, 0), quaternion(0, 0, 0))
    x, y, z, w = quaternion(0, 0, 20)
    buffer.add("odom", "base_link", START + SECOND // 10, (0, 0, 0), (-x, -y, -z, -w))
    yaw = np.arctan2(*buffer.lookup("odom", "base_link", START + SECOND // 20)[[1, 0], [0, 0]])
    assert np.degrees(yaw) == pytest.approx(10, abs=1e-6)


def test_chain_through_a_common_ancestor_composes_both_sides() -> None:
    buffer = TransformBuffer()
    buffer.add("base_link", "mast", 0, (0, 0, 2), quaternion(0, 0, 90), static=True)
    buffer.add("mast", "lidar", 0, (1, 0, 0), IDENTITY, static=True)
    buffer.add("base_link", "camera", 0, (3, 0, 1), IDENTITY, static=True)
    camera_from_lidar = buffer.lookup("camera", "lidar", START)
    np.testing.assert_allclose(camera_from_lidar @ (0, 0, 0, 1), (-3, 1, 1, 1), atol=1e-12)
    np.testing.assert_allclose(buffer.lookup("lidar", "camera", START), invert(camera_from_lidar), atol=1e-12)


def test_lookup_beyond_the_tolerance_names_the_frames_and_the_distance() -> None:
    buffer = TransformBuffer(tolerance_s=1.0)
    buffer.add("odom", "base_link", START, (1, 0, 0), IDENTITY)
    # Of one pose alone no motion is known.
    assert buffer.lookup("odom", "base_link", START + SECOND // 25)[0, 3] == 1
    with pytest.raises(CalibrationError, match=r"odom <- base_link.*-0\.100 s"):
        buffer.lookup("odom", "base_link", START + SECOND // 10)
    with pytest.raises(CalibrationError, match=r"\+0\.100 s"):
        buffer.lookup("odom", "base_link", START - SECOND // 10)


def test_silence_of_a_publisher_is_not_interpolated_across() -> None:
    buffer = TransformBuffer(max_gap_s=1.0)
    buffer.add("odom", "base_link", START, (0, 0, 0), IDENTITY)
    buffer.add("odom", "base_link", START + 3 * SECOND, (30, 0, 0), IDENTITY)
    with pytest.raises(CalibrationError, match="odom"):
        buffer.lookup("odom", "base_link", START + SECOND)


def test_unknown_frame_is_an_error_that_names_it() -> None:
    buffer = TransformBuffer()
    with pytest.raises(CalibrationError, match=r"'base_link'.*nothing yet"):
        buffer.lookup("base_link", "lidar", START)
    buffer.add("base_link", "imu", 0, (0, 0, 0), IDENTITY, static=True)
    with pytest.raises(CalibrationError, match=r"'lidar'.*imu"):
        buffer.lookup("base_link", "lidar", START)


def test_two_trees_are_an_error_that_names_both_roots() -> None:
    buffer = TransformBuffer()
    buffer.add("base_link", "imu", 0, (0, 0, 0), IDENTITY, static=True)
    buffer.add("rig", "lidar", 0, (0, 0, 0), IDENTITY, static=True)
    with pytest.raises(CalibrationError, match=r"'base_link'.*'rig'"):
        buffer.lookup("imu", "lidar", START)


def test_loop_of_frames_is_an_error_not_an_endless_search() -> None:
    buffer = TransformBuffer()
    buffer.add("a", "b", 0, (0, 0, 0), IDENTITY, static=True)
    buffer.add("b", "a", 0, (0, 0, 0), IDENTITY, static=True)
    with pytest.raises(CalibrationError, match="loop"):
        buffer.lookup("a", "b", START)


@pytest.mark.parametrize(
    ("translation", "rotation", "reason"),
    [
        ((0, 0, 0), (0, 0, 0, 0), "quaternion not of length 1"),
        ((0, 0, 0), (0, 0, 0, 2), "quaternion not of length 1"),
        ((0, 0, 0), (float("nan"), 0, 0, 1), "not finite"),
        ((float("inf"), 0, 0), IDENTITY, "not finite"),
    ],
)
def test_unusable_transform_is_counted_and_changes_nothing(
    translation: tuple[float, float, float], rotation: tuple[float, float, float, float], reason: str
) -> None:
    buffer = TransformBuffer()
    buffer.add("base_link", "lidar", 0, (0, 0, 2), IDENTITY, static=True)
    assert not buffer.add("base_link", "lidar", 0, translation, rotation, static=True)
    assert buffer.rejected == {reason: 1}
    assert buffer.lookup("base_link", "lidar", START)[2, 3] == 2


def test_dynamic_transform_without_a_stamp_or_with_equal_frames_is_refused() -> None:
    buffer = TransformBuffer()
    assert not buffer.add("odom", "base_link", 0, (0, 0, 0), IDENTITY)
    assert not buffer.add("odom", "odom", START, (0, 0, 0), IDENTITY)
    assert not buffer.add("", "odom", START, (0, 0, 0), IDENTITY)
    assert buffer.rejected == {"no stamp": 1, "frame names empty or equal": 2}


def test_extrinsic_sent_anew_replaces_the_old_one() -> None:
    buffer = TransformBuffer()
    for height in (1.0, 1.5):
        buffer.add("base_link", "lidar", 0, (0, 0, height), IDENTITY, static=True)
    assert buffer.lookup("base_link", "lidar", START)[2, 3] == 1.5


def test_history_is_bounded_and_older_transforms_are_refused() -> None:
    buffer = TransformBuffer(history_s=1.0, jump_back_s=100.0)
    for tick in range(500):
        buffer.add("odom", "base_link", START + tick * SECOND // 50, (tick, 0, 0), IDENTITY)
    with pytest.raises(CalibrationError):
        buffer.lookup("odom", "base_link", START)
    assert not buffer.add("odom", "base_link", START, (0, 0, 0), IDENTITY)
    assert buffer.rejected == {"older than the history": 1}
    newest = START + 499 * SECOND // 50
    assert buffer.lookup("odom", "base_link", newest)[0, 3] == 499


def test_late_transform_within_the_history_is_sorted_in() -> None:
    buffer = TransformBuffer()
    for tick in (0, 2, 1):
        buffer.add("odom", "base_link", START + tick * SECOND // 50, (float(tick**2), 0, 0), IDENTITY)
    assert buffer.lookup("odom", "base_link", START + 3 * SECOND // 100)[0, 3] == pytest.approx(2.5)


def test_jump_back_forgets_the_future_and_follows_the_new_time() -> None:
    buffer = TransformBuffer()
    buffer.add("base_link", "lidar", 0, (0, 0, 2), IDENTITY, static=True)
    for tick in range(100):
        buffer.add("odom", "base_link", START + tick * SECOND // 10, (tick, 0, 0), IDENTITY)
    buffer.add("odom", "base_link", START, (-5, 0, 0), IDENTITY)
    assert buffer.jumps_back == 1
    np.testing.assert_allclose(buffer.lookup("odom", "lidar", START)[:3, 3], (-5, 0, 2))
    with pytest.raises(CalibrationError):
        buffer.lookup("odom", "lidar", START + 5 * SECOND)


def test_reset_keeps_the_latched_static_transforms() -> None:
    buffer = TransformBuffer()
    buffer.add("base_link", "lidar", 0, (0, 0, 2), IDENTITY, static=True)
    buffer.add("odom", "base_link", START, (0, 0, 0), IDENTITY)
    buffer.reset()
    assert buffer.lookup("base_link", "lidar", START)[2, 3] == 2
    with pytest.raises(CalibrationError, match="'odom'"):
        buffer.lookup("odom", "lidar", START)


def test_leading_slashes_of_old_frame_names_mean_the_same_frame() -> None:
    buffer = TransformBuffer()
    buffer.add("/base_link", "/lidar", 0, (0, 0, 2), IDENTITY, static=True)
    assert buffer.lookup("base_link", "/lidar", START)[2, 3] == 2


@pytest.mark.parametrize("count", [0, 1, 500])
def test_points_are_moved_and_their_fourth_column_stays(count: int) -> None:
    random = np.random.default_rng(count)
    transform = np.eye(4)
    transform[:3, :3] = Rotation.from_euler("xyz", (0.1, -0.2, 2.0)).as_matrix()
    transform[:3, 3] = 1.0, -2.0, 0.5
    points = random.normal(0, 30, (count, 4)).astype(np.float32)
    found = moved(points, transform)
    assert (found.dtype, found.shape) == (np.float32, (count, 4))
    homogeneous = np.c_[points[:, :3].astype(np.float64), np.ones(count)]
    np.testing.assert_allclose(found[:, :3], (homogeneous @ transform.T)[:, :3], atol=2e-5)
    assert (found[:, 3] == points[:, 3]).all()


def test_frames_that_are_spoken_of_no_more_are_forgotten_and_all_others_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kestrel.data.transform_buffer.LOOK_EVERY", 100)
    buffer = TransformBuffer(history_s=1.0)
    buffer.add("base_link", "lidar", 0, (0, 0, 2), IDENTITY, static=True)
    for tick in range(1000):
        stamp = START + tick * SECOND // 20
        buffer.add("odom", "base_link", stamp, (tick, 0, 0), IDENTITY)
        buffer.add("odom", "wrong_clock", START - 3600 * SECOND + tick, (1, 0, 0), IDENTITY)
        buffer.add("odom", f"object_{tick // 10}", stamp, (0, 0, 0), IDENTITY)
    objects = [frame for frame in buffer._edges if frame.startswith("object_")]
    assert len(objects) < 15
    assert objects[-1] == "object_99"
    assert buffer.lookup("odom", "lidar", START + 999 * SECOND // 20)[0, 3] == 999
    assert buffer.lookup("odom", "wrong_clock", START - 3600 * SECOND + 999)[0, 3] == 1
    assert len(buffer._edges["wrong_clock"].stamps_ns) == 1000
