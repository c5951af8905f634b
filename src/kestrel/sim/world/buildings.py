# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Buildings: walls, roofs, ground floors and what sticks out of them."""

from __future__ import annotations

import numpy as np

from kestrel.sim.scene import Texture
from kestrel.sim.semantics import Semantic
from kestrel.sim.world.mesh import Colour, Finish, MeshBuilder, Shape, box, tube
from kestrel.sim.world.towns import Town

_STOREY = 3.1


def shade(colour: Colour, rng: np.random.Generator, spread: float = 0.12) -> Colour:
    """A shade of ``colour``."""
    values = np.clip(np.array(colour) * rng.uniform(1 - spread, 1 + spread, 1) + rng.normal(0, 4, 3), 0, 255)
    return int(values[0]), int(values[1]), int(values[2])


def pick(colours: tuple[Colour, ...], rng: np.random.Generator) -> Colour:
    """One of the colours, shaded."""
    return shade(colours[int(rng.integers(len(colours)))], rng)


def gable(length: float, width: float, base: float, rise: float) -> tuple[Shape, Shape]:
    """Pitched roof along x (slopes) and its two end walls; 0.4 m overhang."""
    x, y, over = length / 2, width / 2, 0.4
    drop = rise * over / y
    slopes = np.array(
        [(-x - over, -y - over, base - drop), (x + over, -y - over, base - drop), (x + over, 0, base + rise),
         (-x - over, 0, base + rise), (-x - over, y + over, base - drop), (x + over, y + over, base - drop)]
    )  # fmt: skip
    ends = np.array(
        [(e * x, side, z) for e in (-1, 1) for side, z in ((-y, base), (y, base), (0, base + rise))]
    )
    return (slopes, np.array([(0, 1, 2), (0, 2, 3), (3, 2, 5), (3, 5, 4)])), (
        ends,
        np.array([(0, 2, 1), (3, 4, 5)]),
    )


def add_block(
    builder: MeshBuilder,
    rng: np.random.Generator,
    town: Town,
    size: tuple[float, float],
    place: np.ndarray,
    heading: float,
) -> None:
    """A city building of several storeys: shop floor, windows above, parapet, things on the roof.

    size: length along the street, depth. place: (2,) middle.
    heading: of the street; the front faces its right.
    """
    length, depth = size
    own = MeshBuilder()
    wall = pick(town.facades, rng)
    storeys = int(rng.integers(town.storeys[0], town.storeys[1] + 1))
    ground, height = 3.8, 3.8 + storeys * _STOREY
    texture = int(rng.choice([Texture.WINDOWS, Texture.WINDOWS, Texture.WINDOWS, Texture.BRICK]))
    base = Finish(
        Semantic.BUILDING, pick(town.facades, rng), int(rng.choice([Texture.CONCRETE, Texture.BRICK])), 0.45
    )
    own.add(box((length, depth, ground + 0.5), (0, 0, (ground - 0.5) / 2)), base)
    upper = Finish(Semantic.BUILDING, wall, texture, float(rng.uniform(0.3, 0.6)))
    inset = float(rng.choice([-0.5, 0.0, 0.3]))
    own.add(box((length, depth - inset, height - ground), (0, inset / 2, (height + ground) / 2)), upper)
    roof = Finish(Semantic.BUILDING, pick(town.roofs, rng), Texture.PLAIN, 0.3)
    if rng.random() < town.gable_rate:
        slopes, ends = gable(length, depth, height, float(rng.uniform(1.5, 3.0)))
        own.add(slopes, roof)
        own.add(ends, upper)
    else:
        own.add(box((length + 0.3, depth + 0.3, 0.7), (0, 0, height + 0.1)), roof)
        for _ in range(int(rng.integers(0, 3))):
            spot = rng.uniform(-0.35, 0.35, 2) * size
            own.add(box(rng.uniform(1.2, 3.0, 3), (*spot, height + 1.2)), roof)
    _add_front(own, rng, length, depth, ground, storeys, roof)
    builder.add_mesh(own.build(), (*place, 0.0), heading)


