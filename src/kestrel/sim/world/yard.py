# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What stands between houses and road: walls, sheds, carports, containers, bins, heaps and banks of earth.

Much of it is as large as a vehicle, none of it is one. All meshes stand on z = 0; x is along the road.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from kestrel.sim.scene import Mesh, Texture
from kestrel.sim.semantics import Semantic
from kestrel.sim.world import vegetation
from kestrel.sim.world.buildings import gable, pick, shade
from kestrel.sim.world.mesh import Colour, Finish, MeshBuilder, Shape, box, loft, tube
from kestrel.sim.world.towns import Town
from kestrel.types import Float64Array

_FOOT = 0.4
"""How far things reach into the ground, metres."""


def _finish(
    rng: np.random.Generator, colour: Colour, texture: int, semantic: Semantic = Semantic.OTHER_STRUCTURE
) -> Finish:
    return Finish(semantic, shade(colour, rng), texture, float(rng.uniform(0.12, 0.7)))


def garden_wall(rng: np.random.Generator, town: Town, length: float) -> Mesh:
    """A wall along x, 0.4 to 2.6 m high, with pillars, a gate, and perhaps bars or a hedge on top."""
    builder = MeshBuilder()
    height, thick = (
        float(rng.choice([0.5, 0.9, 1.3, 1.8, 2.4]) + rng.normal(0, 0.1)),
        float(rng.uniform(0.2, 0.4)),
    )
    texture = int(rng.choice([Texture.BRICK, Texture.CONCRETE, Texture.PLAIN]))
    wall = Finish(Semantic.FENCE, pick(town.facades, rng), texture, float(rng.uniform(0.15, 0.65)))
    gate = float(rng.uniform(1.0, 3.2)) if length > 6.0 and rng.random() < 0.6 else 0.0
    start = float(rng.uniform(-length / 2 + 0.5, length / 2 - gate - 0.5))
    parts = [(-length / 2, start), (start + gate, length / 2)] if gate else [(-length / 2, length / 2)]
    for left, right in parts:
        builder.add(
            box((right - left, thick, height + _FOOT), ((left + right) / 2, 0, (height - _FOOT) / 2)), wall
        )
        for x in np.arange(left, right + 0.1, float(rng.uniform(2.0, 4.0))):
            builder.add(box((0.45, 0.45, height + 0.6), (x, 0, (height - 0.2) / 2)), wall)
    if gate and rng.random() < 0.6:
        bars = _finish(rng, (70, 70, 72), Texture.PLAIN, Semantic.FENCE)
        for x in np.arange(start + 0.1, start + gate, 0.14):
            builder.add(box((0.03, 0.03, 1.2), (x, 0, 0.6)), bars)
    if height < 1.4 and rng.random() < 0.5:
        if rng.random() < 0.5:
            builder.add_mesh(vegetation.hedge(rng, town, length), (0, 0.5, 0.2))
        else:
            bars = _finish(rng, (90, 92, 94), Texture.PLAIN, Semantic.FENCE)
            for x in np.arange(-length / 2, length / 2, 0.16):
                builder.add(box((0.03, 0.03, 0.8), (x, 0, height + 0.4)), bars)
    return builder.build()


def shed(rng: np.random.Generator, town: Town) -> Mesh:
    """A garden shed or a garage, as long and high as a van, with a pitched or a flat roof."""
    builder = MeshBuilder()
    length, depth, height = rng.uniform((2.0, 1.8, 1.9), (6.5, 3.4, 2.8))
    wall = _finish(rng, (140, 112, 84), int(rng.choice([Texture.STRIPES, Texture.BRICK])), Semantic.BUILDING)
    roof = Finish(Semantic.BUILDING, pick(town.roofs, rng), Texture.PLAIN, float(rng.uniform(0.1, 0.4)))
    builder.add(box((length, depth, height + _FOOT), (0, 0, (height - _FOOT) / 2)), wall)
    if rng.random() < 0.6:
        slopes, ends = gable(float(length), float(depth), float(height), float(rng.uniform(0.4, 1.0)))
        builder.add(slopes, roof)
        builder.add(ends, wall)
    else:
        builder.add(box((length + 0.4, depth + 0.4, 0.15), (0, 0, height + 0.07)), roof)
    door = _finish(rng, (170, 170, 166), Texture.STRIPES, Semantic.BUILDING)
    builder.add(box((min(2.5, length * 0.6), 0.08, 2.0), (0, -depth / 2 - 0.03, 1.0)), door)
    return builder.build()


