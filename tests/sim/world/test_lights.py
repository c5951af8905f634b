# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Lights say what their vehicles do, and signals what the traffic may do."""

from __future__ import annotations

import numpy as np
import pytest

from kestrel.sim.lamps import SIGNAL_GROUP, Lamp, Lights
from kestrel.sim.scene import ActorState
from kestrel.sim.semantics import MOTOR_VEHICLES, Semantic
from kestrel.sim.world import TownWorld, build_world
from kestrel.sim.world.path import Path, from_curvature
from tests.sim.world.conftest import SECONDS

STEP_S = 0.1


def _tracks(world: TownWorld) -> list[dict[int, ActorState]]:
    times = np.arange(0, round(SECONDS / STEP_S)) * STEP_S
    return [{state.track_id: state for state in world.actor_states(float(t))} for t in times]


def _speed(state: ActorState) -> float:
    return float(np.hypot(*state.velocity))


def test_brake_lights_are_on_exactly_while_slowing_down(worlds: list[TownWorld]) -> None:
    slowing = 0
    for world in worlds:
        frames = _tracks(world)
        for before, now, after in zip(frames, frames[1:], frames[2:], strict=False):
            for track, state in now.items():
                if (
                    world.actors[track].semantic not in MOTOR_VEHICLES
                    or track not in before
                    or track not in after
                ):
                    continue
                change = (_speed(after[track]) - _speed(before[track])) / (2 * STEP_S)
                if change < -0.65:
                    slowing += 1
                    assert state.lights & Lights.BRAKE, (track, change)
                elif change > -0.25 and _speed(state) > 0.35:
                    assert not state.lights & Lights.BRAKE, (track, change)
    assert slowing > 1000


def test_the_vehicle_that_makes_the_event_lead_braking_shows_brake_lights(worlds: list[TownWorld]) -> None:
    seen = 0
    for world in worlds:
        for time_s in np.arange(0.0, SECONDS, STEP_S):
            if world.event(float(time_s)) != "lead_braking":
                continue
            base_from_map = np.linalg.inv(world.ego(float(time_s)).map_from_base)
            ahead = []
            for state in world.actor_states(float(time_s)):
                x, y = (base_from_map @ np.array([*state.position, 1.0]))[:2]
                if 3.0 < x < 45.0 and abs(y) < 4.0:
                    ahead.append(bool(state.lights & Lights.BRAKE))
            seen += 1
            assert any(ahead), (world.weather.name, time_s)
    assert seen > 20


@pytest.mark.parametrize(
    ("event", "lights"), [("cut_in", Lights.LEFT | Lights.RIGHT), ("oncoming_turn", Lights.LEFT)]
)
def test_who_cuts_in_or_turns_blinks(worlds: list[TownWorld], event: str, lights: Lights) -> None:
    blinking = []
    for world in worlds:
        times = np.arange(0.0, SECONDS, STEP_S)
        names = [world.event(float(t)) for t in times]
        if event in names:
            first = names.index(event)
            during = times[max(first - 3, 0) : first + 7]
            shown = [{s.track_id for s in world.actor_states(float(t)) if s.lights & lights} for t in during]
            steady = set.intersection(*shown)
            assert not steady, "indicators blink"
            blinking.append(bool(set.union(*shown)))
    assert blinking
    assert all(blinking)


def test_indicators_blink_one_and_a_half_times_a_second(worlds: list[TownWorld]) -> None:
    changes = []
    for world in worlds:
        times = np.arange(0.0, 4.0, 1 / 30)
        on = [{s.track_id for s in world.actor_states(float(t)) if s.lights & Lights.LEFT} for t in times]
        for track in on[0] & on[-1]:
            lit = np.array([track in now for now in on])
            changes.append(int(np.count_nonzero(np.diff(lit.astype(int)))))
    assert changes
    assert max(changes) in (11, 12, 13)


def test_parked_vehicles_and_people_are_dark(worlds: list[TownWorld]) -> None:
    for world in worlds:
        states = world.actor_states(1.0)
        parked = {state.track_id for state in states if state.velocity == (0.0, 0.0)}
        lit = {state.track_id for state in states if state.lights}
        assert all(world.actors[track].semantic in MOTOR_VEHICLES for track in lit)
        assert len(parked - lit) > len(parked) / 2


def test_traffic_drives_with_lights_on_when_it_is_dim() -> None:
    for weather, expected in (("day", False), ("fog", True)):
        world = build_world("urban", "alder", 3, 2.0, weather)
        moving = [s for s in world.actor_states(1.0) if _speed(s) > 1.0]
        motor = [s for s in moving if world.actors[s.track_id].semantic in MOTOR_VEHICLES]
        assert motor
        assert all(bool(s.lights & Lights.DRIVING) is expected for s in motor)


def test_every_motor_vehicle_carries_lamps_of_its_own_class(worlds: list[TownWorld]) -> None:
    for world in worlds:
        for actor in world.actors.values():
            mesh = actor.meshes[0]
            kinds = set(mesh.lamp.tolist())
            if actor.semantic not in MOTOR_VEHICLES:
                assert kinds == {Lamp.NONE}
                continue
            assert {Lamp.REAR, Lamp.LEFT, Lamp.RIGHT} <= kinds, actor.semantic
            assert (mesh.semantic[mesh.lamp > 0] == actor.semantic).all()
            if actor.semantic in (Semantic.CAR, Semantic.VAN):
                assert {Lamp.STOP, Lamp.HEAD} <= kinds
            middle = mesh.vertices[mesh.triangles[mesh.lamp == Lamp.REAR]].mean((0, 1))
            assert abs(middle[0]) > 0.2 * actor.size[0]


def test_signals_turn_from_red_to_green_when_the_traffic_starts(worlds: list[TownWorld]) -> None:
    switched = 0
    for world in worlds:
        assert world.static.lamp.max() < SIGNAL_GROUP * (len(world.signals(0.0)) + 1)
        states = np.array([world.signals(float(t)) for t in np.arange(0.0, SECONDS, STEP_S)])
        assert set(np.unique(states)) <= {Lights.RED, Lights.AMBER, Lights.GREEN}
        for main, cross in zip(states.T[::2], states.T[1::2], strict=True):
            assert not ((main == Lights.GREEN) & (cross == Lights.GREEN)).any()
            switched += int((main[:-1] == Lights.RED) @ (main[1:] == Lights.GREEN))
            assert not ((cross[:-1] == Lights.GREEN) & (cross[1:] == Lights.RED)).any()
    assert switched >= 1


def test_bends_of_roads_are_no_turns() -> None:
    bend = from_curvature(np.full(40, 0.02), np.zeros(2), 0.0)
    assert bend.turns == []
    corner = from_curvature(np.r_[np.zeros(30), np.full(12, -0.13), np.zeros(30)], np.zeros(2), 0.0)
    ((start, end, side),) = corner.turns
    assert side == -1
    assert 25 < start < 35 < 40 < end < 48
    assert Path(corner.points[::-1]).turns[0][2] == 1
