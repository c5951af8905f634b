# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Motion: smooth, without collisions of the ego vehicle, and with every event."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from kestrel.classes import EVENTS
from kestrel.sim.scene import ActorState
from kestrel.sim.world import TownWorld
from kestrel.sim.world.path import Path
from kestrel.sim.world.script import EGO_FRONT, EGO_REAR, EGO_WIDTH
from kestrel.sim.world.traffic import Driver, Traffic
from kestrel.types import Float64Array
from tests.sim.world.conftest import SECONDS


def _corners(x: float, y: float, yaw: float, rear: float, front: float, width: float) -> Float64Array:
    own = np.array([(-rear, -width / 2), (front, -width / 2), (front, width / 2), (-rear, width / 2)])
    turned: Float64Array = own @ np.array([(np.cos(yaw), np.sin(yaw)), (-np.sin(yaw), np.cos(yaw))]) + (x, y)
    return turned


def _overlap(a: Float64Array, b: Float64Array) -> bool:
    """Separating-axis test of two rectangles."""
    for edge in (a[1] - a[0], a[2] - a[1], b[1] - b[0], b[2] - b[1]):
        along_a, along_b = a @ edge, b @ edge
        if along_a.max() < along_b.min() or along_b.max() < along_a.min():
            return False
    return True


def _outline(world: TownWorld, state: ActorState) -> Float64Array:
    length, width, _ = world.actors[state.track_id].size
    return _corners(state.position[0], state.position[1], state.yaw, length / 2, length / 2, width)


def test_the_ego_vehicle_touches_nothing(worlds: list[TownWorld]) -> None:
    for world in worlds:
        for time_s in np.arange(0.0, SECONDS, 0.25):
            pose = world.ego(time_s).map_from_base
            yaw = float(np.arctan2(pose[1, 0], pose[0, 0]))
            ego = _corners(pose[0, 3], pose[1, 3], yaw, EGO_REAR, EGO_FRONT, EGO_WIDTH)
            for state in world.actor_states(time_s):
                near = np.hypot(state.position[0] - pose[0, 3], state.position[1] - pose[1, 3]) < 15.0
                assert not (near and _overlap(ego, _outline(world, state))), (time_s, state)


def test_ego_velocity_and_turning_are_the_derivatives_of_its_pose(worlds: list[TownWorld]) -> None:
    step = 0.02
    for world in worlds:
        for time_s in np.arange(0.5, SECONDS - 0.5, 0.71):
            before, now, after = (world.ego(t) for t in (time_s - step, time_s, time_s + step))
            moved = (after.map_from_base[:3, 3] - before.map_from_base[:3, 3]) / (2 * step)
            assert np.allclose(now.map_from_base[:3, :3].T @ moved, now.velocity, atol=0.15)
            turn = before.map_from_base[:3, :3].T @ after.map_from_base[:3, :3]
            rate = np.arctan2(turn[1, 0], turn[0, 0]) / (2 * step)
            assert rate == pytest.approx(now.angular_velocity[2], abs=0.08)


def test_actors_move_with_the_velocity_they_state(worlds: list[TownWorld]) -> None:
    step = 0.05
    for world in worlds:
        before = {s.track_id: s for s in world.actor_states(3.0 - step)}
        after = {s.track_id: s for s in world.actor_states(3.0 + step)}
        errors = []
        for state in world.actor_states(3.0):
            if state.track_id in before and state.track_id in after:
                a, b = before[state.track_id].position, after[state.track_id].position
                moved = (np.array(b[:2]) - a[:2]) / (2 * step)
                errors.append(float(np.hypot(*(moved - state.velocity))))
        assert max(errors) < 1.0
        assert np.median(errors) < 0.05


def test_track_ids_are_unique_at_any_moment(street: TownWorld) -> None:
    ids = [state.track_id for state in street.actor_states(4.2)]
    assert len(ids) == len(set(ids))
    assert set(ids) <= street.actors.keys()


def test_walking_people_move_their_legs_and_standing_ones_do_not(worlds: list[TownWorld]) -> None:
    phases: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}
    for world in worlds:
        for time_s in (2.0, 2.2, 2.4, 2.6):
            for state in world.actor_states(time_s):
                if len(world.actors[state.track_id].meshes) > 1:
                    phases[float(np.hypot(*state.velocity)) > 0.5][state.phase] += 1
    assert set(range(8)) <= set(phases[True])
    assert phases[True][8] < 0.05 * phases[True].total()
    assert phases[False][8] > 0.8 * phases[False].total()


def test_every_event_occurs_and_none_drowns_the_others(worlds: list[TownWorld]) -> None:
    events = Counter(world.event(t) for world in worlds for t in np.arange(0.0, SECONDS, 0.1))
    assert set(events) == set(EVENTS)
    assert events["clear"] < 0.65 * events.total()


def test_an_event_lasts_long_enough_to_be_seen(worlds: list[TownWorld]) -> None:
    for world in worlds:
        names = [world.event(t) for t in np.arange(0.0, SECONDS, 0.1)]
        changes = [0, *(k for k in range(1, len(names)) if names[k] != names[k - 1])]
        assert min(np.diff(changes)[1:], default=99) >= 4


def test_stopped_means_that_the_vehicle_stands(worlds: list[TownWorld]) -> None:
    for world in worlds:
        for time_s in np.arange(0.0, SECONDS, 0.1):
            if world.event(time_s) == "stopped":
                assert world.ego(time_s).velocity[0] < 1.0


def _straight() -> Path:
    return Path(np.array([(0.0, 0.0), (400.0, 0.0)]))


def _car(s: float, speed: float, desired: float) -> Driver:
    return Driver(1, _straight(), s, speed, desired, 2.3, 2.3, 1.9)


def test_a_driver_stops_behind_a_standing_vehicle() -> None:
    traffic = Traffic(_car(0.0, 12.0, 12.0), reach=1)
    assert traffic.add(_car(80.0, 0.0, 0.0))
    traffic.run(20.0)
    gap = traffic.drivers[1].s - traffic.ego.s - 4.6
    assert 0.5 < gap < 5.0
    assert traffic.ego.speed < 0.2


def test_a_driver_reaches_its_desired_speed_on_a_free_road() -> None:
    traffic = Traffic(_car(0.0, 2.0, 12.0), reach=1)
    traffic.run(25.0)
    assert traffic.ego.speed == pytest.approx(12.0, abs=0.5)


def test_nobody_is_put_into_another_vehicle() -> None:
    traffic = Traffic(_car(50.0, 5.0, 5.0), reach=1)
    assert not traffic.add(_car(53.0, 5.0, 5.0))
    assert traffic.add(_car(75.0, 5.0, 5.0))