def carport(rng: np.random.Generator, town: Town) -> Mesh:
    """A roof on four posts, one side perhaps closed."""
    builder = MeshBuilder()
    length, depth, height = rng.uniform((3.0, 2.6, 2.1), (6.5, 5.5, 2.7))
    wood = _finish(rng, (120, 96, 74), Texture.BARK)
    for x in (-length / 2, length / 2):
        for y in (-depth / 2, depth / 2):
            builder.add(box((0.14, 0.14, height + _FOOT), (x, y, (height - _FOOT) / 2)), wood)
    builder.add(box((length + 0.5, depth + 0.5, 0.18), (0, 0, height)), wood)
    if rng.random() < 0.6:
        builder.add(box((length, 0.08, height), (0, depth / 2, height / 2)), wood)
    return builder.build()


def container(rng: np.random.Generator, town: Town) -> Mesh:
    """A shipping container or site hut with ribbed sides, or an open skip with slanted ends."""
    builder = MeshBuilder()
    steel = _finish(rng, pick(town.paints, rng), Texture.STRIPES)
    if rng.random() < 0.4:
        length, width, height = rng.uniform((2.8, 1.5, 1.0), (5.5, 2.2, 1.9))
        profile = np.array([(-0.5, 1.0), (-0.32, 0.05), (0.32, 0.05), (0.5, 1.0)]) * (length, height)
        sides = [
            np.column_stack([profile[:, 0], np.full(4, y), profile[:, 1]]) for y in (-width / 2, width / 2)
        ]
        builder.add(loft(np.stack(sides)), steel)
        return builder.build()
    length, width, height = float(rng.choice([3.0, 6.06, 6.06, 12.2])), 2.44, float(rng.choice([2.59, 2.9]))
    stations = np.arange(-length / 2 + 0.1, length / 2, 0.28)
    builder.add(box((length, width - 0.1, height), (0, 0, height / 2 + 0.1)), steel)
    for x in stations:
        builder.add(box((0.14, width, height - 0.3), (x, 0, height / 2 + 0.1)), steel)
    if rng.random() < 0.3:
        pane = Finish(Semantic.OTHER_STRUCTURE, (64, 74, 86), Texture.GLASS, 0.12)
        for x in np.arange(-length / 2 + 1.2, length / 2 - 0.8, 2.0):
            builder.add(box((1.0, width + 0.08, 1.0), (x, 0, 1.6)), pane)
    return builder.build()


def cabinet(rng: np.random.Generator, town: Town) -> Mesh:
    """A switch cabinet, a transformer, a kiosk: a plain box, 0.8 to 3.5 m long."""
    builder = MeshBuilder()
    size = rng.uniform((0.8, 0.4, 1.0), (3.5, 2.2, 2.7))
    body = _finish(rng, pick(town.facades, rng), Texture.CONCRETE)
    builder.add(box((size[0], size[1], size[2] + _FOOT), (0, 0, (size[2] - _FOOT) / 2)), body)
    if size[2] > 2.0 and rng.random() < 0.6:
        builder.add(box((size[0] + 0.6, size[1] + 0.6, 0.15), (0, 0, size[2] + 0.05)), body)
        pane = Finish(Semantic.OTHER_STRUCTURE, (64, 74, 86), Texture.GLASS, 0.12)
        builder.add(box((size[0] * 0.7, 0.06, 1.0), (0, -size[1] / 2 - 0.02, 1.6)), pane)
    return builder.build()


def bins(rng: np.random.Generator, town: Town) -> Mesh:
    """A row of rubbish bins, small ones on wheels or large ones."""
    builder = MeshBuilder()
    large = rng.random() < 0.4
    size = (1.35, 1.05, 1.25) if large else (0.58, 0.68, 1.05)
    for index in range(int(rng.integers(1, 5))):
        plastic = _finish(
            rng, ((60, 70, 62), (74, 74, 78), (150, 130, 50))[int(rng.integers(3))], Texture.PLAIN
        )
        x = index * (size[0] + 0.12) + rng.normal(0, 0.04)
        builder.add(box(size, (x, rng.normal(0, 0.06), size[2] / 2 + 0.05), yaw=rng.normal(0, 0.1)), plastic)
    return builder.build()


def heap(rng: np.random.Generator, town: Town) -> Mesh:
    """A stack of logs, or a heap of gravel or rubble, of the height of a car."""
    builder = MeshBuilder()
    if rng.random() < 0.5:
        wood = _finish(rng, (140, 110, 80), Texture.BARK)
        length, rows = float(rng.uniform(0.4, 1.2)), int(rng.integers(3, 8))
        for row in range(rows):
            for column in range(int(rng.integers(6, 14))):
                y, z = rng.normal(0, 0.05), 0.12 + row * 0.2
                middle = (column - 6) * 0.24
                builder.add(tube((middle, y - length, z), (middle, y + length, z), 0.12, sides=6), wood)
        return builder.build()
    rubble = _finish(rng, (150, 140, 124), Texture.CONCRETE)
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    radius, height = rng.uniform(1.0, 3.0), rng.uniform(0.6, 1.8)
    rings = []
    for share in (0.0, 0.45, 0.9):
        around = radius * (1 - 0.85 * share) * rng.uniform(0.8, 1.2, 12)
        level = height * share + rng.normal(0, 0.06, 12) - (0.2 if share == 0 else 0)
        rings.append(np.column_stack([1.4 * around * np.cos(angle), around * np.sin(angle), level]))
    builder.add(loft(np.stack(rings)), rubble)
    return builder.build()


