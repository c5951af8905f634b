# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Road works: cones and barriers around a machine on the edge strip or the sidewalk."""

from __future__ import annotations

import numpy as np

from kestrel.sim.world.cast import STANDING_PHASE, Cast
from kestrel.sim.world.ground import KERB
from kestrel.sim.world.layout import RUN_IN, Layout, Road
from kestrel.sim.world.script import Script
from kestrel.types import Float64Array


def clear_of_traffic(script: Script, place: Float64Array, length: float) -> bool:
    """Whether no scripted vehicle waits where something ``length`` metres long is to stand."""
    for driver in script.traffic.drivers:
        if driver.speed < 0.5:
            there = driver.path.position(driver.s)
            if float(np.hypot(*(there - place))) < (length + driver.front + driver.rear) / 2 + 6.0:
                return False
    return True


class RoadWorks:
    """Places work zones along the roads."""

    def __init__(self, rng: np.random.Generator, script: Script, layout: Layout, scene: str) -> None:
        self._rng = rng
        self._script = script
        self._cast: Cast = script.cast
        self._layout = layout
        self._scene = scene

    def place(self) -> None:
        """Set up one or more zones, most of them along the main road."""
        rng, main = self._rng, self._layout.main
        count = (
            1 + int(rng.poisson(3.5 * self._script.cast.town.works_rate)) + 2 * int(self._scene == "highway")
        )
        for _ in range(count):
            road = (
                main
                if rng.random() < 0.75
                else self._layout.roads[int(rng.integers(len(self._layout.roads)))]
            )
            stretches = [(a, b) for a, b in road.stretches(9.0) if b - a > 16.0]
            if not stretches:
                continue
            start, end = stretches[int(rng.integers(len(stretches)))]
            s = rng.uniform(start + 2.0, end - 13.0)
            if road is main:
                s = float(rng.uniform(RUN_IN - 10.0, max(main.path.length - 170.0, RUN_IN + 40.0)))
                inside = [(a, b) for a, b in stretches if a < s < b - 12.0]
                if not inside:
                    continue
                end = inside[0][1]
            self._zone(road, s, min(float(rng.uniform(10, 30)), end - s), int(rng.choice([-1, 1])))

    def _zone(self, road: Road, s: float, length: float, side: int) -> None:
        """Close off ``length`` metres of the edge strip or the sidewalk, perhaps with a machine behind."""
        rng, profile = self._rng, road.profile
        on_edge = profile.edge > 1.5
        inner = profile.half - profile.edge + 0.5 if on_edge else profile.half + 0.4
        outer = profile.half - 0.3 if on_edge else profile.half + max(profile.sidewalk, 2.0) - 0.2
        z = 0.0 if on_edge else (KERB if profile.sidewalk else 0.0)
        kind = int(rng.integers(4))
        barriers = rng.random() < 0.7
        spacing = 2.7 if barriers else float(rng.uniform(2.0, 4.0))
        for along in np.arange(s, s + length, spacing):
            yaw = float(road.path.direction(along))
            place = road.path.position(along, side * inner)
            if not self._free(place, 1.6):
                continue
            if barriers:
                self._cast.stand(self._cast.barrier(kind), place, yaw + np.pi / 2 + rng.normal(0, 0.04), z)
            else:
                self._cast.stand(self._cast.cone(), place, yaw + rng.uniform(0, 6), z)
        for along in (s - 1.5, s + length + 0.5):
            for left in np.linspace(inner, outer, 3):
                place = road.path.position(along, side * left)
                if self._free(place, 1.0):
                    self._cast.stand(self._cast.cone(), place, rng.uniform(0, 6), z)
        middle = road.path.position(s + length / 2, side * (max(outer, inner) + (0.0 if on_edge else 2.2)))
        if not on_edge and length > 9.0 and rng.random() < 0.7 and self._free(middle, 4.5):
            yaw = float(road.path.direction(s + length / 2)) + rng.choice([0.0, np.pi])
            self._cast.stand(self._cast.machine(), middle, yaw + rng.normal(0, 0.1), KERB - 0.03)
        for _ in range(int(rng.integers(0, 3))):
            place = road.path.position(s + rng.uniform(1, length), side * (inner + outer) / 2)
            if self._free(place, 0.9):
                self._cast.stand(self._cast.person(), place, rng.uniform(0, 6), z, STANDING_PHASE)

    def _free(self, place: Float64Array, radius: float) -> bool:
        """No standing actor is near."""
        for state in self._cast.standing:
            size = self._cast.actors[state.track_id].size
            distance = np.hypot(state.position[0] - place[0], state.position[1] - place[1])
            if distance < radius + max(size[0], size[1]) / 2:
                return False
        return clear_of_traffic(self._script, place, 0.0)
