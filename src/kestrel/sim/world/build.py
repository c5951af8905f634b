# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Build a world from a scene, a town and a seed."""

from __future__ import annotations

import numpy as np

from kestrel.errors import ConfigError, describe
from kestrel.sim.scene import Actor, ActorState, EgoState, Mesh, Weather
from kestrel.sim.semantics import MOTOR_VEHICLES
from kestrel.sim.world.cast import STANDING_PHASE, Cast
from kestrel.sim.world.crowd import Crowd
from kestrel.sim.world.events import EventReader
from kestrel.sim.world.ground import Paver
from kestrel.sim.world.layout import Layout, build_layout
from kestrel.sim.world.lights import RoadLights
from kestrel.sim.world.lots import lay_lots
from kestrel.sim.world.mesh import MeshBuilder
from kestrel.sim.world.people import PHASES
from kestrel.sim.world.raster import FreeSpace, MapRaster, rectangle
from kestrel.sim.world.scenery import Scenery
from kestrel.sim.world.script import Script
from kestrel.sim.world.terrain import Terrain
from kestrel.sim.world.towns import SCENES, town_named
from kestrel.sim.world.traffic import STEP_S, Motion
from kestrel.sim.world.weather import build_weather
from kestrel.types import BevMap, Float64Array, UInt8Array

AFTERMATH_S = 4.0
"""Traffic runs on so long after the drive, for events that show what they become later."""

REACH = 88.0
"""How far from the roads there is anything, metres."""


class TownWorld:
    """A town with its traffic; implements scene.World."""

    def __init__(self, static: Mesh, cast: Cast, motion: Motion, layers: MapRaster, weather: Weather) -> None:
        self._static = static
        self._actors = cast.actors
        self._standing = list(cast.standing)
        self._motion = motion
        self._layers = layers
        self._weather = weather
        sizes = np.array([cast.actors[int(a)].size[:2] for a in motion.actor]).reshape(-1, 2)
        self._events = EventReader(motion, sizes).names()
        motor = np.array([cast.actors[int(a)].semantic in MOTOR_VEHICLES for a in motion.actor], bool)
        self._lights = RoadLights(motion, motor, weather.name)
        self._phased = np.array([len(cast.actors[int(a)].meshes) > 1 for a in motion.actor], bool)

    @property
    def static(self) -> Mesh:
        """Everything that never moves and has no box."""
        return self._static

    @property
    def actors(self) -> dict[int, Actor]:
        """All actors by track id."""
        return self._actors

    @property
    def weather(self) -> Weather:
        """Light and air of the drive."""
        return self._weather

    def _moment(self, time_s: float) -> tuple[int, float]:
        """Step before a time, and the share of the step that has passed since."""
        steps = len(self._motion.ego_s)
        place = min(max(time_s / STEP_S, 0.0), steps - 1.0)
        index = min(int(place), steps - 2)
        return index, place - index

    def _nearest(self, time_s: float) -> int:
        """Step nearest to a time."""
        k, f = self._moment(time_s)
        return k + (f >= 0.5)

    def actor_states(self, time_s: float) -> list[ActorState]:
        """Where every actor that exists at ``time_s`` is."""
        k, f = self._moment(time_s)
        motion = self._motion
        position = motion.position[k] * (1 - f) + motion.position[k + 1] * f
        yaw = motion.yaw[k] * (1 - f) + motion.yaw[k + 1] * f
        speed = motion.speed[k] * (1 - f) + motion.speed[k + 1] * f
        travelled = motion.travelled[k] * (1 - f) + motion.travelled[k + 1] * f
        phase = np.where(motion.walks[k], (travelled * PHASES).astype(int) % PHASES, STANDING_PHASE)
        phase = np.where(self._phased, phase, 0)
        velocity = np.column_stack([speed * np.cos(yaw), speed * np.sin(yaw)])
        lights = self._lights.movers(self._nearest(time_s), time_s)
        exists = motion.exists[k] & motion.exists[k + 1]
        moving = zip(
            motion.actor[exists].tolist(), position[exists].tolist(), yaw[exists].tolist(),
            velocity[exists].tolist(), phase[exists].tolist(), lights[exists].tolist(),
            motion.parked[exists].tolist(), strict=True,
        )  # fmt: skip
        return self._standing + [
            ActorState(i, (p[0], p[1], p[2]), y, (v[0], v[1]), pose, lit, parked)
            for i, p, y, v, pose, lit, parked in moving
        ]

    def signals(self, time_s: float) -> UInt8Array:
        """What is lit in every group of traffic signals."""
        return self._lights.signals(self._nearest(time_s))

    def ego(self, time_s: float) -> EgoState:
        """Motion of the sensor vehicle."""
        k, f = self._moment(time_s)
        motion = self._motion
        speeds, places = motion.ego_speed, motion.ego_s
        step = places[k + 1] - places[k]
        h1, h2, h3 = f * f * (3 - 2 * f), f * (1 - f) ** 2, f * f * (f - 1)
        s = places[k] + step * h1 + STEP_S * (speeds[k] * h2 + speeds[k + 1] * h3)
        speed = float(speeds[k] * (1 - f) + speeds[k + 1] * f)
        forward = float(motion.ego_acceleration[k] * (1 - f) + motion.ego_acceleration[k + 1] * f)
        path = motion.ego_path
        heading, turning = float(path.direction(s)), path.curvature(s) * speed
        x, y = path.position(s)
        cos, sin = np.cos(heading), np.sin(heading)
        return EgoState(
            map_from_base=np.array(
                [(cos, -sin, 0, x), (sin, cos, 0, y), (0, 0, 1, 0), (0, 0, 0, 1)], np.float64
            ),
            velocity=np.array([speed, 0.0, 0.0]),
            angular_velocity=np.array([0.0, 0.0, turning]),
            acceleration=np.array([forward, speed * turning, 0.0]),
        )

    def bev_map(self, map_from_base: Float64Array, *, lower: float, resolution: float, cells: int) -> BevMap:
        """Truth map layers (0 or 1) on a square grid of base_link."""
        return self._layers.around(map_from_base, lower=lower, resolution=resolution, cells=cells)

    def event(self, time_s: float) -> str:
        """What goes on in front of the vehicle."""
        return self._events[self._nearest(time_s)]


