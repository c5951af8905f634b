# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Trees, bushes and hedges: stems, dense cores and loose leaf cards that let some rays through."""

from __future__ import annotations

import numpy as np

from kestrel.sim.scene import Mesh, Texture
from kestrel.sim.semantics import Semantic
from kestrel.sim.world.buildings import pick, shade
from kestrel.sim.world.mesh import Colour, Finish, MeshBuilder, Shape, box, ellipsoid, loft, tube
from kestrel.sim.world.towns import Town
from kestrel.types import Float64Array


def _leaves(
    rng: np.random.Generator, centre: Float64Array, radii: Float64Array, count: int, size: float
) -> Shape:
    """Loose triangles in the outer part of an ellipsoid."""
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    middles = centre + directions * radii * rng.uniform(0.65, 1.1, (count, 1))
    corners = middles[:, None] + rng.normal(0.0, size, (count, 3, 3))
    return corners.reshape(-1, 3), np.arange(3 * count).reshape(-1, 3)


def _clump(rng: np.random.Generator, centre: Float64Array, radii: Float64Array) -> Shape:
    """Irregular closed core of a part of a crown."""
    vertices, triangles = ellipsoid((0, 0, 0), radii, rows=5, sides=7)
    return vertices * rng.uniform(0.8, 1.15, (len(vertices), 1)) + centre, triangles


def _foliage(colour: Colour) -> Finish:
    return Finish(Semantic.VEGETATION, colour, Texture.FOLIAGE, 0.45)


def broadleaf(rng: np.random.Generator, town: Town) -> Mesh:
    """A tree with a round crown of several clumps."""
    builder = MeshBuilder()
    height, crown = float(rng.uniform(5.5, 11.0)), float(rng.uniform(1.6, 3.2))
    fork = float(rng.uniform(2.0, 3.0))
    bark = Finish(Semantic.TRUNK, shade((96, 78, 62), rng), Texture.BARK, 0.35)
    lean = rng.normal(0, 0.15, 2)
    radius = float(rng.uniform(0.12, 0.24))
    top = np.array([*lean, fork + 0.4])
    builder.add(tube((0, 0, -0.5), top, radius * 1.25, radius * 0.8, sides=8), bark)
    colour = pick(town.foliage, rng)
    middle = (height + fork) / 2 + 0.2
    for index in range(int(rng.integers(4, 7))):
        spread = rng.normal(0, 0.45, 3) * (crown, crown, (height - fork) / 2.4)
        centre = np.array([*lean, middle]) + (spread if index else 0.0)
        radii = crown * rng.uniform(0.5, 0.75, 3) * (1.0, 1.0, 0.9)
        builder.add(tube(top - (0, 0, 0.4), centre, radius * 0.5, 0.04, sides=5), bark)
        builder.add(_clump(rng, centre, radii * 0.72), _foliage(shade(colour, rng)))
        builder.add(_leaves(rng, centre, radii, 60, 0.15), _foliage(shade(colour, rng)))
    return builder.build()


def conifer(rng: np.random.Generator, town: Town) -> Mesh:
    """A tree of drooping skirts around a straight stem."""
    builder = MeshBuilder()
    height, width = float(rng.uniform(6.0, 12.0)), float(rng.uniform(1.3, 2.2))
    bark = Finish(Semantic.TRUNK, shade((88, 66, 50), rng), Texture.BARK, 0.35)
    builder.add(tube((0, 0, -0.5), (0, 0, height * 0.9), 0.18, 0.04, sides=7), bark)
    colour = shade(pick(town.foliage, rng), rng)
    tiers = 6
    for tier in range(tiers):
        low = 1.0 + (height - 1.0) * tier / tiers
        high = low + (height - 1.0) / tiers * 1.5
        angle = np.arange(10) * (2 * np.pi / 10) + tier
        outer = width * (1 - tier / tiers) * rng.uniform(0.75, 1.15, 10)
        ring = np.column_stack([outer * np.cos(angle), outer * np.sin(angle), low + rng.normal(0, 0.15, 10)])
        tip = np.column_stack([0.05 * np.cos(angle), 0.05 * np.sin(angle), np.full(10, high)])
        builder.add(loft(np.stack([ring, tip]), caps=False), _foliage(shade(colour, rng)))
        centre = np.array([0.0, 0.0, low + 0.3])
        radii = np.array([width * (1 - tier / tiers), width * (1 - tier / tiers), 0.35])
        builder.add(_leaves(rng, centre, radii, 24, 0.16), _foliage(shade(colour, rng)))
    return builder.build()


