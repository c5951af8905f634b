# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Houses with depth: windows and doors in reveals, rooms behind open panes, bays, wings, steps and garages.

To a LiDAR a smooth wall two metres high is the side of a lorry. What tells a house are the many shallow steps
of its front, the shots that its panes swallow or let through, and walls at any angle to the road.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kestrel.sim.scene import Texture
from kestrel.sim.semantics import Semantic
from kestrel.sim.world.buildings import gable, pick
from kestrel.sim.world.mesh import Finish, MeshBuilder, Shape, box, prism, tube
from kestrel.sim.world.towns import Town
from kestrel.types import Float64Array

_WALL = 0.35
"""Thickness of a front, metres."""

_SHADE = Finish(Semantic.BUILDING, (48, 44, 42), Texture.PLAIN, 0.12)
"""What is seen of a room from the street."""


@dataclass(frozen=True)
class Front:
    """How the street side of a house is built; metres.

    floor: of the lowest storey over the ground. window: width, sill, height. recess: of panes in the wall.
    glazed, open: chances that a window has a pane, or is open; else it has a blind. clear: how far anything
    below head height may stand before the wall.
    """

    storeys: int
    storey: float
    floor: float
    bay: float
    window: tuple[float, float, float]
    recess: float
    glazed: float
    open: float
    clear: float

    @property
    def height(self) -> float:
        """Of the eaves over the ground."""
        return self.floor + self.storeys * self.storey


def draw_front(rng: np.random.Generator, storeys: tuple[int, int], clear: float) -> Front:
    """A front with so many storeys (lowest and highest number), ``clear`` metres behind the sidewalk."""
    bay = float(rng.uniform(1.7, 3.4))
    glazed = float(rng.uniform(0.3, 0.9))
    return Front(
        storeys=int(rng.integers(storeys[0], storeys[1] + 1)),
        storey=float(rng.uniform(2.6, 3.4)),
        floor=min(float(rng.choice([0.1, 0.3, 0.6, 1.2])), 0.1 + 0.5 * clear),
        bay=bay,
        window=(
            bay * float(rng.uniform(0.3, 0.75)),
            float(rng.uniform(0.3, 1.1)),
            float(rng.uniform(0.9, 1.6)),
        ),
        recess=float(rng.uniform(0.04, 0.3)),
        glazed=glazed,
        open=(1 - glazed) * float(rng.uniform(0.2, 0.9)),
        clear=clear,
    )


def add_dwelling(
    builder: MeshBuilder,
    rng: np.random.Generator,
    town: Town,
    size: tuple[float, float],
    place: Float64Array,
    heading: float,
    front: Front,
) -> None:
    """A house with a front; arguments as of buildings.add_block."""
    length, depth = size
    own = MeshBuilder()
    texture = int(rng.choice([Texture.PLAIN, Texture.BRICK, Texture.CONCRETE]))
    wall = Finish(Semantic.BUILDING, pick(town.facades, rng), texture, float(rng.uniform(0.12, 0.75)))
    roof = Finish(Semantic.BUILDING, pick(town.roofs, rng), Texture.BRICK, float(rng.uniform(0.1, 0.45)))
    room = min(float(rng.uniform(2.0, 4.0)), depth - 2.5)
    own.add(_span(-length / 2, length / 2, -depth / 2 + room, depth / 2, -0.5, front.height), wall)
    own.add(
        _span(-length / 2, length / 2, -depth / 2, -depth / 2 + room, front.height - 0.3, front.height), wall
    )
    for end in (-1, 1):
        inner, outer = sorted((end * (length / 2 - _WALL), end * length / 2))
        own.add(_span(inner, outer, -depth / 2, -depth / 2 + room, -0.5, front.height), wall)
    own.add(
        _span(
            -length / 2 + _WALL,
            length / 2 - _WALL,
            -depth / 2 + room - 0.1,
            -depth / 2 + room,
            0,
            front.height,
        ),
        _SHADE,
    )
    _add_front(own, rng, front, length, -depth / 2, wall)
    _add_sides(own, rng, front, length, depth)
    _add_roof(own, rng, (length, depth), front.height, roof, wall)
    _add_entrance(own, rng, front, length, -depth / 2, wall)
    if rng.random() < 0.45:
        _add_bay(own, rng, front, length, -depth / 2, wall)
    if rng.random() < 0.3:
        _add_balconies(own, rng, front, length, -depth / 2, roof)
    builder.add_mesh(own.build(), (float(place[0]), float(place[1]), 0.0), heading)


