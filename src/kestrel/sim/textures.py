# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Procedural textures: one tile per kind of surface with its mip levels, repeated over the world.

A tile holds, per texel, a factor on the base colour (red, green, blue; 1 is unchanged) and how much of it
glows by itself at night.
"""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

import cv2
import numpy as np

from kestrel.sim.compiled import compiled
from kestrel.sim.scene import Texture
from kestrel.types import Float32Array, Int64Array, UInt8Array

TILE: Final = 512
"""Texels along one side of a tile."""

TEXEL_M: Final = 0.05
"""Size of a texel; a tile repeats every TILE * TEXEL_M = 25.6 m."""

LEVELS: Final = 10
"""From TILE texels along a side down to one."""

ONE: Final = 100
"""Factor 1 of a stored texel; the highest factor is 2.55."""

_KINDS: Final = 12


def noise_tile(rng: np.random.Generator, cells: int, size: int = TILE) -> Float32Array:
    """Return (size, size) smooth value noise in 0..1 that repeats at its borders."""
    lattice = rng.random((cells, cells), np.float32)
    padded = np.pad(lattice, 2, mode="wrap")
    scale = size // cells
    smooth = cv2.resize(padded, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth[2 * scale : -2 * scale, 2 * scale : -2 * scale], 0, 1)


def _mixed(rng: np.random.Generator, octaves: dict[int, float]) -> Float32Array:
    """Return noise around 0: a sum of octaves, {cells: amplitude}."""
    total = np.zeros((TILE, TILE), np.float32)
    for cells, amplitude in octaves.items():
        total += amplitude * (2 * noise_tile(rng, cells) - 1)
    return total


def _grey(factor: Float32Array) -> Float32Array:
    tile = np.zeros((TILE, TILE, 4), np.float32)
    tile[..., :3] = factor[..., None]
    return tile


def _courses(rng: np.random.Generator, across: int, up: int, joint: float, spread: float) -> Float32Array:
    """Return a bond of blocks ``across`` x ``up`` texels with joints of factor ``joint``."""
    row, column = np.mgrid[0:TILE, 0:TILE]
    course = row // up
    shifted = column + (course % 2) * (across // 2)
    block = rng.uniform(1 - spread, 1 + spread, (TILE // up + 1, TILE // across + 2)).astype(np.float32)
    block[:, -1] = block[:, 0]
    factor = block[course, (shifted % TILE) // across]
    seam = (row % up == 0) | (shifted % across == 0)
    return np.where(seam, np.float32(joint), factor).astype(np.float32)


def _windows(rng: np.random.Generator) -> Float32Array:
    """Return a wall with a window every 3.2 m: dark glass by day, some of it lit at night."""
    tile = _grey(1 + _mixed(rng, {8: 0.05, 64: 0.04, 256: 0.03}))
    period = 64
    glow = rng.random((TILE // period, TILE // period)) < 0.35
    row, column = np.mgrid[0:TILE, 0:TILE]
    inner_row, inner_column = row % period, column % period
    frame = (inner_row > 17) & (inner_row < 50) & (inner_column > 13) & (inner_column < 50)
    glass = (inner_row > 19) & (inner_row < 48) & (inner_column > 15) & (inner_column < 48)
    glass &= inner_column != 31
    tile[frame] = (1.25, 1.25, 1.25, 0)
    shine = rng.uniform(0.22, 0.45, glow.shape).astype(np.float32)[row // period, column // period]
    tile[glass] = np.stack([shine * 0.8, shine * 0.95, shine * 1.15, shine * 0], -1)[glass]
    tile[glass, 3] = np.where(glow[row // period, column // period], 1.0, 0.0)[glass]
    return tile


def _foliage(rng: np.random.Generator) -> Float32Array:
    clumps = _mixed(rng, {16: 0.15, 64: 0.35, 128: 0.35, 256: 0.3})
    tile = _grey(np.clip(0.95 + clumps, 0.25, 1.7))
    tile[..., 0] *= 1 + 0.3 * _mixed(rng, {8: 0.6, 64: 0.5})
    return tile


def _grass(rng: np.random.Generator) -> Float32Array:
    tile = _grey(np.clip(1 + _mixed(rng, {8: 0.12, 32: 0.12, 128: 0.15, 512: 0.3}), 0.4, 1.6))
    tile[..., 0] *= 1 + 0.25 * _mixed(rng, {4: 0.5, 16: 0.5})
    return tile


def _asphalt(rng: np.random.Generator) -> Float32Array:
    factor = 1 + _mixed(rng, {4: 0.05, 16: 0.05, 64: 0.05, 512: 0.16})
    crack = np.abs(_mixed(rng, {8: 0.6, 32: 0.3, 128: 0.1}))
    return _grey(np.where(crack < 0.006, factor * 0.72, factor).astype(np.float32))


def _bark(rng: np.random.Generator) -> Float32Array:
    furrows = cv2.resize(noise_tile(rng, 128)[:64], (TILE, TILE), interpolation=cv2.INTER_LINEAR)
    return _grey((0.6 + 0.8 * furrows).astype(np.float32))


def _stripes() -> Float32Array:
    """Return upright ribs of 0.2 m, as of awnings, containers and sheet-metal walls."""
    column = np.arange(TILE)
    ribs = np.where(column // 4 % 2 == 0, 1.0, 0.7).astype(np.float32)
    return _grey(np.tile(ribs, (TILE, 1)))


def _drawn() -> dict[int, Float32Array]:
    rng = np.random.default_rng(20)
    return {
        Texture.ASPHALT: _asphalt(rng),
        Texture.PAVING: _grey(_courses(rng, 8, 8, 0.72, 0.08) + _mixed(rng, {16: 0.05, 256: 0.04})),
        Texture.GRASS: _grass(rng),
        Texture.BRICK: _grey(_courses(rng, 8, 4, 1.25, 0.2) + _mixed(rng, {8: 0.06})),
        Texture.WINDOWS: _windows(rng),
        Texture.FOLIAGE: _foliage(rng),
        Texture.BARK: _bark(rng),
        Texture.CONCRETE: _grey(1 + _mixed(rng, {4: 0.05, 32: 0.06, 256: 0.06})),
        Texture.STRIPES: _stripes(),
    }


class Tiles(NamedTuple):
    """All tiles of all kinds with their mip levels.

    texels: (N, 4) uint8 colour factors and glow, in parts of ONE. start: (kinds, LEVELS) where each begins.
    finest: (kinds,) the finest level of each kind: the coarsest for one without a tile, a plain texel.
    """

    texels: UInt8Array
    start: Int64Array
    finest: Int64Array


@functools.cache
def tiles() -> Tiles:
    """Draw the tiles; it takes half a second, which nothing pays that takes no picture."""
    drawn = _drawn()
    texels: list[Float32Array] = [np.array([[1, 1, 1, 0]], np.float32)]
    start = np.zeros((_KINDS, LEVELS), np.int64)
    filled = 1
    for kind, tile in drawn.items():
        for level in range(LEVELS):
            start[kind, level] = filled
            texels.append(tile.reshape(-1, 4))
            filled += len(texels[-1])
            half = max(1, TILE >> (level + 1))
            tile = cv2.resize(tile, (half, half), interpolation=cv2.INTER_AREA).astype(np.float32)
    packed = np.clip(np.round(np.concatenate(texels) * ONE), 0, 255).astype(np.uint8)
    finest = np.where(np.isin(np.arange(_KINDS), list(drawn)), 0, LEVELS - 1)
    return Tiles(packed, start, finest)


@compiled
def texel(tiles: Tiles, kind: int, u: float, v: float, footprint: float) -> int:
    """Return the row of ``tiles.texels`` at a place of a surface.

    Args:
        tiles: All of them.
        kind: Texture of the surface.
        u: metres along it.
        v: metres up it, or across a flat one.
        footprint: metres that one pixel covers there; picks the mip level.
    """
    level = tiles.finest[kind]
    reach = 2.0 * TEXEL_M * (1 << level)
    while footprint >= reach and level < LEVELS - 1:
        level += 1
        reach *= 2.0
    last = (TILE >> level) - 1
    column = (int(np.floor(u / TEXEL_M)) >> level) & last
    row = (int(np.floor(v / TEXEL_M)) >> level) & last
    return int(tiles.start[kind, level] + row * (last + 1) + column)