def _leaves(rng: np.random.Generator, middles: Float64Array) -> Shape:
    """Loose triangles of a hand's size around points (N, 3)."""
    corners = middles[:, None] + rng.normal(0.0, 0.07, (len(middles), 3, 3))
    return corners.reshape(-1, 3), np.arange(3 * len(middles)).reshape(-1, 3)


def thicket(rng: np.random.Generator, town: Town) -> Mesh:
    """Shrubs grown together, as large as a car or a lorry; shots end at many depths in them."""
    builder = MeshBuilder()
    length, width, height = rng.uniform((1.2, 1.0, 0.8), (6.0, 2.6, 2.6))
    for _ in range(int(rng.integers(2, 7))):
        radii = np.array([*rng.uniform(0.35, 0.6, 2) * width, height * rng.uniform(0.35, 0.55)])
        centre = np.array([*rng.uniform(-0.5, 0.5, 2) * (length - width, width * 0.5), radii[2] * 0.9])
        directions = rng.normal(size=(round(170 * float(radii.max())), 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        reach = rng.uniform(0.5, 1.05, (len(directions), 1))
        builder.add(_leaves(rng, centre + directions * radii * reach), _foliage(rng, town))
    return builder.build()


def overgrown_hedge(rng: np.random.Generator, town: Town, length: float) -> Mesh:
    """A hedge along x, 0.8 to 3.2 m high, that has not been cut for long, or a wall under ivy."""
    builder = MeshBuilder()
    width, height = float(rng.uniform(0.35, 1.1)), float(rng.uniform(0.8, 3.2))
    count = round(length * (height + width) * 45)
    across = rng.uniform(-0.5, 0.5, count) + rng.choice([-0.25, 0.0, 0.25], count)
    middles = np.column_stack(
        [rng.uniform(-length / 2, length / 2, count), across * width, rng.uniform(0.05, height, count)]
    )
    middles[:, 2] *= 1.0 + 0.12 * np.sin(middles[:, 0] * float(rng.uniform(0.5, 2.0)))
    builder.add(_leaves(rng, middles), _foliage(rng, town))
    if rng.random() < 0.3:
        wall = _finish(rng, (150, 140, 126), Texture.BRICK, Semantic.FENCE)
        builder.add(box((length, 0.2, height * 0.8), (0, 0, height * 0.4)), wall)
    return builder.build()


def _foliage(rng: np.random.Generator, town: Town) -> Finish:
    leaf = pick(town.foliage, rng)
    return Finish(Semantic.VEGETATION, leaf, Texture.FOLIAGE, float(rng.uniform(0.25, 0.6)))


def bank(rng: np.random.Generator, town: Town, length: float, depth: float) -> Mesh:
    """A grown bank that rises from the road (-y) by 1 to 5 m; steep ones look like walls."""
    builder = MeshBuilder()
    height = float(rng.uniform(0.25, 0.8)) * depth
    grass = Finish(Semantic.TERRAIN, town.grass, Texture.GRASS, float(rng.uniform(0.25, 0.5)))
    x = np.linspace(-length / 2, length / 2, max(round(length / 1.5), 3))
    y = np.linspace(0.0, 1.0, 7)
    profile = np.clip(y / 0.75, 0, 1) ** float(rng.uniform(0.8, 1.6)) * height
    ends = np.clip((length / 2 - np.abs(x)) / 3.0, 0.02, 1.0)
    z = profile * ends[:, None] + rng.normal(0, 0.06, (len(x), 7)) * (y > 0) - (y == 0) * 0.2
    grid = np.stack(
        [np.broadcast_to(x[:, None], z.shape), np.broadcast_to((y - 0.5) * depth, z.shape), z], -1
    )
    builder.add(loft(grid, closed=False, caps=False), grass)
    for _ in range(int(rng.integers(0, 7))):
        i, j = int(rng.integers(1, len(x) - 1)), int(rng.integers(2, 7))
        builder.add_mesh(
            vegetation.bush(rng, town), grid[i, j], float(rng.uniform(0, 6.3)), float(rng.uniform(0.6, 1.8))
        )
    return builder.build()


THINGS: Final[tuple[Callable[[np.random.Generator, Town], Mesh], ...]] = (
    shed, shed, carport, container, cabinet, bins, heap, thicket, thicket,
)  # fmt: skip
"""What is set into yards and gardens."""


def ground_size(mesh: Mesh) -> Float64Array:
    """Return how long and wide (2,) the ground is that a mesh about the origin takes."""
    return np.asarray(2 * np.abs(mesh.vertices[:, :2]).max(0), np.float64)
