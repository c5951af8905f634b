# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Lots beside the roads: car parks with bays, and building sites."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kestrel.sim.scene import Texture
from kestrel.sim.semantics import Semantic
from kestrel.sim.world.cast import STANDING_PHASE, Cast
from kestrel.sim.world.ground import KERB, VERGE, Ground
from kestrel.sim.world.layout import RUN_IN, Layout
from kestrel.sim.world.mesh import Finish
from kestrel.sim.world.raster import FreeSpace, rectangle
from kestrel.sim.world.towns import Town
from kestrel.types import Float64Array

LOT = 0.04
"""Height of car parks, metres."""


@dataclass(frozen=True)
class Lot:
    """A rectangle beside a road. side: +1 where it lies to the left of the road's direction ``heading``."""

    middle: Float64Array
    length: float
    depth: float
    heading: float
    side: int

    @property
    def outline(self) -> Float64Array:
        """Corners (4, 2)."""
        return rectangle(self.middle, self.length, self.depth, self.heading)

    def at(self, along: float, left: float) -> Float64Array:
        """A point (2,) in the lot's own axes."""
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        point: Float64Array = self.middle + np.array([along * cos - left * sin, along * sin + left * cos])
        return point


def lay_lots(
    rng: np.random.Generator, town: Town, layout: Layout, ground: Ground, space: FreeSpace, cast: Cast
) -> list[Float64Array]:
    """Lay car parks and building sites beside the roads; returns their outlines (4, 2)."""
    outlines: list[Float64Array] = []
    for index in range(int(rng.integers(3, 6))):
        road = layout.roads[int(rng.integers(len(layout.roads)))] if rng.random() < 0.3 else layout.main
        stretches = [(a, b) for a, b in road.stretches(3.0) if b - a > 26.0]
        if not stretches:
            continue
        start, end = stretches[int(rng.integers(len(stretches)))]
        if road.main:
            spot = RUN_IN + float(rng.uniform(-25, 170))
            start, end = min(stretches, key=lambda ends: abs(sum(ends) / 2 - spot))
        length = float(min(rng.uniform(20, 46), end - start - 2.0))
        s, side = float(rng.uniform(start, end - length)), int(rng.choice([-1, 1]))
        if abs(float(road.path.direction(s + length) - road.path.direction(s))) > 0.12:
            continue
        depth = float(rng.choice([11.5, 17.0]))
        near = (
            road.profile.outer + float(rng.uniform(VERGE, 3.2)) + (4.0 if not road.profile.sidewalk else 0.0)
        )
        middle = road.path.position(s + length / 2, side * (near + depth / 2))
        lot = Lot(middle, length, depth, float(road.path.direction(s + length / 2)), side)
        if not space.claim(lot.outline):
            continue
        outlines.append(lot.outline)
        if index % 3 == 1 or not road.profile.sidewalk:
            _lay_site(rng, ground, cast, lot)
            continue
        asphalt = Finish(Semantic.PARKING, town.asphalt, Texture.ASPHALT, 0.17)
        ground.fan(middle, lot.outline, LOT, asphalt, "carpark_area")
        ground.polygons["drivable_area"].append(lot.outline)
        ground.kerb(np.concatenate([lot.outline, lot.outline[:1]]), -0.4, LOT, asphalt)
        drive = s + float(rng.uniform(5, length - 5))
        across = side * np.array([road.profile.half - 0.02, near + 0.4])
        edges = [road.path.position(np.array([drive + e, drive + e]), across) for e in (-2.7, 2.7)]
        tarmac = Finish(Semantic.ROAD, town.asphalt, Texture.ASPHALT, 0.16)
        ground.strip(edges[1], edges[0], KERB + 0.012, tarmac, "drivable_area")
        _park_in_rows(rng, cast, ground, lot)
    return outlines


def _lay_site(rng: np.random.Generator, ground: Ground, cast: Cast, lot: Lot) -> None:
    """A building site: bare earth, machines, lorries, heaps, and a row of barriers towards the road."""
    earth = Finish(Semantic.TERRAIN, (134, 112, 86), Texture.CONCRETE, 0.35)
    ground.fan(lot.middle, lot.outline, LOT, earth, None)
    ground.kerb(np.concatenate([lot.outline, lot.outline[:1]]), -0.4, LOT, earth)
    kind = int(rng.integers(4))
    for along in np.arange(-lot.length / 2 + 1.5, lot.length / 2 - 1.4, 2.7):
        if rng.random() < 0.85:
            place = lot.at(along, -lot.side * (lot.depth / 2 - 0.6))
            cast.stand(cast.barrier(kind), place, lot.heading + np.pi / 2 + rng.normal(0, 0.05), LOT)
    makers = [cast.machine, cast.machine, cast.truck, cast.trailer]
    spots = np.arange(-lot.length / 2 + 8.0, lot.length / 2 - 7.0, 15.0)
    for spot in spots:
        model = makers[int(rng.integers(len(makers)))]()
        cast.stand(
            model,
            lot.at(spot, lot.side * 0.8),
            lot.heading + rng.normal(0, 0.2) + rng.choice([0, np.pi]),
            LOT,
        )
        for _ in range(int(rng.integers(0, 4))):
            place = lot.at(spot + rng.uniform(-6, 6), -lot.side * (lot.depth / 2 - 1.9))
            cast.stand(cast.cone(), place, rng.uniform(0, 6), LOT)
        if rng.random() < 0.6:
            place = lot.at(spot + 7.5, rng.uniform(-1, 1))
            cast.stand(cast.person(), place, rng.uniform(0, 6), LOT, STANDING_PHASE)


def _park_in_rows(rng: np.random.Generator, cast: Cast, ground: Ground, lot: Lot) -> None:
    """Bays on one or both long sides of a lot, about half of them taken; something large in the middle."""
    line = Finish(Semantic.LANE_MARKING, (214, 214, 208), Texture.PLAIN, 0.7)
    for row in (-1, 1) if lot.depth > 14.0 else (int(rng.choice([-1, 1])),):
        centre = row * (lot.depth / 2 - 2.75)
        for along in np.arange(-lot.length / 2 + 1.6, lot.length / 2 - 1.4, 2.75):
            sides = [
                np.stack([lot.at(along - 1.375 + e, centre - 2.5), lot.at(along - 1.375 + e, centre + 2.5)])
                for e in (-0.06, 0.06)
            ]
            ground.strip(sides[0], sides[1], LOT + 0.008, line)
            roll = rng.random()
            if roll > 0.54:
                continue
            model = cast.car() if roll < 0.5 else cast.motorcycle(rider=False)
            yaw = lot.heading + np.pi / 2 * rng.choice([-1, 1]) + rng.normal(0, 0.02)
            cast.stand(model, lot.at(along, centre + rng.normal(0, 0.12)), yaw, LOT)
    if lot.length > 28.0 and lot.depth > 14.0 and rng.random() < 0.6:
        model = [cast.trailer, cast.truck, cast.machine, cast.bus][int(rng.integers(4))]()
        cast.stand(model, lot.at(rng.uniform(-4, 4), 0.0), lot.heading + rng.choice([0, np.pi]), LOT)
