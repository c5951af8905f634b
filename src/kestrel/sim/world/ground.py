# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The ground: carriageways, sidewalks, markings and car parks, with the map layers of the same polygons."""

from __future__ import annotations

import numpy as np

from kestrel.classes import MAP_LAYERS
from kestrel.sim.scene import Texture
from kestrel.sim.semantics import Semantic
from kestrel.sim.world.layout import (
    CROSSING_BEGIN,
    CROSSING_END,
    STOP_BEGIN,
    STOP_END,
    Arm,
    Junction,
    Layout,
    Road,
)
from kestrel.sim.world.mesh import Finish, MeshBuilder, Shape
from kestrel.sim.world.path import Path
from kestrel.sim.world.towns import Town
from kestrel.types import Float64Array

KERB = 0.13
"""Height of sidewalks above the road, metres."""

VERGE = 1.2
"""Width of the level strip behind a sidewalk, metres."""

_PAINT = 0.008
_WHITE, _YELLOW = (226, 226, 220), (214, 170, 60)


class Ground:
    """Collects flat surfaces as geometry and, from the same outlines, the polygons of the map layers.

    polygons: for each of classes.MAP_LAYERS the outlines (K, 2) in ``map``. islands: outlines on the
    carriageway that nobody drives on.
    """

    def __init__(self) -> None:
        self.builder = MeshBuilder()
        self.polygons: dict[str, list[Float64Array]] = {layer: [] for layer in MAP_LAYERS}
        self.islands: list[Float64Array] = []

    def strip(
        self, left: Float64Array, right: Float64Array, z: float, finish: Finish, layer: str | None = None
    ) -> None:
        """Surface between two lines (N, 2)."""
        count = len(left)
        vertices = np.column_stack([np.concatenate([left, right]), np.full(2 * count, z)])
        i = np.arange(count - 1)
        triangles = np.concatenate(
            [np.stack([i, i + count, i + count + 1], -1), np.stack([i, i + count + 1, i + 1], -1)]
        )
        self.builder.add((vertices, triangles), finish)
        if layer is not None:
            self.polygons[layer].append(np.concatenate([left, right[::-1]]))

    def fan(
        self, centre: Float64Array, outline: Float64Array, z: float, finish: Finish, layer: str | None
    ) -> None:
        """Surface inside a closed outline (N, 2), all of which is seen from ``centre``."""
        count = len(outline)
        points = np.concatenate([outline, centre[None]])
        i = np.arange(count)
        triangles = np.stack([np.full(count, count), i, (i + 1) % count], -1)
        self.builder.add((np.column_stack([points, np.full(count + 1, z)]), triangles), finish)
        if layer is not None:
            self.polygons[layer].append(outline)

    def kerb(self, line: Float64Array, low: float, high: float, finish: Finish) -> None:
        """Upright face along a line (N, 2)."""
        self.builder.add(_wall(line, low, high), finish)


def _wall(line: Float64Array, low: float, high: float) -> Shape:
    count = len(line)
    vertices = np.concatenate([np.column_stack([line, np.full(count, z)]) for z in (low, high)])
    i = np.arange(count - 1)
    return vertices, np.concatenate(
        [np.stack([i, i + 1, i + count + 1], -1), np.stack([i, i + count + 1, i + count], -1)]
    )


def samples(path: Path, start: float, end: float) -> Float64Array:
    """Arc lengths from ``start`` to ``end``, dense in bends and sparse on straights."""
    bend = abs(float(path.direction(end) - path.direction(start)))
    step = 2.0 if bend > 0.01 else 6.0
    return np.linspace(start, end, max(round((end - start) / step), 1) + 1)