def bush(rng: np.random.Generator, town: Town) -> Mesh:
    """A low shrub."""
    builder = MeshBuilder()
    colour = pick(town.foliage, rng)
    for _ in range(int(rng.integers(1, 4))):
        radii = rng.uniform(0.3, 0.8, 3)
        centre = np.array([*rng.normal(0, 0.35, 2), radii[2] * 0.7])
        builder.add(_clump(rng, centre, radii * 0.8), _foliage(shade(colour, rng)))
        builder.add(_leaves(rng, centre, radii, 24, 0.12), _foliage(shade(colour, rng)))
    return builder.build()


def hedge(rng: np.random.Generator, town: Town, length: float) -> Mesh:
    """A clipped hedge along x, rough on all sides."""
    builder = MeshBuilder()
    height, width = float(rng.uniform(0.9, 1.9)), float(rng.uniform(0.5, 0.9))
    colour = pick(town.foliage, rng)
    stations = np.linspace(-length / 2, length / 2, max(round(length / 0.8), 2))
    profile = np.array([(-0.5, -0.3), (-0.55, 0.5), (-0.4, 1.0), (0.4, 1.0), (0.55, 0.5), (0.5, -0.3)]) * (
        width,
        height,
    )
    rings = np.stack([np.column_stack([np.full(6, x), profile]) for x in stations])
    rings[..., 1:] += rng.normal(0, 0.05, rings[..., 1:].shape)
    builder.add(loft(rings), _foliage(colour))
    count = round(length * 8)
    middles = np.column_stack(
        [
            rng.uniform(-length / 2, length / 2, count),
            rng.normal(0, width / 2, count),
            rng.uniform(0.1, height, count),
        ]
    )
    corners = (middles[:, None] + rng.normal(0, 0.1, (count, 3, 3))).reshape(-1, 3)
    builder.add((corners, np.arange(3 * count).reshape(-1, 3)), _foliage(shade(colour, rng)))
    return builder.build()


def grass_tuft(rng: np.random.Generator, town: Town) -> Mesh:
    """High grass and weeds: upright blades over about two square metres."""
    count = 26
    feet = rng.normal(0, 0.55, (count, 2))
    tips = np.column_stack([feet + rng.normal(0, 0.12, (count, 2)), rng.uniform(0.15, 0.5, count)])
    side = rng.normal(0, 0.08, (count, 2))
    low = np.zeros((count, 1)) - 0.05
    blades = np.stack([np.hstack([feet - side, low]), np.hstack([feet + side, low]), tips], 1)
    builder = MeshBuilder()
    finish = Finish(Semantic.VEGETATION, shade(town.grass, rng), Texture.FOLIAGE, 0.4)
    builder.add((blades.reshape(-1, 3), np.arange(3 * count).reshape(-1, 3)), finish)
    return builder.build()


def planter(rng: np.random.Generator, town: Town) -> Mesh:
    """A concrete tub with a shrub."""
    builder = MeshBuilder()
    tub = Finish(Semantic.OTHER_STRUCTURE, shade((150, 146, 140), rng), Texture.CONCRETE, 0.4)
    builder.add(box((1.2, 0.7, 0.6), (0, 0, 0.3)), tub)
    builder.add_mesh(bush(rng, town), (0, 0, 0.5), scale=(0.7, 0.5, 0.8))
    return builder.build()
