# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""From surfaces that rays hit to the light that reaches the camera, and on to pixels."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from kestrel.sim import textures
from kestrel.sim.caster import NO_TRIANGLE, Hits
from kestrel.sim.compiled import compiled
from kestrel.sim.lamps import Switches
from kestrel.sim.scene import Texture, Weather
from kestrel.sim.surfaces import BoolArray, SurfaceTable
from kestrel.sim.textures import Tiles
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

WINDOW_LIGHT: Final = (1.0, 0.75, 0.42)
"""Colour of lit windows."""

_GRAZING: Final = 0.02
"""Cosine below which the sun counts as beside a surface."""

_GLASS: Final = Texture.GLASS
_EMISSIVE: Final = Texture.EMISSIVE

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


class Daylight(NamedTuple):
    """Light and air of a drive as the shader takes them; colours are (3,) float32.

    sun: (3,) unit vector to it. sun_colour, ambient: light of the sun, and of the sky around.
    horizon, zenith: of the sky. cloud: brightness of clouds. cover: (TILE, TILE) how much of them is there.
    extinction: of the air, per metre. rain: 0..1. dark: windows are lit. exposure: factor on all radiance.
    """

    sun: Float32Array
    sun_colour: Float32Array
    ambient: Float32Array
    horizon: Float32Array
    zenith: Float32Array
    cloud: float
    cover: Float32Array
    extinction: float
    rain: float
    dark: bool
    exposure: float


class Renderer:
    """Shades what the cameras of one drive see."""

    def __init__(self, table: SurfaceTable, weather: Weather) -> None:
        self._table = table
        self._albedo: Float32Array = _SRGB_TO_LINEAR[table.colour]
        sun = weather.sun_direction.astype(np.float32)
        sky = 0.5 * (weather.sky + weather.zenith)
        ambient = (0.5 * (sky / max(float(sky.mean()), 1e-3)) + 0.5) * weather.ambient
        colour = np.array(SUN_COLOUR.get(weather.name, DAY_SUN_COLOUR)) * weather.sun
        light = float(weather.sun * max(float(sun[2]), 0.0) + weather.ambient)
        self._daylight = Daylight(
            sun=sun,
            sun_colour=colour.astype(np.float32),
            ambient=ambient.astype(np.float32),
            horizon=weather.sky.astype(np.float32),
            zenith=weather.zenith.astype(np.float32),
            cloud=0.25 + 0.75 * float(weather.sky.mean()),
            cover=_cloud_cover(),
            extinction=float(weather.fog_per_m) + HAZE_PER_M,
            rain=float(weather.rain),
            dark=bool(weather.ambient < DUSK_AMBIENT),
            exposure=min(EXPOSURE / max(light, 0.25), SKY_EXPOSURE / float(weather.sky.mean())),
        )

    def sunny(self, hits: Hits) -> tuple[Float32Array, BoolArray]:
        """Return where the rays hit (N, 3) in map, and (N,) bool: a surface that is turned to the sun."""
        points, faces = np.empty((len(hits.rays), 3), np.float32), np.empty(len(hits.rays), bool)
        _find_sunny(hits, self._daylight.sun, points, faces)
        return points, faces

    def shining(self, hits: Hits, switches: Switches) -> tuple[Int64Array, Float32Array]:
        """Return the rays (K,) that hit a lamp which is on, and the exposed radiance (K, 3) it adds there."""
        lamp = self._table.lamp.take(hits.triangle)
        rows = np.flatnonzero((lamp > 0) & (hits.triangle != NO_TRIANGLE))
        glow = switches.glow(lamp[rows], hits.instance[rows])
        on = glow[:, 0] > 0
        return rows[on], glow[on]

    def radiance(self, hits: Hits, points: Float32Array, lit: BoolArray, pixel_angle: float) -> Float32Array:
        """Return (N, 3) linear light along each ray, exposed for the light there is, but for lamps.

        Args:
            hits: What the rays hit.
            points: (N, 3) where, in map.
            lit: (N,) bool, the sun reaches the surface.
            pixel_angle: Radians that one pixel covers.
        """
        light = np.empty((len(points), 3), np.float32)
        looks = self._albedo, self._table.texture, textures.tiles()
        _shade(hits, points, lit, looks, self._daylight, pixel_angle, light)
        return light

    def add_lamps(self, radiance: Float32Array, hits: Hits, lamps: Int64Array, glow: Float32Array) -> None:
        """Let the lamps (K,) that are on shine through the air before them, with (K, 3), in place."""
        air = np.exp(-np.float32(self._daylight.extinction) * hits.distance[lamps])
        radiance[lamps] += glow * air[:, None]


@compiled
def _find_sunny(hits: Hits, sun: Float32Array, points: Float32Array, faces: BoolArray) -> None:
    """Fill the last two, which Renderer.sunny returns."""
    rays, distance, triangle, normal = hits.rays, hits.distance, hits.triangle, hits.normal
    for pixel in range(len(rays)):
        if triangle[pixel] == NO_TRIANGLE:
            points[pixel] = 0
            faces[pixel] = False
            continue
        facing = sunward = 0.0
        for axis in range(3):
            points[pixel, axis] = rays[pixel, axis] + distance[pixel] * rays[pixel, 3 + axis]
            facing -= normal[pixel, axis] * rays[pixel, 3 + axis]
            sunward += normal[pixel, axis] * sun[axis]
        faces[pixel] = (sunward if facing > 0 else -sunward) > _GRAZING


