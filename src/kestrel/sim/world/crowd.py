# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Everyone who only happens to be there: other traffic, parked vehicles, people on foot."""

from __future__ import annotations

import numpy as np

from kestrel.sim.world.cars import Model
from kestrel.sim.world.cast import STANDING_PHASE, Cast
from kestrel.sim.world.ground import KERB
from kestrel.sim.world.layout import STOP_END, Junction, Layout, Road
from kestrel.sim.world.path import Path
from kestrel.sim.world.routes import inbound, outbound, through
from kestrel.sim.world.rules import Signal, StopAt, always, never
from kestrel.sim.world.script import Script
from kestrel.sim.world.traffic import Driver, Walker
from kestrel.sim.world.works import RoadWorks, clear_of_traffic


class Crowd:
    """Fills a scripted world with the rest of its road users."""

    def __init__(self, rng: np.random.Generator, script: Script, layout: Layout, scene: str) -> None:
        self._rng = rng
        self._script = script
        self._cast: Cast = script.cast
        self._layout = layout
        self._scene = scene
        self._density = float(rng.uniform(0.5, 1.3))

    def fill(self) -> None:
        """Add everyone; moving vehicles first, so that they find room."""
        self._with_ego()
        self._oncoming()
        for junction in self._layout.junctions:
            self._side_traffic(junction)
        if self._scene == "highway":
            RoadWorks(self._rng, self._script, self._layout, self._scene).place()
            return
        for road in self._layout.roads:
            for side in (-1, 1):
                if road.profile.edge > 1.2 and self._rng.random() < 0.3:
                    self._cyclists(road, side)
                elif road.profile.parking:
                    self._park_along(road, side)
            self._pedestrians(road)
        self._waiting_at_crossings()
        RoadWorks(self._rng, self._script, self._layout, self._scene).place()

    def _with_ego(self) -> None:
        """Vehicles in the direction of the ego vehicle, behind it and far ahead, on all lanes."""
        script, rng, main = self._script, self._rng, self._layout.main
        ego = script.traffic.ego
        for lane in range(main.profile.lanes):
            path = script.path if lane == script.lane else main.lane(lane, True)
            here = float(path.project(script.path.position(ego.s)[None])[0][0])
            gap = 28.0 if self._scene != "highway" else 55.0
            places = [here - rng.uniform(12, 26), here - rng.uniform(40, 60)]
            s = here + rng.uniform(-8, 30)
            if lane == script.lane or lane in script.reserved:
                s = here + rng.uniform(65, 100)
            while s < path.length - 40.0:
                places.append(s)
                s += rng.uniform(0.7, 2.2) * gap / self._density
            for place in places:
                if rng.random() < 0.75:
                    wish = script.cruise * float(rng.uniform(0.9, 1.2))
                    driver = self._drive(path, place, wish * 0.95, wish)
                    if driver is not None and (lane != script.lane or place > here):
                        self._obey(driver, forward=True)

    def _model(self) -> Model:
        """A vehicle, or now and then a motorcycle with its rider."""
        if self._rng.random() < 0.07:
            return self._cast.motorcycle(rider=True)
        return self._cast.vehicle(heavy=2.0 if self._scene == "highway" else 1.3)

    def _drive(self, path: Path, s: float, speed: float, wish: float) -> Driver | None:
        """Put some vehicle on the road; now and then one with a trailer."""
        if self._rng.random() > (0.14 if self._scene == "highway" else 0.06):
            return self._script.driver(self._model(), path, s, speed, wish)
        trailer = self._cast.trailer()
        model = self._cast.tractor()
        back = model[1][0] / 2 - 2.2 + trailer[1][0] / 2
        driver = self._script.driver(model, path, s, speed, wish, trail=back + trailer[1][0] / 2)
        if driver is not None:
            driver.towed = (self._cast.add(trailer).track_id, back)
        return driver

    def _obey(self, driver: Driver, *, forward: bool) -> None:
        """Stop at red lights of the main road, and where someone crosses it."""
        main = self._layout.main.path
        stops: list[tuple[np.ndarray, Signal]] = []
        for junction in self._layout.junctions:
            arm = junction.arms[2 if forward else 0]
            assert arm is not None
            stops.append((arm.at(STOP_END, 0.0), self._script.lights[junction.s].main_red))
        for gate in self._script.gates:
            stops.append((main.position(gate.before if forward else gate.behind), gate.closed))
        for place, closed in stops:
            s, _ = driver.path.project(place[None])
            if driver.s + driver.front < s[0]:
                driver.rules.append(StopAt(float(s[0]), closed))

    def _oncoming(self) -> None:
        script, rng, main = self._script, self._rng, self._layout.main
        for lane in range(main.profile.lanes):
            path = main.lane(lane, False)
            s = rng.uniform(0, 40)
            while s < path.length - 30.0:
                wish = script.cruise * float(rng.uniform(0.85, 1.15))
                driver = self._drive(path, float(s), wish, wish)
                if driver is not None:
                    self._obey(driver, forward=False)
                s += rng.uniform(20, 75) / self._density * (1.4 if self._scene == "highway" else 1.0)

    def _side_traffic(self, junction: Junction) -> None:
        """Vehicles that wait on the side roads for their light, or drive away."""
        script, rng = self._script, self._rng
        light = script.lights[junction.s]
        for index in (1, 3):
            arm = junction.arms[index]
            if arm is None:
                continue
            across = junction.arms[(index + 2) % 4]
            straight = across is not None and rng.random() < 0.6
            goal = across if straight else junction.arms[(index + 1) % 4]
            goal = goal if straight else (junction.arms[0] if index == 3 else junction.arms[2])
            assert goal is not None
            path, stop = through(arm, arm.road.profile.lanes - 1, goal, goal.road.profile.lanes - 1)
            back = 0.5
            for _ in range(int(rng.integers(0, 4))):
                model = self._model()
                length = model[1][0]
                place = stop - back - length / 2 - (0.0 if rng.random() < 0.6 else rng.uniform(5, 25))
                driver = script.driver(model, path, float(place), 0.0, 8.5)
                if driver is not None:
                    driver.rules.append(StopAt(stop, light.cross_red))
                back += length + 2.5
            away = outbound(arm, 0)
            if rng.random() < 0.6:
                script.driver(self._model(), away, float(rng.uniform(8, 50)), 7.0, 8.5)
            if rng.random() < 0.5:
                lane = inbound(arm, 0)
                driver = script.driver(
                    self._model(), lane, float(rng.uniform(0.2, 0.6)) * lane.length, 6.0, 8.0
                )
                if driver is not None:
                    driver.rules.append(StopAt(lane.length, always))

    def _park_along(self, road: Road, side: int) -> None:
        """Vehicles at the kerb in the direction of traffic, some with a gap, some a little askew."""
        rng, profile = self._rng, road.profile
        for start, end in road.stretches(7.5):
            s = start + rng.uniform(1, 8)
            while s < end - 6.0:
                if rng.random() > self._script.cast.town.parked_rate or self._near_zebra(road, s):
                    s += 6.2
                    continue
                roll = rng.random()
                model = self._cast.motorcycle(rider=False) if roll < 0.06 else self._cast.car()
                model = self._cast.truck() if roll > 0.96 else model
                length, width, _ = model[1]
                left = side * (profile.half - 0.2 - width / 2)
                place = road.path.position(s + length / 2, left)
                yaw = float(road.path.direction(s + length / 2)) + (np.pi if side > 0 else 0.0)
                if clear_of_traffic(self._script, place, length):
                    self._cast.stand(model, place, yaw + rng.normal(0, 0.015))
                s += length + rng.uniform(0.7, 1.8)

    def _near_zebra(self, road: Road, s: float) -> bool:
        return road.main and any(abs(s - zebra) < 9.0 for zebra in self._layout.zebras)

    def _cyclists(self, road: Road, side: int) -> None:
        """Riders on the edge strip, with the traffic of their side."""
        rng = self._rng
        left = side * (road.profile.half - 0.75)
        path = road.path.offset(left)
        path = path if side < 0 else path.reverse()
        s = rng.uniform(5, 60)
        while s < path.length - 20.0:
            model = (
                self._cast.bicycle(rider=True) if rng.random() < 0.8 else self._cast.motorcycle(rider=True)
            )
            speed = float(rng.uniform(3.5, 6.0))
            driver = self._script.driver(model, path, float(s), speed, speed)
            if driver is not None:
                self._stop_before_junctions(driver, road)
            s += rng.uniform(25, 80)

    def _stop_before_junctions(self, driver: Driver, road: Road) -> None:
        for start, end in road.gaps:
            for edge in (start - 5.0, end + 5.0):
                s, _ = driver.path.project(road.path.position(edge)[None])
                if driver.s < s[0]:
                    driver.rules.append(StopAt(float(s[0]), always))

    def _pedestrians(self, road: Road) -> None:
        rng, profile = self._rng, road.profile
        rate = 0.035 * self._script.cast.town.people * (1.0 if self._scene == "urban" else 0.4)
        for start, end in road.stretches(1.0):
            for side in (-1, 1):
                for _ in range(int(rng.poisson(rate * (end - start)))):
                    self._stroll(
                        road, start, end, side * (profile.half + rng.uniform(0.6, profile.sidewalk - 0.3))
                    )
                if rng.random() < 0.5 * self._script.cast.town.people and end - start > 12.0:
                    self._group(road, rng.uniform(start + 4, end - 4), side)

    def _stroll(self, road: Road, start: float, end: float, left: float) -> None:
        rng = self._rng
        path = road.path.offset(left).cut(start, end)
        path = path if rng.random() < 0.5 else path.reverse()
        actor = self._cast.add(self._cast.person())
        speed = float(np.clip(rng.normal(1.35, 0.25), 0.7, 2.6))
        go = always if rng.random() < 0.88 else never
        walker = Walker(actor.track_id, path, float(rng.uniform(0, path.length)), speed, lambda s: KERB, go)
        self._script.traffic.walkers.append(walker)

    def _group(self, road: Road, s: float, side: int) -> None:
        """A few people who stand together and talk, or cycles that lean somewhere."""
        rng, profile = self._rng, road.profile
        centre = road.path.position(s, side * (profile.half + profile.sidewalk * 0.6))
        if rng.random() < 0.6:
            along = float(road.path.direction(s))
            for index in range(int(rng.integers(1, 5))):
                place = centre + 0.75 * index * np.array([np.cos(along), np.sin(along)])
                self._cast.stand(
                    self._cast.bicycle(rider=False), place, along + np.pi / 2 + rng.normal(0, 0.1), KERB
                )
            return
        for index in range(int(rng.integers(2, 4))):
            angle = 2.1 * index + rng.uniform(0, 0.5)
            place = centre + 0.72 * np.array([np.cos(angle), np.sin(angle)])
            self._cast.stand(self._cast.person(), place, angle + np.pi, KERB, STANDING_PHASE)

    def _waiting_at_crossings(self) -> None:
        """People who cross the side roads, and some who wait at the main road."""
        rng = self._rng
        for junction in self._layout.junctions:
            for index in (1, 3):
                arm = junction.arms[index]
                if arm is not None and arm.zebra and rng.random() < 0.5:
                    s = arm.s + arm.direction * (arm.start + 2.3)
                    self._script.cast_pedestrians(arm.road, s, float(rng.choice([-1, 1])), scripted=False)