class Paver:
    """Lays all surfaces of a layout."""

    def __init__(self, rng: np.random.Generator, town: Town, layout: Layout, scene: str) -> None:
        self.ground = Ground()
        self._rng = rng
        self._layout = layout
        self._scene = scene
        self._road = Finish(Semantic.ROAD, town.asphalt, Texture.ASPHALT, 0.16)
        self._sidewalk = Finish(Semantic.SIDEWALK, town.paving, Texture.PAVING, 0.32)
        self._kerb = Finish(Semantic.SIDEWALK, (158, 156, 150), Texture.CONCRETE, 0.36)
        self._grass = Finish(Semantic.TERRAIN, town.grass, Texture.GRASS, 0.38)
        self._island = Finish(Semantic.OTHER_GROUND, (142, 138, 124), Texture.PAVING, 0.34)
        self._line = Finish(Semantic.LANE_MARKING, _WHITE, Texture.PLAIN, 0.75)
        middle = _YELLOW if town.yellow_divider else _WHITE
        self._middle = Finish(Semantic.LANE_MARKING, middle, Texture.PLAIN, 0.65)

    def pave(self) -> Ground:
        """Lay everything and return it."""
        for junction in self._layout.junctions:
            self._pave_junction(junction)
        for road in self._layout.roads:
            for start, end in road.stretches():
                self._pave_stretch(road, start, end)
            for start, end in road.stretches(STOP_END):
                self._mark_lanes(road, start, end)
        for s in self._layout.zebras:
            path, half = self._layout.main.path, self._layout.main.profile.half
            self._zebra(path, s - 1.8, s + 1.8, half)
            if self._rng.random() < 0.6:
                self._stop_line(path, s - 3.6, s - 3.1, -half, -self._layout.main.profile.median / 2)
                self._stop_line(path, s + 3.1, s + 3.6, self._layout.main.profile.median / 2, half)
        return self.ground

    def ribbon(
        self,
        path: Path,
        span: tuple[float, float],
        across: tuple[float, float],
        z: float,
        finish: Finish,
        layer: str | None = None,
    ) -> None:
        """Surface along a path, ``across`` being its (right, left) offsets."""
        s = samples(path, *span)
        self.ground.strip(path.position(s, across[1]), path.position(s, across[0]), z, finish, layer)

    def _pave_stretch(self, road: Road, start: float, end: float) -> None:
        profile, path = road.profile, road.path
        self.ribbon(path, (start, end), (-profile.half, profile.half), 0.0, self._road, "drivable_area")
        s = samples(path, start, end)
        if profile.sidewalk:
            for side in (-1, 1):
                across = sorted((side * profile.half, side * profile.outer))
                self.ribbon(path, (start, end), (across[0], across[1]), KERB, self._sidewalk, "walkway")
                self.ground.kerb(path.position(s, side * profile.half), 0.0, KERB, self._kerb)
                self.ground.kerb(path.position(s, side * profile.outer), -0.4, KERB, self._kerb)
                verge = sorted((side * profile.outer, side * (profile.outer + VERGE)))
                self.ribbon(path, (start, end), (verge[0], verge[1]), KERB - 0.035, self._grass)
        if profile.median:
            inner = profile.median / 2 - 0.15
            for begin, stop in self._between_zebras(road, start, end):
                if stop - begin < 6.0:
                    continue
                self.ribbon(path, (begin, stop), (-inner, inner), KERB + 0.02, self._island)
                line = samples(path, begin, stop)
                sides = path.position(line, inner), path.position(line, -inner)
                self.ground.islands.append(np.concatenate([sides[0], sides[1][::-1]]))
                for left in (-inner, inner):
                    self.ground.kerb(path.position(line, left), 0.0, KERB + 0.02, self._island)
                for cap in (begin, stop):
                    ends = path.position(np.array([cap, cap]), np.array([-inner, inner]))
                    self.ground.kerb(ends, 0.0, KERB + 0.02, self._island)

    def _between_zebras(self, road: Road, start: float, end: float) -> list[tuple[float, float]]:
        """Parts of a stretch that no crossing interrupts (8 m clear of junctions and crossings)."""
        begin = start if start <= 0.0 else start + 7.0
        stop = end if end >= road.path.length else end - 7.0
        cuts = [s for s in self._layout.zebras if road.main and begin < s < stop]
        edges = [begin, *[s + side for s in cuts for side in (-4.5, 4.5)], stop]
        return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a]

    def _pave_junction(self, junction: Junction) -> None:
        """Carriageway with kerb curves, sidewalks around the corners, crossings and stop lines."""
        outline: list[Float64Array] = []
        arms = junction.arms
        for index in range(4):
            arm, following = arms[index], arms[(index + 1) % 4]
            if arm is not None:
                outline.append(arm.at(0.0, -arm.road.profile.half)[None])
                outline.append(arm.at(0.0, arm.road.profile.half)[None])
                self._mark_arm(arm, junction)
            if arm is not None and following is not None:
                corner = self._corner(arm, following, junction.radius)
                outline.append(corner)
            elif arm is not None:
                behind = arms[(index + 2) % 4]
                assert behind is not None
                self._straight_kerb(arm, behind)
        self.ground.fan(junction.centre, np.concatenate(outline), 0.0, self._road, "drivable_area")

    def _corner(self, arm: Arm, following: Arm, radius: float) -> Float64Array:
        """Sidewalk around the corner between two arms; returns the kerb curve."""
        begin, end = arm.at(0.0, arm.road.profile.half), following.at(0.0, -following.road.profile.half)
        outward = (arm.at(1.0, 0.0) - arm.at(0.0, 0.0), following.at(1.0, 0.0) - following.at(0.0, 0.0))
        middle = begin + radius * outward[1]
        t = np.linspace(0.0, np.pi / 2, 9)[:, None]
        rays = -np.cos(t) * outward[1] - np.sin(t) * outward[0]
        curve = middle + radius * rays
        curve[0], curve[-1] = begin, end
        width = np.linspace(arm.road.profile.sidewalk, following.road.profile.sidewalk, 9)[:, None]
        back = middle + (radius - width) * rays
        self.ground.strip(back, curve, KERB, self._sidewalk, "walkway")
        self.ground.kerb(curve, 0.0, KERB, self._kerb)
        self.ground.kerb(back, -0.4, KERB, self._kerb)
        return curve

    def _straight_kerb(self, arm: Arm, behind: Arm) -> None:
        """Sidewalk of the main road past a side that has no road."""
        half, outer = arm.road.profile.half, arm.road.profile.outer
        near = np.stack([arm.at(0.0, half), behind.at(0.0, -half)])
        far = np.stack([arm.at(0.0, outer), behind.at(0.0, -outer)])
        self.ground.strip(far, near, KERB, self._sidewalk, "walkway")
        self.ground.kerb(near, 0.0, KERB, self._kerb)
        self.ground.kerb(far, -0.4, KERB, self._kerb)

    def _mark_arm(self, arm: Arm, junction: Junction) -> None:
        profile, path = arm.road.profile, arm.road.path

        def span(a: float, b: float) -> tuple[float, float]:
            ends = sorted((arm.s + arm.direction * (arm.start + a), arm.s + arm.direction * (arm.start + b)))
            return ends[0], ends[1]

        if arm.zebra:
            self._zebra(path, *span(CROSSING_BEGIN, CROSSING_END), profile.half)
        if junction.signals or not arm.road.main or arm.zebra:
            inbound = (
                (-profile.half, -profile.median / 2)
                if arm.direction < 0
                else (profile.median / 2, profile.half)
            )
            self._stop_line(path, *span(STOP_BEGIN, STOP_END), *inbound)

    def _zebra(self, path: Path, start: float, end: float, half: float) -> None:
        finish = Finish(Semantic.CROSSING, _WHITE, Texture.PLAIN, 0.7)
        s = np.array([start, end])
        bars = max(round((2 * half - 0.6) / 1.0), 3)
        for left in np.linspace(-half + 0.55, half - 0.55, bars):
            self.ground.strip(path.position(s, left + 0.25), path.position(s, left - 0.25), _PAINT, finish)
        outline = np.concatenate([path.position(s, half), path.position(s[::-1], -half)])
        self.ground.polygons["ped_crossing"].append(outline)

    def _stop_line(self, path: Path, start: float, end: float, right: float, left: float) -> None:
        s = np.array([start, end])
        finish = Finish(Semantic.STOP_LINE, _WHITE, Texture.PLAIN, 0.7)
        self.ground.strip(path.position(s, left), path.position(s, right), _PAINT, finish)
        wide = np.array([(start + end) / 2 - 0.5, (start + end) / 2 + 0.5])
        outline = np.concatenate([path.position(wide, left), path.position(wide[::-1], right)])
        self.ground.polygons["stop_line"].append(outline)

    def _mark_lanes(self, road: Road, start: float, end: float) -> None:
        profile = road.profile
        for a, b in (
            self._between_zebras(road, start - 2.0, end + 2.0) if not profile.median else [(start, end)]
        ):
            if b - a < 4.0:
                continue
            if profile.median:
                for side in (-1, 1):
                    self._marking(road.path, a, b, side * (profile.median / 2 + 0.12), self._middle)
            elif profile.lanes > 1:
                for left in (-0.12, 0.12):
                    self._marking(road.path, a, b, left, self._middle)
            else:
                self._marking(
                    road.path, a, b, 0.0, self._middle, dash=None if self._rng.random() < 0.3 else 3.0
                )
            for index in range(1, profile.lanes):
                for side in (-1, 1):
                    left = side * (profile.median / 2 + index * profile.lane_width)
                    self._marking(road.path, a, b, left, self._line, dash=3.0)
            if profile.edge > 1.0:
                for side in (-1, 1):
                    self._marking(
                        road.path, a, b, side * (profile.half - profile.edge), self._line, divider=False
                    )
            self._divider_layer(road.path, a, b, 0.0 if not profile.median else profile.median / 2)

    def _divider_layer(self, path: Path, start: float, end: float, left: float) -> None:
        for side in (-left, left) if left else (0.0,):
            self._divider(path, start, end, side)

    def _divider(self, path: Path, start: float, end: float, left: float) -> None:
        s = samples(path, start, end)
        outline = np.concatenate([path.position(s, left + 0.25), path.position(s[::-1], left - 0.25)])
        self.ground.polygons["divider"].append(outline)

    def _marking(
        self,
        path: Path,
        start: float,
        end: float,
        left: float,
        finish: Finish,
        *,
        dash: float | None = None,
        divider: bool = True,
    ) -> None:
        """One painted line, solid or dashed (``dash`` metres of paint, twice that without)."""
        if dash is None:
            self.ribbon(path, (start, end), (left - 0.07, left + 0.07), _PAINT, finish)
        else:
            for begin in np.arange(start, end - dash, 3 * dash):
                s = np.array([begin, begin + dash])
                self.ground.strip(
                    path.position(s, left + 0.07), path.position(s, left - 0.07), _PAINT, finish
                )
        if divider and dash is not None:
            self._divider(path, start, end, left)