@compiled
def _sky(daylight: Daylight, x: float, y: float, z: float) -> tuple[float, float, float]:
    """Return the light of the sky in a direction."""
    sun, colour, zenith, horizon = daylight.sun, daylight.sun_colour, daylight.zenith, daylight.horizon
    height = min(max(z, 0.0), 1.0)
    low = (1 - height) ** 4
    stretch = 60.0 / (height + 0.12)
    last = textures.TILE - 1
    cover = daylight.cover[int(y * stretch) & last, int(x * stretch) & last] * min(5 * height, 1.0)
    glow = 0.6 * max(sun[0] * x + sun[1] * y + sun[2] * z, 0.0) ** 64

    def light(channel: int) -> float:
        clear = zenith[channel] + low * (horizon[channel] - zenith[channel])
        return float(clear + cover * (daylight.cloud - clear) + glow * colour[channel])

    return light(0), light(1), light(2)


@compiled
def _shade(
    hits: Hits,
    points: Float32Array,
    lit: BoolArray,
    looks: tuple[Float32Array, UInt8Array, Tiles],
    daylight: Daylight,
    pixel_angle: float,
    light: Float32Array,
) -> None:
    """Fill ``light`` (N, 3), which Renderer.radiance returns.

    Args:
        hits: What the rays hit.
        points: (N, 3) where, in map.
        lit: (N,).
        looks: albedo (T, 3) and texture (T,) of the triangles, and the tiles.
        daylight: Light and air.
        pixel_angle: Radians that one pixel covers.
        light: Changed in place.
    """
    rays, distance, triangle, normal, _, moving, local_point, local_normal = hits
    albedo, texture, tiles = looks
    texels = tiles.texels
    rain, extinction, exposure = daylight.rain, daylight.extinction, daylight.exposure
    sun, sun_colour, ambient, horizon = daylight.sun, daylight.sun_colour, daylight.ambient, daylight.horizon
    for pixel in range(len(rays)):
        x, y, z = rays[pixel, 3], rays[pixel, 4], rays[pixel, 5]
        seen_triangle = triangle[pixel]
        if seen_triangle == NO_TRIANGLE:
            above = _sky(daylight, x, y, z)
            for channel in range(3):
                light[pixel, channel] = exposure * above[channel]
            continue
        nx, ny, nz = normal[pixel, 0], normal[pixel, 1], normal[pixel, 2]
        facing = -(nx * x + ny * y + nz * z)
        kind = texture[seen_triangle]
        footprint = distance[pixel] * pixel_angle / np.sqrt(max(abs(facing), 0.02))
        point, axis = (local_point, local_normal) if moving[pixel] else (points, normal)
        u, v = _place(
            point[pixel, 0], point[pixel, 1], point[pixel, 2], axis[pixel, 0], axis[pixel, 1], axis[pixel, 2]
        )
        texel = textures.texel(tiles, kind, u, v, footprint)
        if facing < 0:
            nx, ny, nz, facing = -nx, -ny, -nz, -facing
        direct = max(nx * sun[0] + ny * sun[1] + nz * sun[2], 0.0) * lit[pixel]
        open_sky = 0.65 + 0.35 * nz
        wet = 1 - 0.45 * rain * max(nz, 0.0)
        direct, open_sky = direct * wet, open_sky * wet
        mirrored = 0.0
        if kind == _GLASS:
            mirrored = 0.12 + 0.88 * _fresnel(facing)
        elif rain > 0 and nz > 0.9 and facing < 0.35 and MIRRORS_WHEN_WET[kind]:
            mirrored = 0.5 * rain * _fresnel(facing)
        sky = (0.0, 0.0, 0.0)
        if mirrored > 0:
            turned = 2 * facing
            sky = _sky(daylight, x + turned * nx, y + turned * ny, z + turned * nz)
        window = 0.0
        if daylight.dark:
            window = 0.7 * texels[texel, 3] / textures.ONE / exposure
        own_light = 1.6 / exposure if kind == _EMISSIVE else 0.0
        air = np.exp(-extinction * distance[pixel])
        for channel in range(3):
            own = albedo[seen_triangle, channel]
            shone = direct * sun_colour[channel] + open_sky * ambient[channel]
            radiance = shone * own * texels[texel, channel] / textures.ONE
            radiance += mirrored * (sky[channel] - radiance)
            radiance += own_light * own + window * WINDOW_LIGHT[channel]
            light[pixel, channel] = exposure * (horizon[channel] + air * (radiance - horizon[channel]))


@compiled
def _place(x: float, y: float, z: float, nx: float, ny: float, nz: float) -> tuple[float, float]:
    """Return where on its tile a point lies: tiles are projected along the main axis of the normal."""
    if abs(nz) > 0.7:
        return x, y
    return (y * nx - x * ny) / np.sqrt(max(nx * nx + ny * ny, 1e-6)), z


@compiled
def _fresnel(cosine: float) -> float:
    """Return the reflected share of light that comes in at an angle (Schlick's approximation)."""
    return float(0.06 + 0.94 * (1 - min(cosine, 1.0)) ** 5)


@compiled
def develop(radiance: Float32Array, falloff: Float32Array, noise: Float32Array, picture: UInt8Array) -> None:
    """Fill ``picture`` (N, 3) from linear ``radiance`` (N, 3): vignetting (N,), noise (N, 3), tone curve."""
    for pixel in range(len(radiance)):
        for channel in range(3):
            exposed = radiance[pixel, channel] * falloff[pixel] + noise[pixel, channel]
            step = int(exposed * (_TONE_BINS / _TONE_WHITE))
            picture[pixel, channel] = _TONE[min(max(step, 0), _TONE_BINS - 1)]
