# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""From surfaces that rays hit to the light that reaches the camera, and on to pixels."""

from __future__ import annotations

from typing import Final

import numpy as np

from kestrel.sim import textures
from kestrel.sim.caster import NO_TRIANGLE, Hits
from kestrel.sim.scene import Texture, Weather
from kestrel.sim.surfaces import SurfaceTable
from kestrel.types import Float32Array, UInt8Array

SUN_COLOUR: Final = {"dusk": (1.0, 0.62, 0.36)}
DAY_SUN_COLOUR: Final = (1.0, 0.96, 0.88)

DUSK_AMBIENT: Final = 0.55
"""Below this ambient light lamps and lit windows are on."""

_TONE_BINS: Final = 4096
_TONE_WHITE: Final = 2.5


def _tone_curve() -> UInt8Array:
    """Return the sRGB value of each bin of radiance 0.._TONE_WHITE, with a soft shoulder."""
    radiance = np.linspace(0, _TONE_WHITE, _TONE_BINS)
    shoulder = radiance * (1 + radiance / _TONE_WHITE**2) / (1 + radiance * 0.45)
    display = np.clip(shoulder / (_TONE_WHITE * (1 + 1 / _TONE_WHITE) / (1 + _TONE_WHITE * 0.45)), 0, 1)
    encoded = np.where(display < 0.0031308, 12.92 * display, 1.055 * display ** (1 / 2.4) - 0.055)
    return np.round(255 * encoded).astype(np.uint8)


_TONE: Final = _tone_curve()
_SRGB_TO_LINEAR: Final = np.where(
    np.arange(256) <= 10, np.arange(256) / 255 / 12.92, ((np.arange(256) / 255 + 0.055) / 1.055) ** 2.4
).astype(np.float32)


