# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Ids of objects over frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kestrel.pipelines.tracker import VEHICLE, Tracker
from kestrel.types import Boxes3D, Float64Array

CLASSES = ("car", "pedestrian")
UNKNOWN = (np.nan, np.nan)


def boxes(at_s: float, *rows: tuple[float, float], names: str = "", velocity: object = UNKNOWN) -> Boxes3D:
    """Return boxes at (x, y); ``names`` holds c or p for each (default: all cars)."""
    count = len(rows)
    return Boxes3D(
        center=np.array([(*row, 1) for row in rows], np.float32).reshape(-1, 3),
        size=np.ones((count, 3), np.float32),
        yaw=np.zeros(count, np.float32),
        velocity=np.broadcast_to(np.array(velocity, np.float32), (count, 2)).copy(),
        label=np.array(["cp".index(name) for name in names or "c" * count], np.int64),
        score=np.ones(count, np.float32),
        class_names=CLASSES,
        frame_id="base_link",
        stamp_ns=round((100 + at_s) * 1e9),
    )


def ids(tracker: Tracker, found: Boxes3D, fixed_from_boxes: Float64Array | None = None) -> list[int]:
    tracked = tracker.step(found, np.eye(4) if fixed_from_boxes is None else fixed_from_boxes)
    assert tracked.track_id is not None
    return tracked.track_id.tolist()


def test_ids_follow_objects_whatever_their_order_in_the_frame() -> None:
    tracker = Tracker()
    assert ids(tracker, boxes(0.0, (0, 0), (5, 0))) == [0, 1]
    assert ids(tracker, boxes(0.1, (5.5, 0), (0.5, 0), (30, 0))) == [1, 0, 2]


def test_track_moves_on_through_a_short_miss_and_learns_its_velocity() -> None:
    tracker = Tracker(memory_s=0.6)
    for step in range(10):
        assert ids(tracker, boxes(step * 0.1, (step * 1.5, 0))) == [0]
    assert ids(tracker, boxes(1.0)) == []
    assert ids(tracker, boxes(1.4, (1.4 * 15, 0))) == [0], "6 m from its last place, where it is expected"


def test_velocity_of_the_network_is_used_from_the_first_frame_on() -> None:
    tracker = Tracker(position_std_m=0.1)
    assert ids(tracker, boxes(0.0, (0, 0), velocity=(50, 0))) == [0]
    assert ids(tracker, boxes(0.1, (5, 0))) == [0]
    unaware = Tracker(position_std_m=0.1)
    assert ids(unaware, boxes(0.0, (0, 0))) == [0]
    assert ids(unaware, boxes(0.1, (5, 0))) == [1]


def test_velocities_that_were_seen_count_and_guesses_do_not() -> None:
    true, errors = np.array([1.2, 0.5]), {}
    for seen in (True, False):
        tracker, random = Tracker(), np.random.default_rng(1)
        errors[seen] = 0.0
        for step in range(30):
            place = 0.1 * step * true + random.normal(0, 0.5, 2)
            found = boxes(0.1 * step, (place[0], place[1]), velocity=true + random.normal(0, 0.5, 2))
            tracked = tracker.step(found, np.eye(4), velocities_seen=seen)
            errors[seen] += float(np.hypot(*(tracked.velocity[0] - true))) / 30
    assert errors[True] < 0.3 < 0.6 < errors[False]
    unknown = tracker.step(boxes(3.0, (3.6, 1.5)), np.eye(4), velocities_seen=True)
    assert np.isfinite(unknown.velocity).all()


def test_velocity_and_heading_come_from_the_motion_while_the_vehicle_turns_and_drives() -> None:
    tracker, random = Tracker(position_std_m=0.2), np.random.default_rng(0)
    for step in range(20):
        angle, moved = 0.05 * step, 2.0 * step
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        fixed_from_base = np.eye(4)
        fixed_from_base[:2, :2], fixed_from_base[0, 3] = turn, moved
        in_fixed = np.array([5.0 + 0.8 * step, 3.0 + 0.6 * step]) + random.normal(0, 0.2, 2)
        x, y = turn.T @ (in_fixed - [moved, 0])
        found = boxes(step * 0.1, (x, y))
        found.yaw[:] = 2.5
        tracked = tracker.step(found, fixed_from_base)
    np.testing.assert_allclose(turn @ tracked.velocity[0], (8, 6), atol=1.0)
    course = np.arctan2(6, 8) - angle
    assert abs(tracked.yaw[0] - course) < 0.15