def _span(x0: float, x1: float, y0: float, y1: float, z0: float, z1: float) -> Shape:
    """Cuboid between two corners."""
    return box((x1 - x0, y1 - y0, z1 - z0), ((x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2))


def _add_front(
    own: MeshBuilder, rng: np.random.Generator, front: Front, length: float, y: float, wall: Finish
) -> None:
    """The wall at ``y`` with its windows, storey by storey."""
    width, sill, height = front.window
    bays = max(int(length / front.bay), 1)
    step = length / bays
    width = min(width, step - 0.3)
    own.add(_span(-length / 2, length / 2, y, y + _WALL, -0.5, front.floor), wall)
    for storey in range(front.storeys):
        base = front.floor + storey * front.storey
        own.add(_span(-length / 2, length / 2, y, y + _WALL, base, base + sill), wall)
        own.add(_span(-length / 2, length / 2, y, y + _WALL, base + sill + height, base + front.storey), wall)
        edges = np.concatenate(
            [[-length / 2], ((np.arange(bays) + 0.5) * step - length / 2)[:, None].repeat(2, 1).ravel()
             + np.tile([-width / 2, width / 2], bays), [length / 2]]
        )  # fmt: skip
        for left, right in edges.reshape(-1, 2):
            own.add(_span(left, right, y, y + _WALL, base + sill, base + sill + height), wall)
        for bay in range(bays):
            x = (bay + 0.5) * step - length / 2
            _fill_window(own, rng, front, (x, y, base + sill), (width, height), wall)


def _fill_window(
    own: MeshBuilder,
    rng: np.random.Generator,
    front: Front,
    corner: tuple[float, float, float],
    size: tuple[float, float],
    wall: Finish,
) -> None:
    """A pane, an open window, or shutters; ``corner`` is the middle of its sill."""
    (x, y, z), (width, height) = corner, size
    roll = rng.random()
    if roll < front.glazed:
        pane = Finish(Semantic.BUILDING, (64, 74, 86), Texture.GLASS, 0.12)
        own.add(box((width, 0.04, height), (x, y + front.recess, z + height / 2)), pane)
        frame = Finish(Semantic.BUILDING, (214, 210, 204), Texture.PLAIN, 0.6)
        own.add(box((0.07, 0.06, height), (x, y + front.recess, z + height / 2)), frame)
    elif roll > front.glazed + front.open:
        depth = float(rng.choice([-0.05, 0.06, front.recess]))
        blind = Finish(Semantic.BUILDING, (150, 146, 138), Texture.STRIPES, float(rng.uniform(0.2, 0.7)))
        own.add(box((width, 0.05, height), (x, y + depth, z + height / 2)), blind)
    if rng.random() < 0.3:
        own.add(box((width + 0.2, 0.18, 0.08), (x, y - 0.06, z - 0.04)), wall)


def _add_sides(own: MeshBuilder, rng: np.random.Generator, front: Front, length: float, depth: float) -> None:
    """A few panes in the gable ends and at the back."""
    pane = Finish(Semantic.BUILDING, (64, 74, 86), Texture.GLASS, 0.12)
    for storey in range(front.storeys):
        z = front.floor + storey * front.storey + 1.6
        for end in (-1, 1):
            for y in rng.uniform(-depth / 2 + 1.0, depth / 2 - 1.0, int(rng.integers(0, 3))):
                own.add(box((0.1, 1.0, 1.3), (end * length / 2, y, z)), pane)
        for x in rng.uniform(-length / 2 + 1.0, length / 2 - 1.0, int(rng.integers(1, 4))):
            own.add(box((1.2, 0.1, 1.3), (x, depth / 2, z)), pane)


def _add_roof(
    own: MeshBuilder,
    rng: np.random.Generator,
    size: tuple[float, float],
    base: float,
    roof: Finish,
    wall: Finish,
) -> None:
    """A pitched roof, its ridge along the street or across, or a flat one."""
    length, depth = size
    kind = rng.random()
    if kind < 0.2:
        own.add(box((length + 0.3, depth + 0.3, 0.4), (0, 0, base + 0.1)), roof)
        return
    across = kind < 0.5
    span = (depth, length) if across else (length, depth)
    slopes, ends = gable(*span, base, float(rng.uniform(0.3, 0.5)) * span[1])
    for (vertices, triangles), finish in ((slopes, roof), (ends, wall)):
        turned = vertices[:, [1, 0, 2]] * (-1, 1, 1) if across else vertices
        own.add((turned, triangles), finish)
    own.add(box((0.7, 0.7, 2.4), (length * 0.25, depth * 0.15, base + 2.0)), wall)


def _add_entrance(
    own: MeshBuilder, rng: np.random.Generator, front: Front, length: float, y: float, wall: Finish
) -> None:
    """Door, steps up to it, and perhaps a porch, a canopy or a stair with walls."""
    x = float(rng.uniform(-length / 2 + 0.9, length / 2 - 0.9))
    door = Finish(Semantic.BUILDING, (92, 66, 50), Texture.PLAIN, float(rng.uniform(0.1, 0.6)))
    own.add(box((1.1, 0.12, 2.2), (x, y - 0.02, front.floor + 1.1)), door)
    stone = Finish(Semantic.BUILDING, (150, 146, 140), Texture.CONCRETE, 0.4)
    steps = max(round((front.floor - 0.1) / 0.18), 1)
    for step in range(steps):
        out = min(0.3 * (steps - step) + 0.4, front.clear)
        top = 0.1 + (step + 1) / steps * max(front.floor - 0.1, 0.05)
        own.add(_span(x - 0.75, x + 0.75, y - out, y, -0.3, top), stone)
    roll = rng.random() if front.clear > 1.5 else 1.0
    if roll < 0.3:
        own.add(box((2.0, 1.2, 0.12), (x, y - 0.6, front.floor + 2.5)), wall)
        for side in (-0.9, 0.9):
            own.add(tube((x + side, y - 1.1, -0.3), (x + side, y - 1.1, front.floor + 2.5), 0.07), wall)
    elif roll < 0.5:
        for side in (-0.85, 0.85):
            out = min(0.3 * steps + 0.4, front.clear)
            own.add(_span(x + side - 0.08, x + side + 0.08, y - out, y, -0.3, front.floor + 0.9), stone)
    elif roll < 0.65:
        own.add(box((2.0, 1.4, 2.6), (x, y - 0.7, front.floor + 0.9)), wall)


def _add_bay(
    own: MeshBuilder, rng: np.random.Generator, front: Front, length: float, y: float, wall: Finish
) -> None:
    """A bay window or a gabled projection, square or slanted, over some of the storeys."""
    width = min(float(rng.uniform(1.8, 4.0)), length - 1.5)
    out, slant = float(rng.uniform(0.4, 1.6)), float(rng.choice([0.0, 0.0, 0.45]))
    x = float(rng.uniform(-(length - width) / 2, (length - width) / 2))
    low = -0.5 if out < front.clear and rng.random() < 0.7 else front.floor + front.storey
    top = front.height - float(rng.choice([0.0, front.storey])) if front.storeys > 1 else front.height
    if top - low < 1.0:
        return
    inset = slant * width / 2
    outline = np.array(
        [
            (x - width / 2, y),
            (x - width / 2 + inset, y - out),
            (x + width / 2 - inset, y - out),
            (x + width / 2, y),
        ]
    )
    own.add(prism(outline, low, top), wall)
    pane = Finish(Semantic.BUILDING, (64, 74, 86), Texture.GLASS, 0.12)
    for z in np.arange(max(low, front.floor) + 1.6, top - 0.8, front.storey):
        own.add(box((max(width - 2 * inset - 0.5, 0.5), 0.1, 1.3), (x, y - out, z)), pane)


def _add_balconies(
    own: MeshBuilder, rng: np.random.Generator, front: Front, length: float, y: float, trim: Finish
) -> None:
    """A balcony on every upper storey, with bars or a parapet."""
    width = min(float(rng.uniform(1.8, 3.6)), length - 0.6)
    x = float(rng.uniform(-(length - width) / 2, (length - width) / 2))
    solid = rng.random() < 0.5
    for storey in range(1, front.storeys):
        z = front.floor + storey * front.storey
        own.add(box((width, 1.2, 0.16), (x, y - 0.6, z)), trim)
        if solid:
            own.add(box((width, 0.08, 0.95), (x, y - 1.16, z + 0.5)), trim)
            continue
        own.add(box((width, 0.05, 0.05), (x, y - 1.16, z + 1.0)), trim)
        for bar in np.arange(-width / 2, width / 2 + 0.01, 0.22):
            own.add(box((0.03, 0.03, 1.0), (x + bar, y - 1.16, z + 0.5)), trim)
