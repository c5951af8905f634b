# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Streets as they have grown: old houses wall to wall, houses askew, walled yards, banks and thickets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from kestrel.sim.scene import Mesh
from kestrel.sim.world import furniture, vegetation, yard
from kestrel.sim.world.buildings import add_block, add_hall
from kestrel.sim.world.dwellings import add_dwelling, draw_front
from kestrel.sim.world.layout import Road
from kestrel.sim.world.mesh import MeshBuilder
from kestrel.sim.world.raster import FreeSpace, rectangle
from kestrel.sim.world.terrain import Terrain
from kestrel.sim.world.towns import Town
from kestrel.types import Float64Array

_FARTHER: Final = (0.0, 0.6, 1.4, 3.0, 5.0)
"""Where the ground is taken, so much farther from the road is tried, metres."""

_STRAIGHT: Final = 0.08
"""Walls and fences are set along a road that turns by less than this over their length, radians."""


class Frontage:
    """Builds up the sides of streets; every parcel is of one of the kinds that the town mixes."""

    def __init__(
        self, builder: MeshBuilder, rng: np.random.Generator, town: Town, space: FreeSpace, terrain: Terrain
    ) -> None:
        self._builder, self._rng, self._town = builder, rng, town
        self._space, self._terrain = space, terrain
        self._kinds: tuple[Callable[[Road, int, float, float], float], ...] = (
            self._terrace, self._detached, self._block, self._walled_yard, self._green, self._hall,
        )  # fmt: skip
        weights = np.array(town.frontage)
        self._weights = weights / weights.sum()

    def line(self, road: Road, side: int, start: float, end: float) -> None:
        """Build up one side of a road between two arc lengths."""
        s = start + float(self._rng.uniform(0, 3))
        while s < end - 7.0:
            kind = self._kinds[int(self._rng.choice(len(self._kinds), p=self._weights))]
            s += kind(road, side, s, end)

    def _frame(self, road: Road, side: int, s: float, away: float) -> tuple[Float64Array, float]:
        """Place ``away`` metres behind the sidewalk, and the heading at which fronts face the road."""
        place = road.path.position(s, side * (road.profile.outer + away))
        return place, float(road.path.direction(s)) + (0.0 if side > 0 else np.pi)

    def _settle(
        self, road: Road, side: int, s: float, away: float, size: tuple[float, float], askew: float = 0.0
    ) -> tuple[Float64Array, float] | None:
        """Take ground of ``size`` (along, deep) whose front is ``away`` or somewhat more from the sidewalk.

        Returns its middle (2,) and the heading of what stands there; None where there is no room.
        """
        for farther in _FARTHER:
            place, yaw = self._frame(road, side, s, away + farther + size[1] / 2)
            if self._space.claim(rectangle(place, *size, yaw + askew)):
                return place, yaw + askew
        return None

    def _put(self, mesh: Mesh, place: Float64Array, yaw: float, scale: float = 1.0) -> None:
        z = float(self._terrain.height(place[None])[0])
        self._builder.add_mesh(mesh, (float(place[0]), float(place[1]), z), yaw, scale)

    def _terrace(self, road: Road, side: int, s: float, end: float) -> float:
        """Houses wall to wall, each a little behind or before the next, none like the other."""
        rng = self._rng
        back, along = float(rng.choice([0.4, 0.6, 1.5, 3.5])), 0.0
        for _ in range(int(rng.integers(2, 7))):
            length, depth = float(rng.uniform(5.0, 11.0)), float(rng.uniform(8.0, 12.0))
            if s + along + length > end:
                break
            away = back + float(rng.choice([0.0, 0.0, 0.3, 0.8]))
            found = self._settle(road, side, s + along + length / 2, away, (length - 0.6, depth))
            if found:
                front = draw_front(rng, self._town.storeys, away)
                add_dwelling(self._builder, rng, self._town, (length, depth), *found, front)
            along += length
        return along + float(rng.choice([0.2, 2.5, 5.0])) if along else 9.0

    def _detached(self, road: Road, side: int, s: float, end: float) -> float:
        """A house in its garden, often askew to the road, with what bounds the garden and stands in it."""
        rng = self._rng
        length, depth = float(rng.uniform(7, 15)), float(rng.uniform(6, 11))
        back = float(rng.choice([0.6, 2.0, 4.0, 8.0])) + float(rng.uniform(0, 2.5))
        askew = float(rng.normal(0, 0.08)) if rng.random() < 0.6 else float(rng.uniform(-0.9, 0.9))
        parcel = length + float(rng.uniform(2, 9))
        found = self._settle(road, side, s + length / 2, back, (length + 0.6, depth + 0.8), askew)
        if found:
            clear = max(back - abs(float(np.sin(askew))) * length / 2, 0.3)
            front = draw_front(rng, (1, 3), clear)
            add_dwelling(self._builder, rng, self._town, (length, depth), *found, front)
        if back > 1.8:
            self._boundary(road, side, s, parcel - 0.6, 0.6)
        self._strew(road, side, s, parcel, (1.2, back + depth), int(rng.integers(1, 5)))
        if rng.random() < 0.6:
            self._partition(road, side, s + parcel - 0.3, float(rng.uniform(4, 12)))
        return parcel

    def _block(self, road: Road, side: int, s: float, end: float) -> float:
        """A plain city building, or one with a deep front."""
        rng = self._rng
        length, depth = float(rng.uniform(10, 24)), float(rng.uniform(9, 15))
        back = float(rng.uniform(0.5, 6.0))
        found = self._settle(road, side, s + length / 2, back, (length - 0.4, depth + 1.2))
        if found and rng.random() < 0.5:
            add_block(self._builder, rng, self._town, (length, depth), *found)
        elif found:
            front = draw_front(rng, (2, 5), back)
            add_dwelling(self._builder, rng, self._town, (length, depth), *found, front)
        return length + float(rng.choice([0.3, 2.5, 6.0]))

    def _walled_yard(self, road: Road, side: int, s: float, end: float) -> float:
        """A wall or fence along the road, sheds, containers and heaps behind it or without it."""
        rng = self._rng
        length = float(rng.uniform(10, 26))
        if rng.random() < 0.7:
            self._boundary(road, side, s, length, 0.6)
        self._strew(road, side, s, length, (1.5, 11.0), int(rng.integers(4, 11)))
        self._partition(road, side, s + length, float(rng.uniform(4, 14)))
        return length + 0.5

    def _green(self, road: Road, side: int, s: float, end: float) -> float:
        """A bank, or thickets and hedges without houses."""
        rng = self._rng
        length = float(rng.uniform(12, 34))
        straight = abs(float(road.path.direction(s + length) - road.path.direction(s))) < 2 * _STRAIGHT
        if straight and rng.random() < 0.6:
            depth = float(rng.uniform(3, 9))
            back = float(rng.uniform(0.5, 5.0))
            found = self._settle(road, side, s + length / 2, back, (length, depth))
            if found:
                self._put(yard.bank(rng, self._town, length, depth), *found)
        for _ in range(int(rng.integers(2, 8))):
            self._set(road, side, s + float(rng.uniform(0, length)), float(rng.uniform(1, 10)), yard.thicket)
        return length

    def _hall(self, road: Road, side: int, s: float, end: float) -> float:
        """A workshop or supermarket with its yard."""
        rng = self._rng
        length, depth = float(rng.uniform(16, 30)), float(rng.uniform(12, 20))
        back = float(rng.uniform(0.5, 10.0))
        found = self._settle(road, side, s + length / 2, back, (length, depth + 1.2))
        if found:
            add_hall(self._builder, rng, self._town, (length, depth), *found)
        self._strew(road, side, s, length, (1.2, max(back, 2.0)), int(rng.integers(0, 4)))
        return length + float(rng.uniform(1, 6))

    def _boundary(self, road: Road, side: int, s: float, length: float, away: float) -> None:
        """A wall, hedge or fence along the road."""
        if abs(float(road.path.direction(s + length) - road.path.direction(s))) < _STRAIGHT and length > 3.0:
            found = self._settle(road, side, s + length / 2, away, (length, 0.4))
            if found:
                self._wall(*found, length)

    def _partition(self, road: Road, side: int, s: float, depth: float) -> None:
        """A wall, hedge or fence away from the road."""
        found = self._settle(road, side, s, 0.8, (0.4, depth))
        if found:
            self._wall(found[0], found[1] + np.pi / 2, depth)

    def _wall(self, place: Float64Array, yaw: float, length: float) -> None:
        rng, town = self._rng, self._town
        roll = rng.random()
        if roll < 0.5:
            self._put(yard.garden_wall(rng, town, length), place, yaw)
        elif roll < 0.7:
            self._put(yard.overgrown_hedge(rng, town, length), place, yaw)
        elif roll < 0.8:
            self._put(vegetation.hedge(rng, town, length), place, yaw, float(rng.uniform(1.0, 1.5)))
        else:
            self._put(furniture.fence(rng, length), place, yaw)

    def _strew(
        self, road: Road, side: int, s: float, length: float, away: tuple[float, float], count: int
    ) -> None:
        """Set so many things onto a parcel, if they find room."""
        rng = self._rng
        for _ in range(count):
            make = yard.THINGS[int(rng.integers(len(yard.THINGS)))]
            self._set(road, side, s + float(rng.uniform(0, length)), float(rng.uniform(*away)), make)

    def _set(
        self, road: Road, side: int, s: float, away: float, make: Callable[[np.random.Generator, Town], Mesh]
    ) -> None:
        rng = self._rng
        mesh = make(rng, self._town)
        length, width = yard.ground_size(mesh).tolist()
        askew = float(rng.normal(0, 0.1)) if rng.random() < 0.6 else float(rng.uniform(-np.pi, np.pi))
        found = self._settle(road, side, s, away, (length + 0.2, width + 0.2), askew)
        if found:
            self._put(mesh, *found)
