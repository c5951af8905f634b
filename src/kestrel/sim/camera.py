# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A camera in the simulated world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from kestrel.sim.blocks import Blocks
from kestrel.sim.caster import NO_TRIANGLE, WorldCaster
from kestrel.sim.compiled import compiled
from kestrel.sim.lamps import GLARE_ANGLE_RAD, GLARE_PER_FOG, GLARE_SHARE, Switches, add_glare
from kestrel.sim.lens import pixel_directions
from kestrel.sim.render import Renderer, develop
from kestrel.sim.rig import CameraSpec
from kestrel.sim.scene import World
from kestrel.sim.semantics import Semantic
from kestrel.sim.shadows import Shadows
from kestrel.sim.sight import Sight
from kestrel.types import Calibration, Float32Array, Float64Array, UInt8Array, UInt16Array

ACTOR_RANGE_M: Final = 150.0
"""How far from the camera moving actors are drawn."""

NOISE_SIGMA: Final = 0.006
_NOISE_SPARE: Final = 65536


@dataclass(frozen=True)
class Picture:
    """RGB (H, W, 3) uint8 with the semantic (H, W) uint8 and the instance (H, W) uint16 of each pixel."""

    rgb: UInt8Array
    semantic: UInt8Array
    instance: UInt16Array


class Camera:
    """One camera of one drive, sending pictures of one size; rays go row by row."""

    def __init__(
        self,
        spec: CameraSpec,
        size: tuple[int, int] | None,
        caster: WorldCaster,
        world: World,
        renderer: Renderer,
    ) -> None:
        self.spec = spec
        self.calibration: Calibration = spec.calibration(size)
        self._caster = caster
        self._world = world
        self._renderer = renderer
        self._blocks = Blocks(pixel_directions(self.calibration))
        self._sight = Sight(self._blocks, caster)
        self._shadows = Shadows(self._blocks, caster, world.weather)
        self._pixel_angle = 1.0 / float(self.calibration.camera_matrix[0, 0])
        pixels = len(self._blocks.directions)
        self._falloff = np.clip(self._blocks.directions[:, 2], 0.2, 1.0) ** np.float32(0.8)
        grain = np.random.default_rng(len(spec.name)).standard_normal(pixels * 3 + _NOISE_SPARE, np.float32)
        self._grain = grain * np.float32(NOISE_SIGMA)

    def take(self, time_s: float, rng: np.random.Generator) -> Picture:
        """Return the picture of ``time_s``."""
        map_from_camera = self._world.ego(time_s).map_from_base @ self.spec.base_from_camera
        actors = self._caster.moving_actors(time_s, map_from_camera[:3, 3], ACTOR_RANGE_M)
        hits = self._sight.look(self._rays(map_from_camera), actors, map_from_camera)
        points, faces = self._renderer.sunny(hits)
        lit = self._shadows.lit(faces, points, hits.distance, actors, map_from_camera)
        radiance = self._renderer.radiance(hits, points, lit, self._pixel_angle)
        lamps, glow = self._renderer.shining(hits, Switches(self._world, time_s))
        if len(lamps):
            self._renderer.add_lamps(radiance, hits, lamps, glow)
            share = GLARE_SHARE + GLARE_PER_FOG * self._world.weather.fog_per_m
            whole = radiance.reshape(*self._blocks.shape, 3)
            add_glare(whole, lamps, glow, GLARE_ANGLE_RAD / self._pixel_angle, share)
        semantic = self._caster.table.semantic.take(hits.triangle)
        semantic[hits.triangle == NO_TRIANGLE] = Semantic.SKY
        offset = int(rng.integers(_NOISE_SPARE))
        grain = self._grain[offset : offset + radiance.size].reshape(-1, 3)
        rgb = np.empty((*self._blocks.shape, 3), np.uint8)
        develop(radiance, self._falloff, grain, rgb.reshape(-1, 3))
        return Picture(rgb, semantic.reshape(self._blocks.shape), hits.instance.reshape(self._blocks.shape))

    def _rays(self, map_from_camera: Float64Array) -> Float32Array:
        """Return the rays (N, 6) of all pixels in map."""
        rays = np.empty((len(self._blocks.directions), 6), np.float32)
        _turn(self._blocks.directions, map_from_camera.astype(np.float32), rays)
        return rays


@compiled
def _turn(directions: Float32Array, map_from_camera: Float32Array, rays: Float32Array) -> None:
    """Fill ``rays`` (N, 6), all of the camera's place, with its directions (N, 3) in map."""
    for pixel in range(len(directions)):
        x, y, z = directions[pixel, 0], directions[pixel, 1], directions[pixel, 2]
        for axis in range(3):
            turned = map_from_camera[axis, 0] * x + map_from_camera[axis, 1] * y
            rays[pixel, axis] = map_from_camera[axis, 3]
            rays[pixel, 3 + axis] = turned + map_from_camera[axis, 2] * z
