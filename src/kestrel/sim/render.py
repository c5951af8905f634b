# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""From surfaces that rays hit to the light that reaches the camera, and on to pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from kestrel.sim import textures
from kestrel.sim.caster import NO_TRIANGLE, Hits
from kestrel.sim.lamps import Switches
from kestrel.sim.scene import Texture, Weather
from kestrel.sim.surfaces import BoolArray, SurfaceTable
from kestrel.types import Float32Array, Int64Array, UInt8Array

SUN_COLOUR: Final = {"dusk": (1.0, 0.62, 0.36)}
DAY_SUN_COLOUR: Final = (1.0, 0.96, 0.88)

DUSK_AMBIENT: Final = 0.55
"""Below this ambient light lamps and lit windows are on."""

HAZE_PER_M: Final = 0.0006
"""Extinction of clear air."""

EXPOSURE: Final = 1.9
"""Radiance that a white surface facing the sky gets; above 1, for the world is mostly grey."""

MIRRORS_WHEN_WET: Final = np.isin(np.arange(256), (Texture.PLAIN, Texture.ASPHALT, Texture.CONCRETE))
"""(256,) bool by Texture: ground on which rain leaves a film of water."""

SKY_EXPOSURE: Final = 1.3
"""Highest value of the sky at the horizon; it keeps dusk and fog from being developed as bright as day."""

_TONE_BINS: Final = 4096
_TONE_WHITE: Final = 2.5


def _tone_curve() -> UInt8Array:
    """Return the sRGB value of each bin of radiance 0.._TONE_WHITE, with a soft shoulder."""
    radiance = np.linspace(0, _TONE_WHITE, _TONE_BINS)
    shoulder = radiance * (1 + radiance / _TONE_WHITE**2) / (1 + radiance * 0.45)
    display = np.clip(shoulder / (_TONE_WHITE * (1 + 1 / _TONE_WHITE) / (1 + _TONE_WHITE * 0.45)), 0, 1)
    encoded = np.where(display < 0.0031308, 12.92 * display, 1.055 * display ** (1 / 2.4) - 0.055)
    return np.round(255 * encoded).astype(np.uint8)


def _cloud_cover() -> Float32Array:
    """Return (TILE, TILE) how much of the sky's colour is cloud, repeating at its borders."""
    large = textures.noise_tile(np.random.default_rng(7), 8)
    small = textures.noise_tile(np.random.default_rng(8), 32)
    return (0.7 * np.clip(4 * (0.6 * large + 0.4 * small - 0.5), 0, 1)).astype(np.float32)


_TONE: Final = _tone_curve()
_SRGB_TO_LINEAR: Final = np.where(
    np.arange(256) <= 10, np.arange(256) / 255 / 12.92, ((np.arange(256) / 255 + 0.055) / 1.055) ** 2.4
).astype(np.float32)


@dataclass(frozen=True)
class Views:
    """How rays look at what they hit; of no meaning where that is nothing.

    points: (3, N) float32 where, in map. ray: (3, N) float32 unit directions in map.
    facing: (N,) float32 cosine of the angle between the normal and the way back; negative if that is turned
        away from the camera. sunward: (N,) float32 cosine to the sun of the normal of the seen side.
    """

    points: Float32Array
    ray: Float32Array
    facing: Float32Array
    sunward: Float32Array


