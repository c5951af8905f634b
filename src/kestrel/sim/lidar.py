# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A spinning LiDAR in the simulated world: which way it shoots, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from kestrel.sim.caster import Hits, WorldCaster
from kestrel.sim.rig import LidarSpec
from kestrel.sim.scene import Texture, Weather, World
from kestrel.sim.semantics import Semantic
from kestrel.sim.showroom import MovingActors, Pairs
from kestrel.sim.surfaces import BoolArray
from kestrel.types import Float32Array, Float64Array, PointCloud, UInt8Array, UInt16Array

POSES_PER_SWEEP: Final = 9
"""Ego poses that are computed per sweep; those of the firings between are interpolated."""

GLASS_RETURN: Final = 0.15
"""Share of shots on glass that return."""

RANDOM_DROPOUT: Final = 0.01
"""Share of shots that are lost for no visible reason."""

DIFFUSE: Final = 0.8
"""Share of the returned energy that depends on the angle of incidence; rough ground returns the rest."""


@dataclass(frozen=True)
class Sweep:
    """One turn: the cloud in the sensor's frame, with the semantic and the instance of each point."""

    cloud: PointCloud
    semantic: UInt8Array
    instance: UInt16Array


class Lidar:
    """The LiDAR of one drive."""

    def __init__(self, spec: LidarSpec, caster: WorldCaster, world: World) -> None:
        self._spec = spec
        self._caster = caster
        self._world = world
        rings = len(spec.elevation_rad)
        column = np.arange(spec.columns)
        azimuth = np.pi - 2 * np.pi * (column + 0.5) / spec.columns
        cosine, sine = np.cos(spec.elevation_rad), np.sin(spec.elevation_rad)
        directions = np.empty((spec.columns, rings, 3), np.float32)
        directions[..., 0] = np.cos(azimuth)[:, None] * cosine
        directions[..., 1] = np.sin(azimuth)[:, None] * cosine
        directions[..., 2] = sine
        self._directions = directions.reshape(-1, 3)
        self._column_time_s = ((column + 0.5) / spec.columns / spec.hz).astype(np.float32)
        self._ring = np.tile(np.arange(rings, dtype=np.uint16), spec.columns)

    def sweep(self, time_s: float, stamp_ns: int, rng: np.random.Generator) -> Sweep:
        """Return the sweep that starts at ``time_s``."""
        spec = self._spec
        rings = len(spec.elevation_rad)
        map_from_lidar = self._poses(time_s)
        local = _turn_about_z(self._directions, rng.uniform(-0.5, 0.5) * 2 * np.pi / spec.columns)
        shaped = local.reshape(spec.columns, rings, 3)
        rays = np.empty((spec.columns, rings, 6), np.float32)
        rays[..., :3] = map_from_lidar[:, None, :3, 3]
        rays[..., 3:] = shaped @ map_from_lidar[:, :3, :3].swapaxes(1, 2)
        delay = np.repeat(self._column_time_s, rings)
        hits = Hits.of(rays.reshape(-1, 6))
        self._caster.cast_static(hits, np.arange(len(hits.rays)))
        sensor = map_from_lidar[0, :3, 3].astype(np.float64)
        actors = self._caster.moving_actors(time_s, sensor, spec.range_m[1])
        self._caster.add_actors(hits, actors, self._candidates(actors, map_from_lidar), delay)
        distance, intensity, semantic, kept = self._returns(hits, rng)
        points = np.empty((len(distance), 4), np.float32)
        points[:, :3] = local * distance[:, None]
        points[:, 3] = intensity
        instance = np.where(semantic == Semantic.VOID, np.uint16(0), hits.instance)
        cloud = PointCloud(points[kept], stamp_ns, "lidar", self._ring[kept], delay[kept])
        return Sweep(cloud, semantic[kept], instance[kept])

    def _poses(self, time_s: float) -> Float32Array:
        knots = np.linspace(0.0, 1.0 / self._spec.hz, POSES_PER_SWEEP)
        poses = np.stack(
            [self._world.ego(time_s + knot).map_from_base @ self._spec.base_from_lidar for knot in knots]
        )
        position = np.interp(self._column_time_s, knots, np.arange(POSES_PER_SWEEP))
        lower = np.minimum(position.astype(int), POSES_PER_SWEEP - 2)
        weight = (position - lower)[:, None, None]
        blended: Float64Array = poses[lower] * (1 - weight) + poses[lower + 1] * weight
        return blended.astype(np.float32)

    def _candidates(self, actors: MovingActors, map_from_lidar: Float32Array) -> Pairs:
        """Pair each actor with the rays of all columns that may meet the ball around it."""
        spec = self._spec
        rings = len(spec.elevation_rad)
        centre, radius = actors.ball()
        azimuth = np.pi - 2 * np.pi * (np.arange(spec.columns) + 0.5) / spec.columns
        rotation, sensor = map_from_lidar[:, :3, :2], map_from_lidar[:, :3, 3]
        x = y = np.zeros(1)
        for axis in range(3):
            ahead = centre[:, axis, None] + self._column_time_s * actors.velocity[:, axis, None]
            ahead -= sensor[:, axis]
            x = x + rotation[:, axis, 0] * ahead
            y = y + rotation[:, axis, 1] * ahead
        square, reach = x * x + y * y, radius[:, None]
        # Within asin(reach / distance) of the ball's middle, and two columns more for the turn of the sweep.
        margin = 4 * np.pi / spec.columns
        tangent = np.sqrt(np.maximum(square - reach**2, 0)) * np.cos(margin) - reach * np.sin(margin)
        along = x * np.cos(azimuth) + y * np.sin(azimuth)
        actor, column = np.nonzero((along > tangent) | (square < (1.1 * reach) ** 2))
        return Pairs.of_runs(actor, column * rings, np.full(len(column), rings))

    def _returns(
        self, hits: Hits, rng: np.random.Generator
    ) -> tuple[Float32Array, Float32Array, UInt8Array, BoolArray]:
        """Return range, intensity, semantic of every shot, and which shots return."""
        spec, table, weather = self._spec, self._caster.table, self._world.weather
        shots = len(hits.distance)
        chance = rng.random((3, shots), np.float32)
        noise = rng.standard_normal((2, shots), np.float32)
        hit = np.isfinite(hits.distance)
        distance = np.where(hit, hits.distance, np.float32(1.0))
        cosine = np.abs(np.einsum("nk,nk->n", hits.normal, hits.rays[:, 3:]))
        echo = table.reflectivity[hits.triangle] * (1 - DIFFUSE + DIFFUSE * cosine)
        echo *= np.exp(-2 * np.float32(_lidar_extinction(weather)) * distance)
        relative = echo / 0.1 * (spec.reference_range_m / distance) ** 2
        probability = relative**2 / (1 + relative**2) * (1 - RANDOM_DROPOUT - 0.04 * weather.rain)
        glass = hit & (table.texture[hits.triangle] == Texture.GLASS)
        probability[glass] *= GLASS_RETURN
        kept = hit & (chance[0] < probability)
        semantic = np.where(hit, table.semantic[hits.triangle], np.uint8(Semantic.VOID))
        intensity = np.clip(echo + 0.01 * noise[1], 0.0, 1.0)
        distance = distance + noise[0] * (spec.range_noise_m + spec.range_noise_per_m * distance)
        _add_drops(weather, chance, hit & kept, distance, intensity, semantic, kept)
        kept &= (distance > spec.range_m[0]) & (distance < spec.range_m[1])
        return distance.astype(np.float32), intensity.astype(np.float32), semantic, kept


def _add_drops(
    weather: Weather,
    chance: Float32Array,
    solid: BoolArray,
    distance: Float32Array,
    intensity: Float32Array,
    semantic: UInt8Array,
    kept: BoolArray,
) -> None:
    """Let some shots return from rain drops or fog near the sensor, in place."""
    share = 0.004 * weather.rain + min(0.01, 0.2 * weather.fog_per_m)
    near = 1.5 - 6.0 * np.log(np.maximum(chance[1], 1e-6))
    drop = (chance[2] < share) & (~solid | (near < distance))
    distance[drop] = near[drop]
    intensity[drop] = 0.01 + 0.03 * chance[0][drop]
    semantic[drop] = Semantic.VOID
    kept |= drop


def _lidar_extinction(weather: Weather) -> float:
    return 0.7 * weather.fog_per_m + 0.002 * weather.rain


def _turn_about_z(vectors: Float32Array, angle: float) -> Float32Array:
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y, z = vectors.T
    return np.stack([cosine * x - sine * y, sine * x + cosine * y, z], axis=1)
