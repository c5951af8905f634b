# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A camera in the simulated world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from kestrel.sim.blocks import Blocks
from kestrel.sim.caster import NO_TRIANGLE, Hits, WorldCaster
from kestrel.sim.lamps import GLARE_ANGLE_RAD, GLARE_PER_FOG, GLARE_SHARE, Switches, add_glare
from kestrel.sim.lens import pixel_directions
from kestrel.sim.render import Renderer, develop
from kestrel.sim.rig import CameraSpec
from kestrel.sim.scene import World
from kestrel.sim.semantics import Semantic
from kestrel.sim.shadows import Shadows
from kestrel.sim.showroom import MovingActors
from kestrel.types import Calibration, Float32Array, Float64Array, Int64Array, UInt8Array, UInt16Array

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
        self._shadows = Shadows(self._blocks, caster, world.weather)
        self._pixel_angle = 1.0 / float(self.calibration.camera_matrix[0, 0])
        pixels = len(self._blocks.directions)
        self._falloff = np.clip(self._blocks.directions[:, 2], 0.2, 1.0) ** np.float32(0.8)
        grain = np.random.default_rng(len(spec.name)).standard_normal(pixels * 3 + _NOISE_SPARE, np.float32)
        self._grain = grain * np.float32(NOISE_SIGMA)

    def take(self, time_s: float, rng: np.random.Generator) -> Picture:
        """Return the picture of ``time_s``."""
        map_from_camera = self._world.ego(time_s).map_from_base @ self.spec.base_from_camera
        hits = self._caster.cast_static(self._rays(map_from_camera))
        actors = self._caster.moving_actors(time_s, map_from_camera[:3, 3], ACTOR_RANGE_M)
        if len(actors):
            self._caster.add_actors(hits, actors, self._blocks.pairs(actors, map_from_camera, hits.distance))
        shining = self._renderer.shining(hits, Switches(self._world, time_s))
        radiance = self._radiance(hits, actors, map_from_camera, shining)
        self._add_glare(radiance, *shining)
        semantic = self._caster.table.semantic.take(hits.triangle)
        semantic[hits.triangle == NO_TRIANGLE] = Semantic.SKY
        offset = int(rng.integers(_NOISE_SPARE))
        return Picture(
            self._developed(radiance, self._grain[offset : offset + radiance.size]),
            semantic.reshape(self._blocks.shape),
            hits.instance.reshape(self._blocks.shape),
        )

    def _rays(self, map_from_camera: Float64Array) -> Float32Array:
        """Return the rays (N, 6) of all pixels in map."""
        rotation, position = map_from_camera[:3, :3].astype(np.float32), map_from_camera[:3, 3]
        rays = np.empty((len(self._blocks.directions), 6), np.float32)
        directions = cv2.transform(self._blocks.directions[None], rotation)[0]
        for axis in range(3):
            rays[:, axis] = position[axis]
            rays[:, 3 + axis] = directions[:, axis]
        return rays

    def _radiance(
        self,
        hits: Hits,
        actors: MovingActors,
        map_from_camera: Float64Array,
        shining: tuple[Int64Array, Float32Array],
    ) -> Float32Array:
        """Return the exposed light (3, H, W) without glare."""
        points = np.empty((3, len(hits.distance)), np.float32)
        faces = np.empty(len(hits.distance), bool)
        strips = self._blocks.strips
        parts = [hits.part(strip) for strip in strips]
        views = [self._renderer.views(part) for part in parts]
        for strip, part, view in zip(strips, parts, views, strict=True):
            points[:, strip] = view.points
            faces[strip] = self._renderer.faces_sun(part, view)
        lit = self._shadows.lit(faces, points, hits.distance, actors, map_from_camera)
        radiance = np.empty_like(points)
        lamps, glow = shining
        for strip, part, view in zip(strips, parts, views, strict=True):
            there = slice(*np.searchsorted(lamps, (strip.start, strip.stop)))
            glowing = lamps[there] - strip.start, glow[:, there]
            radiance[:, strip] = self._renderer.radiance(part, view, lit[strip], self._pixel_angle, glowing)
        return radiance.reshape(3, *self._blocks.shape)

    def _add_glare(self, radiance: Float32Array, lamps: Int64Array, glow: Float32Array) -> None:
        if len(lamps):
            share = GLARE_SHARE + GLARE_PER_FOG * self._world.weather.fog_per_m
            add_glare(radiance, lamps, glow, GLARE_ANGLE_RAD / self._pixel_angle, share)

    def _developed(self, radiance: Float32Array, grain: Float32Array) -> UInt8Array:
        """Return (H, W, 3) of light (3, H, W); grain is (3 H W,)."""
        light, noise = radiance.reshape(3, -1), grain.reshape(3, -1)
        rgb = np.empty((light.shape[1], 3), np.uint8)
        for strip in self._blocks.strips:
            rgb[strip] = develop(light[:, strip], self._falloff[strip], noise[:, strip])
        return rgb.reshape(*self._blocks.shape, 3)