def build_world(scene: str, town: str, seed: int, seconds: float, weather: str | None = None) -> TownWorld:
    """Build a town and let its traffic run.

    Args:
        scene: urban, suburban or highway.
        town: a name in towns.TOWNS.
        seed: 0 or more; same arguments, same world, byte for byte.
        seconds: length of the drive.
        weather: day, dusk, fog or rain; None draws one.

    Raises:
        ConfigError: an argument has a value that is not allowed.
    """
    if scene not in SCENES:
        raise ConfigError(describe("scene", expected=list(SCENES), found=scene))
    if not 0.0 < seconds <= 120.0:
        raise ConfigError(describe("seconds", expected="more than 0, at most 120", found=seconds))
    if seed < 0:
        raise ConfigError(describe("seed", expected="0 or more", found=seed))
    style = town_named(town)
    key = [seed, SCENES.index(scene), sum(town.encode())]
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(key).spawn(6)]
    layout = build_layout(streams[0], style, scene, seconds)
    cast = Cast(streams[1], style)
    script = Script(streams[2], cast, layout, scene)
    script.place_all()
    Crowd(streams[3], script, layout, scene).fill()
    ground = Paver(streams[4], style, layout, scene).pave()
    lower, upper = _bounds(layout)
    paved = [p for layer in ("drivable_area", "walkway") for p in ground.polygons[layer]]
    lots = FreeSpace(paved, lower, upper)
    paved += lay_lots(streams[4], style, layout, ground, lots, cast)
    space = FreeSpace(paved, lower, upper)
    for state in cast.standing:
        length, width, _ = cast.actors[state.track_id].size
        space.claim(rectangle(np.array(state.position[:2]), length + 0.6, width + 0.6, state.yaw))
    terrain = Terrain(streams[5], space, scene)
    scenery = Scenery(streams[5], style, layout, scene, space, terrain).furnish(script)
    builder = MeshBuilder()
    builder.add_mesh(ground.builder.build())
    builder.add_mesh(scenery)
    terrain.add(builder, style, REACH)
    motion = script.traffic.run(seconds + AFTERMATH_S)
    layers = MapRaster(ground.polygons, ground.islands, lower, upper)
    return TownWorld(builder.build(), cast, motion, layers, build_weather(streams[0], weather))


def _bounds(layout: Layout) -> tuple[Float64Array, Float64Array]:
    points = np.concatenate([road.path.points for road in layout.roads])
    return points.min(0) - REACH - 8.0, points.max(0) + REACH + 8.0