class Renderer:
    """Shades what the cameras of one drive see."""

    def __init__(self, table: SurfaceTable, weather: Weather) -> None:
        self._table = table
        self._linear = np.ascontiguousarray((_SRGB_TO_LINEAR[table.colour] / np.float32(textures.ONE)).T)
        self._weather = weather
        self._sun = weather.sun_direction.astype(np.float32)
        self._sun_colour = np.array(SUN_COLOUR.get(weather.name, DAY_SUN_COLOUR), np.float32) * np.float32(
            weather.sun
        )
        sky = 0.5 * (weather.sky + weather.zenith)
        self._ambient = (0.5 * (sky / max(float(sky.mean()), 1e-3)) + 0.5).astype(np.float32) * np.float32(
            weather.ambient
        )
        self._dark = weather.ambient < DUSK_AMBIENT
        self._clouds = _cloud_cover()
        light = float(weather.sun * max(float(self._sun[2]), 0.0) + weather.ambient)
        self._exposure = np.float32(
            min(EXPOSURE / max(light, 0.25), SKY_EXPOSURE / float(weather.sky.mean()))
        )

    def views(self, hits: Hits) -> Views:
        """Return how the rays of ``hits`` look at what they hit."""
        ray = np.ascontiguousarray(hits.rays[:, 3:].T)
        facing = _dot(hits.normal, ray)
        np.negative(facing, out=facing)
        sunward = _towards(self._sun, hits.normal)
        sunward *= np.sign(facing)
        return Views(hits.points(ray), ray, facing, sunward)

    def faces_sun(self, hits: Hits, views: Views) -> BoolArray:
        """Return (N,) bool: surfaces whose seen side is turned to the sun, on which shadows can fall."""
        sunny: BoolArray = views.sunward > np.float32(0.02)
        sunny &= hits.triangle != NO_TRIANGLE
        return sunny

    def shining(self, hits: Hits, switches: Switches) -> tuple[Int64Array, Float32Array]:
        """Return the rays (K,) that hit a lamp which is on, and the exposed radiance (3, K) it adds there."""
        lamp = self._table.lamp.take(hits.triangle)
        rows = np.flatnonzero((lamp > 0) & (hits.triangle != NO_TRIANGLE))
        glow = switches.glow(lamp[rows], hits.instance[rows])
        on = glow[0] > 0
        return rows[on], glow[:, on]

    def radiance(
        self,
        hits: Hits,
        views: Views,
        lit: BoolArray,
        pixel_angle: float,
        shining: tuple[Int64Array, Float32Array],
    ) -> Float32Array:
        """Return (3, N) linear light along each ray, exposed for the light there is.

        Args:
            hits: What the rays hit.
            views: Of the method of that name; the points are overwritten.
            lit: (N,) bool, the sun reaches the surface.
            pixel_angle: Radians that one pixel covers.
            shining: Lamps that are on, of the method of that name.
        """
        light = self._surfaces(hits, views, lit, pixel_angle, shining)
        above = np.flatnonzero(hits.triangle == NO_TRIANGLE)
        if len(above):
            light[:, above] = self.sky(views.ray.take(above, axis=1))
        light *= self._exposure
        return light

    def sky(self, ray: Float32Array) -> Float32Array:
        """Return (3, N) light of the sky in directions (3, N)."""
        weather = self._weather
        height = np.clip(ray[2], 0.0, 1.0)
        low = (1 - height) ** 2
        low *= low
        stretch = np.float32(60.0) / (height + np.float32(0.12))
        column = (ray[0] * stretch).astype(np.int32) & (textures.TILE - 1)
        row = (ray[1] * stretch).astype(np.int32) & (textures.TILE - 1)
        cover = self._clouds.take(row * textures.TILE + column) * np.minimum(
            height * np.float32(5), np.float32(1)
        )
        cloud = np.float32(0.25 + 0.75 * weather.sky.mean())
        glow = np.maximum(_towards(self._sun, ray), np.float32(0))
        for _ in range(6):
            glow *= glow
        light = np.empty(ray.shape, np.float32)
        for channel in range(3):
            clear = weather.zenith[channel] + low * (weather.sky[channel] - weather.zenith[channel])
            light[channel] = (
                clear + cover * (cloud - clear) + glow * (np.float32(0.6) * self._sun_colour[channel])
            )
        return light

    def _surfaces(
        self,
        hits: Hits,
        views: Views,
        lit: BoolArray,
        pixel_angle: float,
        shining: tuple[Int64Array, Float32Array],
    ) -> Float32Array:
        """Return (3, N) light of surfaces through the air before them; of no meaning where there is none."""
        triangle, distance = hits.triangle, hits.distance
        kind = self._table.texture.take(triangle)
        facing = np.abs(views.facing)
        upward = hits.normal[2] * np.sign(views.facing)
        detail = self._detail(hits, views.points, kind, distance * np.float32(pixel_angle), facing)
        sun = np.maximum(views.sunward, np.float32(0))
        sun *= lit
        open_sky = np.float32(0.35) * upward
        open_sky += np.float32(0.65)
        if self._weather.rain > 0:
            wet = 1 - np.float32(0.45 * self._weather.rain) * np.maximum(upward, 0)
            sun *= wet
            open_sky *= wet
        light = np.empty((3, len(triangle)), np.float32)
        for channel in range(3):
            albedo = self._linear[channel].take(triangle)
            albedo *= detail[:, channel]
            np.multiply(sun, self._sun_colour[channel], out=light[channel])
            light[channel] += open_sky * self._ambient[channel]
            light[channel] *= albedo
        self._add_reflection(light, kind, hits.normal, upward, views)
        self._add_glow(light, kind, triangle, detail[:, 3])
        lamps, glow = shining
        if len(lamps):
            light[:, lamps] += glow / self._exposure
        air = -np.float32(self._weather.fog_per_m + HAZE_PER_M) * distance
        np.exp(air, out=air)
        for channel in range(3):
            horizon = np.float32(self._weather.sky[channel])
            light[channel] -= horizon
            light[channel] *= air
            light[channel] += horizon
        return light

    def _detail(
        self,
        hits: Hits,
        points: Float32Array,
        kind: UInt8Array,
        footprint: Float32Array,
        facing: Float32Array,
    ) -> UInt8Array:
        """Return textures (N, 4), projected along the main axis of each surface."""
        on = hits.on_actors
        normal = hits.normal
        if len(on.rows):
            normal = normal.copy()
            points[:, on.rows] = on.point
            normal[:, on.rows] = on.normal
        x, y, z = normal
        across = x * x
        across += y * y
        np.maximum(across, np.float32(1e-6), out=across)
        np.sqrt(across, out=across)
        flat = np.abs(z) > 0.7
        u = points[1] * x
        u -= points[0] * y
        u /= across
        np.copyto(u, points[0], where=flat)
        v = np.where(flat, points[1], points[2])
        slant: Float32Array = np.sqrt(np.maximum(facing, np.float32(0.02)))
        return textures.sample(kind, u, v, footprint / slant)

    def _add_reflection(
        self,
        light: Float32Array,
        kind: UInt8Array,
        normal: Float32Array,
        upward: Float32Array,
        views: Views,
    ) -> None:
        """Let glass, and the ground in rain, mirror the sky (Schlick's approximation), in place.

        upward: (N,) float32 z of the normal of the seen side.
        """
        mirror = kind == Texture.GLASS
        if self._weather.rain > 0:
            mirror |= (upward > 0.9) & (np.abs(views.facing) < 0.35) & MIRRORS_WHEN_WET[kind]
        rows = np.flatnonzero(mirror)
        if not len(rows):
            return
        facing = views.facing.take(rows)
        cosine = np.clip(np.abs(facing), 0, 1)
        reflected = views.ray.take(rows, axis=1)
        reflected += 2 * cosine * (normal.take(rows, axis=1) * np.sign(facing))
        fresnel = 0.06 + 0.94 * (1 - cosine) ** 5
        wet = np.float32(0.5 * self._weather.rain) * fresnel
        fresnel = np.where(kind[rows] == Texture.GLASS, 0.12 + 0.88 * fresnel, wet)
        light[:, rows] += fresnel * (self.sky(reflected) - light.take(rows, axis=1))

    def _add_glow(
        self, light: Float32Array, kind: UInt8Array, triangle: Int64Array, glow: UInt8Array
    ) -> None:
        """Add what always shines, and at dusk lit windows, in place."""
        rows = np.flatnonzero(kind == Texture.EMISSIVE)
        light[:, rows] += self._linear[:, triangle[rows]] * np.float32(1.6 * textures.ONE / self._exposure)
        if self._dark:
            rows = np.flatnonzero(glow > 0)
            warm = np.array([[1.0], [0.75], [0.42]], np.float32) * np.float32(0.7 / self._exposure)
            light[:, rows] += glow[rows] / np.float32(textures.ONE) * warm


def _dot(first: Float32Array, second: Float32Array) -> Float32Array:
    """Return (N,) scalar products of vectors (3, N)."""
    total: Float32Array = first[0] * second[0] + first[1] * second[1] + first[2] * second[2]
    return total


def _towards(direction: Float32Array, vectors: Float32Array) -> Float32Array:
    """Return (N,) scalar products of ``direction`` (3,) and vectors (3, N); without BLAS and its threads."""
    total: Float32Array = direction[0] * vectors[0] + direction[1] * vectors[1] + direction[2] * vectors[2]
    return total


def develop(radiance: Float32Array, falloff: Float32Array, noise: Float32Array) -> UInt8Array:
    """Return the picture (N, 3) of linear ``radiance`` (3, N): vignetting (N,), noise (3, N), tone curve."""
    picture = np.empty(radiance.shape[::-1], np.uint8)
    for channel in range(3):
        exposed = radiance[channel] * falloff
        exposed += noise[channel]
        exposed *= np.float32(_TONE_BINS / _TONE_WHITE)
        picture[:, channel] = _TONE.take(exposed.astype(np.int64), mode="clip")
    return picture