def _add_front(
    own: MeshBuilder,
    rng: np.random.Generator,
    length: float,
    depth: float,
    ground: float,
    storeys: int,
    trim: Finish,
) -> None:
    """Shop windows, door, awning and balconies on the street side (-y)."""
    glass = Finish(Semantic.BUILDING, (58, 70, 82), Texture.GLASS, 0.12)
    front = -depth / 2 - 0.03
    bays = max(int(length / 3.6), 1)
    for bay in range(bays):
        x = (bay + 0.5) / bays * length - length / 2
        if rng.random() < 0.7:
            own.add(box((2.4, 0.12, 2.1), (x, front, 1.6)), glass)
        else:
            own.add(box((1.1, 0.14, 2.3), (x, front, 1.25)), Finish(Semantic.BUILDING, (88, 62, 48), 0, 0.4))
    if rng.random() < 0.35:
        cloth = Finish(
            Semantic.BUILDING, (150, 48, 44) if rng.random() < 0.5 else (52, 90, 78), Texture.STRIPES, 0.5
        )
        own.add(box((length * 0.7, 1.3, 0.12), (0, front - 0.6, ground - 0.7)), cloth)
    if rng.random() < 0.4:
        for storey in range(min(storeys, 5)):
            z = ground + (storey + 0.15) * _STOREY
            for bay in range(0, bays, 2):
                x = (bay + 0.5) / bays * length - length / 2
                own.add(box((2.6, 1.0, 0.15), (x, front - 0.5, z)), trim)
                own.add(box((2.6, 0.06, 0.9), (x, front - 0.95, z + 0.5)), trim)


def add_house(
    builder: MeshBuilder,
    rng: np.random.Generator,
    town: Town,
    size: tuple[float, float],
    place: np.ndarray,
    heading: float,
) -> None:
    """A detached house with a pitched roof, a chimney, windows, a porch and perhaps a garage."""
    length, depth = size
    own = MeshBuilder()
    storeys = int(rng.integers(1, 3))
    height = 0.4 + storeys * 2.8
    facade = pick(town.facades, rng)
    texture = int(rng.choice([Texture.PLAIN, Texture.BRICK, Texture.WINDOWS]))
    wall = Finish(Semantic.BUILDING, facade, texture, float(rng.uniform(0.3, 0.6)))
    roof = Finish(Semantic.BUILDING, pick(town.roofs, rng), Texture.BRICK, 0.35)
    own.add(box((length, depth, height + 0.5), (0, 0, (height - 0.5) / 2)), wall)
    slopes, ends = gable(length, depth, height, float(rng.uniform(1.6, 3.2)))
    own.add(slopes, roof)
    own.add(ends, wall)
    glass = Finish(Semantic.BUILDING, (66, 76, 88), Texture.GLASS, 0.12)
    for storey in range(storeys):
        for x in np.arange(-length / 2 + 1.6, length / 2 - 1.0, 2.6):
            own.add(box((1.2, 0.12, 1.3), (x, -depth / 2 - 0.02, 1.7 + 2.8 * storey)), glass)
    own.add(box((0.7, 0.7, 2.0), (length * 0.25, depth * 0.15, height + 2.2)), wall)
    if rng.random() < 0.5:
        own.add(box((2.4, 1.4, 0.15), (0, -depth / 2 - 0.7, 2.5)), roof)
        for x in (-1.0, 1.0):
            own.add(tube((x, -depth / 2 - 1.2, -0.3), (x, -depth / 2 - 1.2, 2.5), 0.07), wall)
    builder.add_mesh(own.build(), (*place, 0.0), heading)


def add_hall(
    builder: MeshBuilder,
    rng: np.random.Generator,
    town: Town,
    size: tuple[float, float],
    place: np.ndarray,
    heading: float,
) -> None:
    """A low, wide shed: warehouse, workshop or supermarket."""
    length, depth = size
    own = MeshBuilder()
    height = float(rng.uniform(5.0, 10.0))
    wall = Finish(Semantic.BUILDING, pick(town.facades, rng), Texture.STRIPES, 0.5)
    own.add(box((length, depth, height + 0.5), (0, 0, (height - 0.5) / 2)), wall)
    roof = Finish(Semantic.BUILDING, pick(town.roofs, rng), Texture.PLAIN, 0.35)
    slopes, ends = gable(length, depth, height, float(rng.uniform(0.6, 1.6)))
    own.add(slopes, roof)
    own.add(ends, wall)
    for x in np.arange(-length / 2 + 4.0, length / 2 - 3.0, 7.0):
        own.add(
            box((3.6, 0.12, 3.8), (x, -depth / 2 - 0.03, 1.9)),
            Finish(Semantic.BUILDING, (104, 110, 116), 0, 0.5),
        )
    builder.add_mesh(own.build(), (*place, 0.0), heading)
