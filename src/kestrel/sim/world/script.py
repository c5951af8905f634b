# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The scripted part of a drive: the ego route, and for every station the road users that make its event."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from kestrel.sim.world.cars import Model
from kestrel.sim.world.cast import Cast
from kestrel.sim.world.ground import KERB
from kestrel.sim.world.layout import (
    CROSSING_BEGIN,
    CROSSING_END,
    CRUISE,
    RUN_IN,
    STOP_BEGIN,
    STOP_END,
    Junction,
    Layout,
    Road,
    Station,
)
from kestrel.sim.world.path import Path
from kestrel.sim.world.routes import through
from kestrel.sim.world.rules import (
    Brake,
    ChangePath,
    Gate,
    Light,
    Pace,
    Signal,
    StopAt,
    WaitFor,
    Yield,
    always,
    ego_passes,
)
from kestrel.sim.world.traffic import Driver, Traffic, Walker

EGO_FRONT, EGO_REAR, EGO_WIDTH = 3.7, 1.0, 1.95
"""Ends of the ego vehicle from base_link (its rear axle), and its width, metres."""


class Script:
    """Builds the ego route and casts the road users of all events."""

    def __init__(self, rng: np.random.Generator, cast: Cast, layout: Layout, scene: str) -> None:
        self._rng = rng
        self.cast = cast
        self._layout = layout
        self._scene = scene
        self.lights: dict[float, Light] = {}
        self.gates: list[Gate] = []
        self._cut_ins: list[tuple[int, float]] = []
        profile = layout.main.profile
        turns = [station for station in layout.stations if station.turn]
        self.lane = int(rng.integers(profile.lanes))
        if any(station.event == "cut_in" for station in layout.stations):
            self.lane = int(rng.integers(profile.lanes))
        if turns:
            self.lane = 0 if turns[0].turn > 0 else profile.lanes - 1
        self.path = self._route(turns[0] if turns else None)
        start = float(self.path.project(layout.main.path.position(RUN_IN)[None])[0][0])
        cruise = CRUISE[scene] * float(rng.uniform(0.85, 1.12))
        ego = Driver(
            0,
            self.path,
            start,
            cruise * float(rng.uniform(0.75, 1.0)),
            cruise,
            EGO_FRONT,
            EGO_REAR,
            EGO_WIDTH,
        )
        self.traffic = Traffic(ego, reach=2 if scene == "highway" else 1)
        self.cruise = cruise

    def _route(self, turn: Station | None) -> Path:
        main = self._layout.main
        if turn is None:
            return main.lane(self.lane, True)
        junction = next(j for j in self._layout.junctions if j.s == turn.s)
        start, end = junction.arms[2], junction.arms[1 if turn.turn > 0 else 3]
        assert start is not None
        assert end is not None
        return through(start, self.lane, end, 0 if turn.turn > 0 else end.road.profile.lanes - 1)[0]

    def driver(
        self,
        model: Model,
        path: Path,
        s: float,
        speed: float,
        desired: float | None = None,
        *,
        trail: float = 0.0,
    ) -> Driver | None:
        """Put a vehicle on the road; None where there is no room. No actor is made then.

        trail: metres from the middle of the vehicle to the end of what it tows.
        """
        length, width, _ = model[1]
        wish = self.cruise if desired is None else desired
        driver = Driver(-1, path, s, speed, wish, length / 2, max(length / 2, trail), width)
        if not self.traffic.add(driver):
            return None
        driver.actor = self.cast.add(model).track_id
        return driver

    def ego_s(self, s: float) -> float:
        """Arc length of the ego path abreast of arc length ``s`` of the main road."""
        return float(self.path.project(self._layout.main.path.position(s)[None])[0][0])

    def place_all(self) -> None:
        """Set the lights, then cast every station."""
        junctions = {junction.s: junction for junction in self._layout.junctions}
        for station in self._layout.stations:
            if station.s in junctions:
                self._set_light(junctions[station.s], red=station.event == "ego_stopping")
        leads = {"lead_braking", "jam"}
        lead = self._add_lead() if any(s.event in leads for s in self._layout.stations) else None
        for station in self._layout.stations:
            junction = junctions.get(station.s)
            if station.event in ("crossing_from_left", "crossing_from_right"):
                self._cast_crossing(station, junction)
            elif station.event == "oncoming_turn" and junction is not None:
                self._cast_oncoming(junction)
            elif station.event == "cut_in":
                self._cast_cut_in(station)
            elif station.event in leads and lead is not None:
                self._cast_braking(station, lead)

    def _set_light(self, junction: Junction, *, red: bool) -> None:
        arm = junction.arms[2]
        assert arm is not None
        stop = self.ego_s(junction.s - arm.start - STOP_BEGIN) - 0.6
        light = Light(2 * len(self.lights), stop, not red, float(self._rng.uniform(1.5, 4.0)))
        self.lights[junction.s] = light
        self.traffic.signals += [lambda: light.main_green, lambda: light.cross_green]
        self.traffic.updates.append(light)
        self.traffic.ego.rules.append(StopAt(stop, light.main_red))

    def _add_lead(self) -> Driver | None:
        headway = EGO_FRONT + 5.0 + self.cruise * float(self._rng.uniform(0.9, 1.4))
        ego = self.traffic.ego
        lead = self.driver(self.cast.vehicle(), self.path, ego.s + headway, ego.speed, self.cruise * 1.1)
        if lead is not None:
            signal = ego_passes(self.ego_s(self._layout.stations[-1].s))
            lead.rules.append(Pace(headway + 2.0, always, signal))
        return lead

    def _cast_braking(self, station: Station, lead: Driver) -> None:
        s = self.ego_s(station.s) - float(self._rng.uniform(15, 40))
        jam = station.event == "jam" or self._rng.random() < 0.3
        slow = (
            float(self._rng.uniform(0.0, 2.0)) if jam else lead.desired * float(self._rng.uniform(0.25, 0.5))
        )
        hold = float(self._rng.uniform(0.6, 2.0))
        lead.rules.append(Brake(ego_passes(s), float(self._rng.uniform(2.3, 3.8)), slow, hold))

    def _cast_cut_in(self, station: Station) -> None:
        """A vehicle beside the ego vehicle, or one that is parked, moves into its lane."""
        profile, rng = self._layout.main.profile, self._rng
        trigger = self.ego_s(station.s) - float(rng.uniform(20, 35))
        neighbours = [lane for lane in (self.lane - 1, self.lane + 1) if 0 <= lane < profile.lanes]
        if not neighbours:
            self._cast_pull_out(station)
            return
        lane = neighbours[int(rng.integers(len(neighbours)))]
        lead = EGO_FRONT + float(rng.uniform(5.0, 9.0)) + 0.25 * self.cruise
        ego = self.traffic.ego
        begin, end = -profile.lane(lane), -profile.lane(self.lane)
        duration = float(rng.uniform(2.8, 4.2))
        first = self._layout.main.lane(lane, True)
        model = self.cast.vehicle(heavy=0.7)
        earlier = [place for _, place in self._cut_ins]
        start = ego.s + lead + model[1][0] / 2 + len(earlier) * (30.0 + 1.2 * self.cruise)
        abreast = float(first.project(self.path.position(start)[None])[0][0])
        driver = self.driver(model, first, abreast, ego.speed, self.cruise)
        if driver is None:
            return

        def signal(traffic: Traffic) -> bool:
            s, _ = self.path.project(driver.path.position(driver.s)[None])
            room = 3.0 + 1.5 * max(traffic.ego.speed - driver.speed, 0.0)
            return traffic.ego.s >= trigger and float(s[0]) - driver.rear > traffic.ego.s + EGO_FRONT + room

        since = ego_passes(earlier[-1]) if earlier else always
        self._cut_ins.append((lane, trigger))
        driver.rules.append(Pace(lead + driver.rear, since, signal))
        merge = ChangePath(signal, lambda d: self._merge(d, begin, end, duration), 1 if end > begin else -1)
        driver.rules.append(merge)

    @property
    def reserved(self) -> set[int]:
        """Lanes from which someone cuts in; other traffic keeps away from the ego vehicle there."""
        return {lane for lane, _ in self._cut_ins}

    def _merge(self, driver: Driver, begin: float, end: float, duration: float) -> tuple[Path, float]:
        """From one offset of the main road to another, starting at the driver, and the metres it takes."""
        main = self._layout.main.path
        s, _ = main.project(driver.path.position(driver.s)[None])
        length = max(driver.speed * duration, 11.0)
        t = np.clip((main.s - s[0]) / length, 0.0, 1.0)
        return main.offset(begin + (end - begin) * t * t * (3.0 - 2.0 * t)), length

    def _cast_pull_out(self, station: Station) -> None:
        """A vehicle at the kerb, or in the mouth of a drive, moves off into the ego lane."""
        profile, rng = self._layout.main.profile, self._rng
        main = self._layout.main.path
        begin = -(profile.half - 1.05) if profile.edge > 1.5 else -(profile.half + 1.3)
        s = station.s + float(rng.uniform(0, 8))
        model = self.cast.car()
        driver = self.driver(model, main.offset(begin), s, 0.0, self.cruise)
        if driver is None:
            return
        driver.s = float(driver.path.project(main.position(s, begin)[None])[0][0])
        driver.parked = True
        signal = ego_passes(self.ego_s(s) - max(24.0, self.cruise * 2.4))
        driver.rules.append(WaitFor(driver.s + driver.front, signal, brisk=self.cruise))
        end = -profile.lane(self.lane)
        driver.rules.append(ChangePath(signal, lambda d: self._merge(d, begin, end, 3.0), 1))

    def _add_gate(self, before: float, behind: float) -> Gate:
        self.gates.append(Gate(before, behind))
        return self.gates[-1]

    def _junction_gate(self, junction: Junction) -> Gate:
        """Gate at the stop lines of the main road."""
        ahead, back = junction.arms[0], junction.arms[2]
        assert ahead is not None
        assert back is not None
        return self._add_gate(junction.s - back.start - STOP_END, junction.s + ahead.start + STOP_END)

    def _gap(self, junction: Junction, own: Driver, trigger: float, *, across: bool) -> Signal:
        """True once the ego vehicle has come to ``trigger``, could still stop, and the junction is empty.

        across: ``own`` crosses the lanes of oncoming traffic too, which must be empty as well.
        """
        reach = max(arm.start for arm in junction.arms if arm is not None) + 1.0
        back = junction.arms[2]
        assert back is not None
        hold = self.ego_s(junction.s - back.start - STOP_BEGIN)

        def signal(traffic: Traffic) -> bool:
            ego = traffic.ego
            if ego.s < trigger or ego.s + EGO_FRONT + ego.speed**2 / 7.0 > hold:
                return False
            along = self.path.at(ego.s)[2]
            for other in traffic.drivers[1:]:
                x, y, heading = other.path.at(other.s)
                near = math.hypot(x - junction.centre[0], y - junction.centre[1])
                inside = near < (reach if other.speed > 0.3 else reach - 6.0)
                against = math.cos(heading - along) < -0.7 and not across
                if inside and not against and other is not own and other.path.length > other.s:
                    return False
            return True

        return signal

    def _notice(self) -> float:
        """Distance at which someone starts to cross, far enough to brake."""
        return max(18.0, self.cruise**2 / 5.6 + 6.0) + float(self._rng.uniform(0, 4))

    def _cast_crossing(self, station: Station, junction: Junction | None) -> None:
        side = 1.0 if station.event == "crossing_from_left" else -1.0
        if junction is not None and station.kind == "cross" and self._rng.random() < 0.65:
            self._cast_cross_vehicle(junction, side)
            return
        s = station.s
        if junction is not None:
            arm = junction.arms[2]
            assert arm is not None
            s = junction.s - arm.start - (CROSSING_BEGIN + CROSSING_END) / 2
        self.cast_pedestrians(self._layout.main, s, side, scripted=True)

    def cast_pedestrians(self, road: Road, s: float, side: float, *, scripted: bool) -> None:
        """People, or a cyclist, on the crossing at ``s``; the ego vehicle lets scripted ones cross."""
        rng, profile = self._rng, road.profile
        wait = profile.half + 0.5
        place = self.ego_s(s) if scripted else 0.0
        trigger = ego_passes(place - self._notice() - (3.0 if side > 0 else 0.0))
        gate = self._add_gate(s - 3.4, s + 3.4) if scripted else None
        rider = scripted and rng.random() < 0.25
        for index in range(1 if rider else int(rng.choice([1, 1, 2, 3]))):
            shift = float(rng.uniform(-1.2, 1.2))
            model = self.cast.bicycle(rider=True) if rider else self.cast.person()
            actor = self.cast.add(model)
            depth = wait + (1.5 if rider else 0.35 * index + float(rng.uniform(0, 0.5)))
            ends = road.path.position(
                np.array([s + shift, s + shift]), np.array([side * depth, -side * (wait + 4.0)])
            )
            path = Path(ends)
            kerbs = (depth - profile.half, depth + profile.half)
            speed = float(rng.uniform(3.0, 4.5) if rider else np.clip(rng.normal(1.6, 0.3), 1.1, 2.6))
            walker = Walker(actor.track_id, path, 0.0, speed, _kerb_height(*kerbs), trigger)
            self.traffic.walkers.append(walker)
            if gate is not None:
                self.traffic.ego.rules.append(
                    Yield(place - 3.2, walker, trigger, 1.9 if rider else 1.7, gate)
                )

    def _cast_cross_vehicle(self, junction: Junction, side: float) -> None:
        """Someone on the side road drives straight across in front of the ego vehicle."""
        rng = self._rng
        start, end = (
            (junction.arms[1], junction.arms[3]) if side > 0 else (junction.arms[3], junction.arms[1])
        )
        assert start is not None
        assert end is not None
        path, stop = through(start, 0, end, 0)
        model = self.cast.vehicle(heavy=0.6) if rng.random() < 0.65 else self.cast.cycle(rider=True)
        back = float(rng.uniform(0.0, 14.0))
        driver = self.driver(model, path, stop - model[1][0] / 2 - 0.5 - back, 3.0 if back > 3 else 0.0, 8.0)
        if driver is None:
            return
        place = self.ego_s(junction.s)
        arm = junction.arms[2]
        assert arm is not None
        early = 5.0 if side < 0 else 7.0
        signal = self._gap(junction, driver, place - arm.start - self._notice() - early, across=True)
        driver.rules.append(WaitFor(stop, signal, brisk=8.0))
        hold = self.ego_s(junction.s - arm.start - STOP_BEGIN)
        self.traffic.ego.rules.append(
            Yield(hold, driver, signal, 1.6 + driver.rear, self._junction_gate(junction))
        )

    def _cast_oncoming(self, junction: Junction) -> None:
        """Someone who comes towards the ego vehicle turns left across its lane."""
        start, end, arm = junction.arms[0], junction.arms[3], junction.arms[2]
        assert start is not None
        assert end is not None
        assert arm is not None
        path, stop = through(start, 0, end, end.road.profile.lanes - 1)
        model = self.cast.vehicle(heavy=0.4)
        place = self.ego_s(junction.s)
        wait = stop + 4.0
        ahead = max(place - self.traffic.ego.s - 32.0, 0.0)
        begin = wait - model[1][0] / 2 - min(ahead * float(self._rng.uniform(0.6, 1.0)), 70.0)
        driver = self.driver(model, path, begin, min(7.0, self.cruise), 9.0)
        if driver is None:
            return
        signal = self._gap(junction, driver, place - arm.start - self._notice() - 7.0, across=False)
        driver.rules.append(WaitFor(wait, signal, brisk=8.0))
        hold = self.ego_s(junction.s - arm.start - STOP_BEGIN)
        self.traffic.ego.rules.append(
            Yield(hold, driver, signal, 1.6 + driver.rear, self._junction_gate(junction))
        )


def _kerb_height(first: float, second: float) -> Callable[[float], float]:
    """Height of the ground along a way across a road, whose kerbs are at two arc lengths."""
    return lambda s: 0.0 if first < s < second else KERB