def test_heading_near_the_course_and_of_what_stands_is_the_networks() -> None:
    tracker = Tracker()
    for step in range(10):
        found = boxes(step * 0.1, (step * 1.5, 0), (0, 20))
        found.yaw[:] = (0.3, 2.0)
        tracked = tracker.step(found, np.eye(4))
    np.testing.assert_allclose(tracked.yaw, (0.3, 2.0))


def test_track_ends_after_its_memory_and_its_id_is_not_used_again() -> None:
    tracker = Tracker(memory_s=0.5)
    assert ids(tracker, boxes(0.0, (0, 0))) == [0]
    assert ids(tracker, boxes(0.6, (0, 0))) == [1]
    tracker.reset()
    assert tracker.alive == 0
    assert ids(tracker, boxes(0.7, (0, 0))) == [2]


def test_class_and_distance_decide_what_can_belong_together() -> None:
    tracker = Tracker()
    assert ids(tracker, boxes(0.0, (0, 0), (10, 0), names="cp")) == [0, 1]
    assert ids(tracker, boxes(0.1, (0, 0), (13, 0), names="pp")) == [2, 3]


def test_assignment_is_the_best_of_all_and_not_the_nearest_first() -> None:
    tracker = Tracker()
    assert ids(tracker, boxes(0.0, (0, 0), (1.5, 0))) == [0, 1]
    # The nearest pair first (1.4 to track 1) would leave 3.0 to nobody.
    assert ids(tracker, boxes(0.1, (1.4, 0), (3.0, 0))) == [0, 1]


def test_motion_of_the_vehicle_is_not_motion_of_the_objects() -> None:
    tracker = Tracker(position_std_m=0.1)
    for step in range(5):
        fixed_from_base = np.eye(4)
        fixed_from_base[0, 3] = 3.0 * step
        assert ids(tracker, boxes(step * 0.1, (50 - 3.0 * step, 2)), fixed_from_base) == [0]


@pytest.mark.parametrize("turn", [0.0, 1.1])
def test_a_vehicle_is_not_continued_by_a_box_aside_of_it(turn: float) -> None:
    """Seen once it may have any speed, but along its heading; a pedestrian goes anywhere."""
    fixed_from_boxes = np.eye(4)
    fixed_from_boxes[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]

    def continued(place: tuple[float, float], name: str) -> bool:
        tracker = Tracker()
        first = ids(tracker, boxes(0.0, (0, 0), names=name), fixed_from_boxes)
        return ids(tracker, boxes(0.3, place, names=name), fixed_from_boxes) == first

    assert continued((6, 0), "c")
    assert continued((6, 1.5), "c"), "the middle of a box is known to half a metre"
    assert not continued((0, 4), "c")
    assert not continued((6, -4), "c")
    assert continued((0, 2), "p")


def test_covariances_tell_the_errors_of_places_and_velocities() -> None:
    """The squared error in units of its covariance is on the average the number of its dimensions."""
    random, turn = np.random.default_rng(5), 0.7
    fixed_from_boxes = np.eye(4)
    fixed_from_boxes[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    squared = []
    for _ in range(300):
        tracker = Tracker(position_std_m=0.3)
        place, speed = np.zeros(2), random.normal(0, (VEHICLE.speed, VEHICLE.sideways))
        for step in range(9):
            off = random.normal(0, 0.3, 2)
            tracked = tracker.step(boxes(step * 0.1, tuple(place + off), velocity=(0, 0)), fixed_from_boxes)
            error = np.concatenate((off, tracked.velocity[0] - speed))
            push = random.normal(0, VEHICLE.acceleration, 2)
            place, speed = place + 0.1 * speed + 0.005 * push, speed + 0.1 * push
        assert tracked.covariance is not None
        squared.append(error @ np.linalg.inv(tracked.covariance[0]) @ error)
    assert 3.5 < np.mean(squared) < 4.5


def test_the_velocity_of_a_box_seen_once_is_known_along_and_across_its_heading() -> None:
    found = replace(boxes(0.0, (9, 0)), yaw=np.array([np.pi / 2], np.float32))
    tracked = Tracker(position_std_m=0.5).step(found, np.eye(4))
    assert tracked.covariance is not None
    assert np.allclose(tracked.covariance[0], np.diag([0.25, 0.25, 2.0**2, 12.0**2]), atol=1e-5)


def test_boxes_of_another_time_are_less_sure_of_their_place() -> None:
    tracked = Tracker().step(boxes(0.0, (9, 0), names="p"), np.eye(4))
    later = tracked.at(tracked.stamp_ns + 500_000_000).covariance
    assert later is not None
    assert np.allclose(np.diag(later[0]), [0.25 + 0.25 * 4, 0.25 + 0.25 * 4, 4, 4])
    assert np.isclose(later[0, 0, 2], 0.5 * 4)