class Renderer:
    """Shades what the cameras of one drive see."""

    def __init__(self, table: SurfaceTable, weather: Weather) -> None:
        self._table = table
        self._linear = _SRGB_TO_LINEAR[table.colour]
        self._weather = weather
        self._sun = weather.sun_direction.astype(np.float32)
        self._sun_colour = np.array(SUN_COLOUR.get(weather.name, DAY_SUN_COLOUR), np.float32) * np.float32(weather.sun)
        sky = 0.5 * (weather.sky + weather.zenith)
        self._ambient = (0.5 * (sky / max(float(sky.mean()), 1e-3)) + 0.5).astype(np.float32) * np.float32(weather.ambient)
        self._dark = weather.ambient < DUSK_AMBIENT
        self._clouds = textures.noise_tile(np.random.default_rng(7), 8) * 0.6 + textures.noise_tile(
            np.random.default_rng(8), 32
        ) * 0.4
        light = float(weather.sun * max(float(self._sun[2]), 0.0) + weather.ambient)
        self._exposure = np.float32(1.05 / max(light, 0.25))

    def needs_shadow(self, hits: Hits) -> np.ndarray:
        """Return (N,) bool: surfaces turned to the sun, on which shadows can fall."""
        return (hits.triangle != NO_TRIANGLE) & (hits.normal @ self._sun > 0.02)

    def radiance(
        self, hits: Hits, directions: Float32Array, lit: np.ndarray, pixel_angle: float
    ) -> Float32Array:
        """Return (N, 3) linear light along each ray, exposed so that 1 is a sunlit white wall or so.

        Args:
            hits: What the rays hit.
            directions: (N, 3) float32 unit vectors in map.
            lit: (N,) bool, the sun reaches the surface.
            pixel_angle: Radians that one pixel covers.
        """
        solid = np.flatnonzero(hits.triangle != NO_TRIANGLE)
        light = self.sky(directions)
        if len(solid):
            light[solid] = self._surfaces(hits, directions, lit, solid, pixel_angle, light)
        return light * self._exposure

    def sky(self, directions: Float32Array) -> Float32Array:
        """Return (N, 3) light of the sky in each direction."""
        weather = self._weather
        height = np.clip(directions[:, 2], 0.0, 1.0)
        blend = (1 - (1 - height) ** 4)[:, None]
        colour = weather.sky * (1 - blend) + weather.zenith * blend
        stretch = 60.0 / (height + 0.12)
        column = (directions[:, 0] * stretch).astype(np.int32) & (textures.TILE - 1)
        row = (directions[:, 1] * stretch).astype(np.int32) & (textures.TILE - 1)
        cover = np.clip((self._clouds[row, column] - 0.5) * 4, 0, 1) * np.minimum(height * 5, 1) * 0.7
        cloud = np.float32(0.25 + 0.75 * weather.sky.mean())
        colour += cover[:, None] * (cloud - colour)
        glow = np.maximum(directions @ self._sun, 0.0) ** 64 * np.float32(weather.sun) * 0.6
        return (colour + glow[:, None] * self._sun_colour).astype(np.float32)

    def _surfaces(
        self,
        hits: Hits,
        directions: Float32Array,
        lit: np.ndarray,
        rows: np.ndarray,
        pixel_angle: float,
        sky: Float32Array,
    ) -> Float32Array:
        triangle, distance = hits.triangle[rows], hits.distance[rows]
        normal, ray = hits.normal[rows], directions[rows]
        kind = self._table.texture[triangle]
        facing = -np.einsum("nk,nk->n", normal, ray)
        detail = self._detail(hits, rows, kind, distance * np.float32(pixel_angle), facing)
        albedo = self._linear[triangle] * detail[:, :3]
        up = normal[:, 2]
        if self._weather.rain > 0:
            albedo *= (1 - 0.45 * self._weather.rain * np.clip(up, 0, 1))[:, None]
        sun = np.maximum(normal @ self._sun, 0.0) * lit[rows]
        light = albedo * (sun[:, None] * self._sun_colour + (0.65 + 0.35 * up)[:, None] * self._ambient)
        self._add_reflection(light, kind, normal, ray, facing)
        self._add_glow(light, kind, triangle, detail[:, 3])
        air = np.exp(-np.float32(self._weather.fog_per_m + 0.0006) * distance)[:, None]
        return light * air + self._weather.sky.astype(np.float32) * (1 - air)

    def _detail(
        self, hits: Hits, rows: np.ndarray, kind: UInt8Array, footprint: Float32Array, facing: Float32Array
    ) -> Float32Array:
        """Return texture factors (N, 4), projected along the main axis of each surface."""
        point, normal = hits.local_point[rows], hits.local_normal[rows]
        flat = np.abs(normal[:, 2]) > 0.7
        across = np.sqrt(np.maximum(normal[:, 0] ** 2 + normal[:, 1] ** 2, 1e-6))
        along = (point[:, 1] * normal[:, 0] - point[:, 0] * normal[:, 1]) / across
        u = np.where(flat, point[:, 0], along)
        v = np.where(flat, point[:, 1], point[:, 2])
        return textures.sample(kind, u, v, footprint / np.sqrt(np.maximum(np.abs(facing), 0.02)))

    def _add_reflection(
        self, light: Float32Array, kind: UInt8Array, normal: Float32Array, ray: Float32Array, facing: Float32Array
    ) -> None:
        """Let glass, and the ground in rain, mirror the sky (Schlick's approximation), in place."""
        mirror = kind == Texture.GLASS
        if self._weather.rain > 0:
            mirror |= (normal[:, 2] > 0.9) & (facing < 0.5)
        rows = np.flatnonzero(mirror)
        if not len(rows):
            return
        cosine = np.clip(facing[rows], 0, 1)[:, None]
        reflected = ray[rows] + 2 * cosine * normal[rows]
        fresnel = 0.06 + 0.94 * (1 - cosine) ** 5
        fresnel = np.where((kind[rows] == Texture.GLASS)[:, None], 0.12 + 0.88 * fresnel, 0.8 * fresnel)
        light[rows] += fresnel * (self.sky(reflected) - light[rows])

    def _add_glow(self, light: Float32Array, kind: UInt8Array, triangle: np.ndarray, glow: Float32Array) -> None:
        """Add lamps, and at dusk lit windows, in place."""
        rows = np.flatnonzero(kind == Texture.EMISSIVE)
        light[rows] += self._linear[triangle[rows]] * np.float32(1.6 / self._exposure)
        if self._dark:
            rows = np.flatnonzero(glow > 0)
            warm = np.array([1.0, 0.75, 0.42], np.float32) * np.float32(0.7 / self._exposure)
            light[rows] += glow[rows, None] * warm


def develop(radiance: Float32Array, falloff: Float32Array, noise: Float32Array) -> UInt8Array:
    """Return the picture of linear ``radiance`` (N, 3): vignetting (N,), noise (N, 3), tone curve."""
    exposed = radiance * falloff[:, None] + noise
    return _TONE[np.clip(exposed * np.float32(_TONE_BINS / _TONE_WHITE), 0, _TONE_BINS - 1).astype(np.uint16)]
