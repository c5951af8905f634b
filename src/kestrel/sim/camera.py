# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A camera in the simulated world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from kestrel.sim.caster import NO_TRIANGLE, Hits, MovingActor, WorldCaster
from kestrel.sim.lamps import GLARE_ANGLE_RAD, GLARE_PER_FOG, GLARE_SHARE, Switches, add_glare
from kestrel.sim.lens import pixel_directions
from kestrel.sim.render import Renderer, develop
from kestrel.sim.rig import CameraSpec
from kestrel.sim.scene import World
from kestrel.sim.semantics import Semantic
from kestrel.sim.surfaces import BoolArray
from kestrel.types import Calibration, Float32Array, Float64Array, Int64Array, UInt8Array, UInt16Array

BLOCK: Final = 16
"""Pixels along one side of the blocks in which moving actors are looked for."""

ACTOR_RANGE_M: Final = 150.0
"""How far from the camera moving actors are drawn."""

_LIT: Final = 1
_DARK: Final = 2

SHADOW_BIAS_M: Final = 0.02
NOISE_SIGMA: Final = 0.006
_NOISE_SPARE: Final = 65536


@dataclass(frozen=True)
class Picture:
    """RGB (H, W, 3) uint8 with the semantic (H, W) uint8 and the instance (H, W) uint16 of each pixel."""

    rgb: UInt8Array
    semantic: UInt8Array
    instance: UInt16Array


class Camera:
    """One camera of one drive, sending pictures of one size."""

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
        directions = pixel_directions(self.calibration)
        self._directions = np.ascontiguousarray(directions.reshape(-1, 3).T)
        self._blocks, self._block_axis, self._block_angle = _blocks(directions)
        coarse = np.zeros(directions.shape[:2], bool)
        coarse[::2, ::2] = True
        self._coarse = coarse.reshape(-1)
        self._pixel_angle = 1.0 / float(self.calibration.camera_matrix[0, 0])
        self._falloff = np.clip(self._directions[2], 0.2, 1.0) ** np.float32(0.8)
        pixels = self.calibration.width * self.calibration.height
        grain = np.random.default_rng(len(spec.name)).standard_normal(pixels * 3 + _NOISE_SPARE, np.float32)
        self._grain = grain * np.float32(NOISE_SIGMA)

    def take(self, time_s: float, rng: np.random.Generator) -> Picture:
        """Return the picture of ``time_s``."""
        map_from_camera = self._world.ego(time_s).map_from_base @ self.spec.base_from_camera
        rays = self._rays(map_from_camera)
        hits = self._caster.cast_static(rays)
        actors = self._caster.moving_actors(time_s, map_from_camera[:3, 3], ACTOR_RANGE_M)
        self._caster.add_actors(hits, self._candidates(actors, map_from_camera))
        points = hits.points()
        lit = self._lit(hits, points, actors, map_from_camera)
        shining = self._renderer.shining(hits, Switches(self._world, time_s))
        radiance = self._renderer.radiance(hits, points, lit, self._pixel_angle, shining)
        shape = (self.calibration.height, self.calibration.width)
        self._add_glare(radiance.reshape(3, *shape), *shining)
        offset = int(rng.integers(_NOISE_SPARE))
        grain = self._grain[offset : offset + radiance.size].reshape(radiance.shape)
        hit = hits.triangle != NO_TRIANGLE
        semantic = np.where(hit, self._caster.table.semantic[hits.triangle], np.uint8(Semantic.SKY))
        return Picture(
            develop(radiance, self._falloff, grain).reshape(*shape, 3),
            semantic.reshape(shape),
            hits.instance.reshape(shape),
        )

    def _add_glare(self, radiance: Float32Array, lamps: Int64Array, glow: Float32Array) -> None:
        if len(lamps):
            share = GLARE_SHARE + GLARE_PER_FOG * self._world.weather.fog_per_m
            add_glare(radiance, lamps, glow, GLARE_ANGLE_RAD / self._pixel_angle, share)

    def _rays(self, map_from_camera: Float64Array) -> Float32Array:
        """Return the rays (N, 6) of all pixels, in map."""
        rotation, position = map_from_camera[:3, :3].astype(np.float32), map_from_camera[:3, 3]
        rays = np.empty((self._directions.shape[1], 6), np.float32)
        for axis in range(3):
            rays[:, axis] = position[axis]
            turned = rotation[axis, 0] * self._directions[0]
            turned += rotation[axis, 1] * self._directions[1]
            turned += rotation[axis, 2] * self._directions[2]
            rays[:, 3 + axis] = turned
        return rays

    def _lit(
        self, hits: Hits, points: Float32Array, actors: list[MovingActor], map_from_camera: Float64Array
    ) -> BoolArray:
        """Return (N,) bool: the sun shines on the surface of each pixel.

        Every second pixel of every second row asks for the sun; where those around a pixel disagree, it asks
        for itself.
        """
        weather = self._world.weather
        faces = self._renderer.faces_sun(hits)
        if weather.sun <= 0.02 or not faces.any():
            return np.zeros_like(faces)
        sun = weather.sun_direction.astype(np.float64)
        casting = self._candidates(actors, map_from_camera, sun)
        asked = np.zeros((self.calibration.height, self.calibration.width), np.uint8)
        answers = asked.reshape(-1)
        coarse = np.flatnonzero(faces & self._coarse)
        answers[coarse] = np.where(self._dark(points, coarse, casting), _DARK, _LIT)
        grid = asked[::2, ::2]
        around = np.ones((3, 3), np.uint8)
        lowest, highest = cv2.erode(grid, around), cv2.dilate(grid, around)
        agreed = np.where(lowest == highest, lowest, 0).repeat(2, axis=0).repeat(2, axis=1)
        settled = agreed[: asked.shape[0], : asked.shape[1]].reshape(-1)
        open_ = np.flatnonzero(faces & (settled == 0) & (answers == 0))
        answers[open_] = np.where(self._dark(points, open_, casting), _DARK, _LIT)
        lit: BoolArray = faces & ((answers == _LIT) | ((answers == 0) & (settled == _LIT)))
        return lit

    def _dark(
        self, points: Float32Array, rows: Int64Array, casting: list[tuple[MovingActor, Int64Array]]
    ) -> BoolArray:
        """Return (K,) bool: something stands between the sun and the points of the pixels ``rows`` (K,)."""
        sun = self._world.weather.sun_direction.astype(np.float32)
        rays = np.empty((len(rows), 6), np.float32)
        for axis in range(3):
            rays[:, axis] = points[axis][rows] + sun[axis] * np.float32(SHADOW_BIAS_M)
            rays[:, 3 + axis] = sun[axis]
        place = np.full(points.shape[1], -1, np.int64)
        place[rows] = np.arange(len(rows))
        among = [(actor, place[pixels]) for actor, pixels in casting]
        return self._caster.shaded(rays, [(actor, found[found >= 0]) for actor, found in among])

    def _candidates(
        self, actors: list[MovingActor], map_from_camera: Float64Array, sun: Float64Array | None = None
    ) -> list[tuple[MovingActor, Int64Array]]:
        """Return, per actor, the pixels of all blocks that its ball (with ``sun``: its shadow) may touch."""
        if not actors:
            return []
        balls = [actor.centre[None] if sun is None else _shadow_balls(actor, sun) for actor in actors]
        starts = np.cumsum([0, *(len(ball) for ball in balls[:-1])])
        radius = np.repeat([actor.radius * 1.05 for actor in actors], [len(ball) for ball in balls])
        towards = (np.concatenate(balls) - map_from_camera[:3, 3]) @ map_from_camera[:3, :3]
        away = np.sqrt((towards**2).sum(axis=1))
        half = np.where(away > radius, np.arcsin(np.minimum(radius / np.maximum(away, 1e-6), 1.0)), np.pi)
        cosine = np.einsum("ak,bk->ab", towards / np.maximum(away, 1e-6)[:, None], self._block_axis)
        touched = cosine >= np.cos(np.minimum(half[:, None] + self._block_angle, np.pi))
        found = []
        for actor, blocks in zip(actors, np.logical_or.reduceat(touched, starts), strict=True):
            if blocks.any():
                pixels = self._blocks[blocks].reshape(-1)
                found.append((actor, pixels[pixels >= 0]))
        return found


