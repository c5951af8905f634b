# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Everything beside the roads that never moves: buildings, trees and street furniture."""

from __future__ import annotations

import numpy as np

from kestrel.sim.scene import Mesh, Texture
from kestrel.sim.semantics import Semantic
from kestrel.sim.world import furniture, vegetation
from kestrel.sim.world.buildings import add_block, add_hall, add_house
from kestrel.sim.world.frontage import Frontage
from kestrel.sim.world.ground import KERB
from kestrel.sim.world.layout import STOP_BEGIN, Junction, Layout, Road
from kestrel.sim.world.mesh import Finish, MeshBuilder, box
from kestrel.sim.world.raster import FreeSpace, rectangle
from kestrel.sim.world.script import Script
from kestrel.sim.world.terrain import Terrain
from kestrel.sim.world.towns import Town
from kestrel.types import Float64Array


class Scenery:
    """Places buildings, plants and furniture on free ground along the roads."""

    def __init__(
        self,
        rng: np.random.Generator,
        town: Town,
        layout: Layout,
        scene: str,
        space: FreeSpace,
        terrain: Terrain,
    ) -> None:
        self.builder = MeshBuilder()
        self._rng, self._town, self._layout, self._scene = rng, town, layout, scene
        self._column_rng = rng.spawn(1)[0]  # of its own: everything else stays where it was without columns
        self._space, self._terrain = space, terrain
        crowns = [vegetation.broadleaf(rng, town) for _ in range(5)]
        self._trees = crowns + [vegetation.conifer(rng, town) for _ in range(2)]
        self._bushes = [vegetation.bush(rng, town) for _ in range(4)]
        self._tufts = [vegetation.grass_tuft(rng, town) for _ in range(3)]
        self._frontage = Frontage(self.builder, rng, town, space, terrain) if town.frontage else None

    def furnish(self, script: Script) -> Mesh:
        """Place everything and return it as one mesh."""
        for junction in self._layout.junctions:
            self._at_junction(junction, script)
        for road in self._layout.roads:
            for side in (-1, 1):
                if self._scene == "highway":
                    self._along_highway(road, side)
                else:
                    self._along_street(road, side)
        self._scatter()
        return self.builder.build()

    def _put(self, mesh: Mesh, place: Float64Array, yaw: float, z: float, scale: float = 1.0) -> None:
        self.builder.add_mesh(mesh, (float(place[0]), float(place[1]), z), yaw, scale)

    def _ground_z(self, place: Float64Array) -> float:
        return float(self._terrain.height(place[None])[0])

    def _along_street(self, road: Road, side: int) -> None:
        rng = self._rng
        profile = road.profile
        for start, end in road.stretches():
            if self._frontage is None:
                self._lots(road, side, start, end)
            else:
                self._frontage.line(road, side, start, end)
            for s in np.arange(start + rng.uniform(3, 9), end - 2.0, rng.uniform(*self._town.tree_spacing)):
                if rng.random() < 0.75:
                    self._street_tree(road, s, side)
            spacing = float(rng.uniform(22, 34))
            poles = [furniture.lamp(rng), furniture.wooden_pole(rng)]
            pole = poles[int(self._scene == "suburban" and rng.random() < 0.5)]
            for s in np.arange(start + rng.uniform(2, 12), end, spacing):
                place = road.path.position(s, side * (profile.half + 0.45))
                self._put(pole, place, float(road.path.direction(s)) - side * np.pi / 2, KERB)
            for s in np.arange(start + rng.uniform(6, 20), end, rng.uniform(18, 40)):
                place = road.path.position(s, side * (profile.half + 0.5))
                yaw = float(road.path.direction(s)) + (0.0 if side < 0 else np.pi)
                self._put(furniture.sign(rng), place, yaw, KERB)
            for s in np.arange(start + rng.uniform(2, 9), end - 2.0, rng.uniform(9, 22)):
                place = road.path.position(s, side * (profile.outer - 0.55))
                piece = vegetation.planter(rng, self._town) if rng.random() < 0.15 else furniture.clutter(rng)
                self._put(piece, place, float(road.path.direction(s)) + side * np.pi, KERB)
            self._columns(road, side, start, end)
            if end - start > 30.0 and rng.random() < 0.3:
                s = rng.uniform(start + 8, end - 8)
                place = road.path.position(s, side * (profile.outer - 0.9))
                self._put(
                    furniture.bus_shelter(rng), place, float(road.path.direction(s)) - side * np.pi / 2, KERB
                )

    def _columns(self, road: Road, side: int, start: float, end: float) -> None:
        """What is as thick and as high as a person, at the kerb or at the back of the sidewalk."""
        rng = self._column_rng
        for s in np.arange(start + rng.uniform(3, 40), end - 3.0, rng.uniform(15, 50)):
            left = road.profile.half + 0.65 if rng.random() < 0.4 else road.profile.outer - 0.55
            yaw = float(road.path.direction(s)) + rng.normal(0, 0.1)
            self._put(furniture.column(rng), road.path.position(s, side * left), yaw, KERB)

    def _street_tree(self, road: Road, s: float, side: int) -> None:
        rng = self._rng
        left = side * (road.profile.outer + rng.uniform(0.5, 1.6))
        place = road.path.position(s, left)
        if self._space.claim(rectangle(place, 0.9, 0.9, 0.0)):
            tree = self._trees[int(rng.integers(len(self._trees)))]
            self._put(tree, place, rng.uniform(0, 6.3), self._ground_z(place), float(rng.uniform(0.7, 1.15)))

    def _lots(self, road: Road, side: int, start: float, end: float) -> None:
        """Buildings in a row along one side, with what bounds their lots, and a second row behind."""
        rng, town = self._rng, self._town
        urban = self._scene == "urban"
        s = start + rng.uniform(0, 4)
        while s < end - 8.0:
            hall = rng.random() < 0.1
            length = float(
                rng.uniform(20, 34) if hall else rng.uniform(10, 24) if urban else rng.uniform(8, 14)
            )
            depth = float(
                rng.uniform(14, 24) if hall else rng.uniform(9, 15) if urban else rng.uniform(7, 11)
            )
            back = float(rng.uniform(*town.setback)) + (0.0 if urban else float(rng.uniform(4, 9)))
            add = add_hall if hall else add_block if urban else add_house
            if rng.random() < 0.9:
                for row, behind in enumerate((0.0, depth + float(rng.uniform(6, 14)))):
                    left = side * (road.profile.outer + back + depth / 2 + behind)
                    place = road.path.position(s + length / 2, left)
                    yaw = float(road.path.direction(s + length / 2)) + (0.0 if side > 0 else np.pi)
                    if self._space.claim(rectangle(place, length + 0.1, depth + 1.2, yaw)):
                        add(self.builder, rng, town, (length, depth), place, yaw)
                    elif row == 0:
                        break
            if back > 2.2:
                self._bound_lot(road, side, s, length)
            s += length + (float(rng.choice([0.4, 0.4, 3.0, 6.0])) if urban else float(rng.uniform(4, 10)))

    def _bound_lot(self, road: Road, side: int, s: float, length: float) -> None:
        """Hedge or fence between sidewalk and front garden, bushes behind it."""
        rng = self._rng
        left = side * (road.profile.outer + 0.7)
        span = max(length - 4.0, 3.0)
        place = road.path.position(s + span / 2, left)
        yaw = float(road.path.direction(s + span / 2))
        straight = abs(float(road.path.direction(s + span) - road.path.direction(s))) < 0.08
        roll = rng.random()
        if straight and roll < 0.7 and self._space.claim(rectangle(place, span, 0.5, yaw)):
            mesh = vegetation.hedge(rng, self._town, span) if roll < 0.35 else furniture.fence(rng, span)
            self._put(mesh, place, yaw, self._ground_z(place))
        for _ in range(int(rng.integers(0, 3))):
            place = road.path.position(s + rng.uniform(0, length), left + side * rng.uniform(0.8, 2.5))
            if self._space.claim(rectangle(place, 0.8, 0.8, 0.0)):
                bush = self._bushes[int(rng.integers(len(self._bushes)))]
                self._put(
                    bush, place, rng.uniform(0, 6.3), self._ground_z(place), float(rng.uniform(0.6, 1.3))
                )

    def _at_junction(self, junction: Junction, script: Script) -> None:
        """Traffic lights or signs at the stop line of every arm."""
        rng = self._rng
        light = script.lights[junction.s]
        for arm in junction.arms:
            if arm is None:
                continue
            half = arm.road.profile.half
            place = arm.at(STOP_BEGIN, half + 0.5)
            inward = arm.at(0.0, 0.0) - arm.at(1.0, 0.0)
            yaw = float(np.arctan2(inward[1], inward[0]))
            if junction.signals:
                group = light.group if arm.road.main else light.group + 1
                reach = half - arm.road.profile.edge - 0.8 if rng.random() < 0.6 else 0.0
                self._put(furniture.traffic_light(group, reach=reach), place, yaw, KERB)
            else:
                self._put(furniture.sign(rng), place, yaw, KERB)

    def _along_highway(self, road: Road, side: int) -> None:
        """Guard rails, gantries, a noise wall, trees and some sheds far out."""
        rng, profile = self._rng, road.profile
        length = road.path.length
        wall = (rng.uniform(0, length), rng.uniform(60, 200)) if rng.random() < 0.5 else (0.0, 0.0)
        panel = furniture.guard_rail(12.0)
        concrete = Finish(Semantic.BUILDING, (150, 150, 144), Texture.CONCRETE, 0.4)
        for s in np.arange(6.0, length - 6.0, 12.0):
            yaw = float(road.path.direction(s))
            self._put(panel, road.path.position(s, side * (profile.half + 0.5)), yaw, 0.0)
            if side > 0 and profile.median > 1.0:
                self._put(panel, road.path.position(s, 0.0), yaw, KERB)
            if wall[0] < s < sum(wall):
                own = MeshBuilder()
                own.add(box((12.0, 0.3, 4.0), (0, 0, 1.6)), concrete)
                self._put(own.build(), road.path.position(s, side * (profile.half + 3.5)), yaw, 0.0)
        for s in np.arange(rng.uniform(20, 120), length, rng.uniform(120, 220)):
            if side < 0:
                self._put(
                    furniture.gantry(2 * profile.half + 3.0),
                    road.path.position(s),
                    float(road.path.direction(s)),
                    0.0,
                )
        for s in np.arange(rng.uniform(5, 30), length, rng.uniform(28, 50)):
            place = road.path.position(s, side * (profile.half + 1.2))
            piece = furniture.lamp(rng) if rng.random() < 0.5 else furniture.sign(rng)
            self._put(piece, place, float(road.path.direction(s)) + (0.0 if side < 0 else np.pi), 0.0)
        for s in np.arange(rng.uniform(0, 60), length - 30.0, rng.uniform(60, 130)):
            size = (float(rng.uniform(18, 34)), float(rng.uniform(12, 22)))
            place = road.path.position(s, side * (profile.half + rng.uniform(28, 50)))
            yaw = float(road.path.direction(s)) + (0.0 if side > 0 else np.pi)
            if self._space.claim(rectangle(place, size[0] + 1, size[1] + 1, yaw)):
                add_hall(self.builder, rng, self._town, size, place, yaw)

    def _scatter(self) -> None:
        """Trees, bushes and high grass on what ground is left."""
        rng = self._rng
        extent = np.array(self._space.taken.shape) * 0.5
        for meshes, count, size, reach in (
            (self._trees, 260, 2.0, 45.0),
            (self._bushes, 260, 1.0, 25.0),
            (self._tufts, 420, 0.5, 14.0),
        ):
            places = self._space.lower + rng.uniform(0, 1, (count * 4, 2)) * extent
            distance = self._space.distance_at(places)
            near = places[(distance > 1.2) & (distance < reach)][:count]
            heights = self._terrain.height(near)
            for place, z in zip(near, heights, strict=True):
                if self._space.claim(rectangle(place, size, size, 0.0)):
                    mesh = meshes[int(rng.integers(len(meshes)))]
                    self._put(mesh, place, rng.uniform(0, 6.3), float(z), float(rng.uniform(0.7, 1.25)))