def _shadow_balls(actor: MovingActor, sun: Float64Array) -> Float64Array:
    """Return centres (K, 3) of balls that cover the actor's shadow down to the ground."""
    length = min((actor.centre[2] + actor.radius) / max(float(sun[2]), 0.05), 60.0)
    steps = np.arange(0.0, length + actor.radius, actor.radius)
    balls: Float64Array = actor.centre - steps[:, None] * sun
    return balls


def _blocks(directions: Float32Array) -> tuple[Int64Array, Float64Array, Float64Array]:
    """Return pixels (B, BLOCK^2, -1 outside the picture), axis (B, 3) and half angle (B,) of all blocks."""
    height, width = directions.shape[:2]
    rows, columns = -(-height // BLOCK), -(-width // BLOCK)
    index = np.full((rows * BLOCK, columns * BLOCK), -1, np.int64)
    index[:height, :width] = np.arange(height * width).reshape(height, width)
    pixels = index.reshape(rows, BLOCK, columns, BLOCK).swapaxes(1, 2).reshape(rows * columns, -1)
    flat = directions.reshape(-1, 3).astype(np.float64)
    inside = (pixels >= 0)[..., None]
    axis = (flat[pixels] * inside).sum(axis=1)
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    cosine = np.where(inside[..., 0], np.einsum("bpk,bk->bp", flat[pixels], axis), 1.0)
    return pixels, axis, np.arccos(np.clip(cosine.min(axis=1), -1, 1)) + 1e-3
