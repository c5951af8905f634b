# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Street furniture: lamps, signs, traffic lights, fences, rails and small things on the sidewalk."""

from __future__ import annotations

import numpy as np

from kestrel.sim.lamps import SIGNAL_GROUP, Lamp
from kestrel.sim.scene import Mesh, Texture
from kestrel.sim.semantics import Semantic
from kestrel.sim.world.buildings import shade
from kestrel.sim.world.mesh import Colour, Finish, MeshBuilder, box, tube, wheel

_STEEL = Finish(Semantic.POLE, (112, 116, 120), Texture.PLAIN, 0.5)
_DARK = Finish(Semantic.TRAFFIC_LIGHT, (32, 34, 34), Texture.PLAIN, 0.2)
_LENSES: tuple[tuple[Lamp, Colour], ...] = (
    (Lamp.RED, (20, 14, 12)),
    (Lamp.AMBER, (22, 20, 10)),
    (Lamp.GREEN, (10, 20, 14)),
)
_SIGNS: tuple[tuple[str, Colour], ...] = (
    ("round", (196, 36, 40)),
    ("triangle", (206, 44, 44)),
    ("square", (34, 84, 160)),
    ("octagon", (190, 24, 32)),
    ("wide", (30, 110, 70)),
    ("square", (226, 190, 50)),
)


def lamp(rng: np.random.Generator) -> Mesh:
    """Street lamp; the arm reaches along +x."""
    builder = MeshBuilder()
    height, reach = float(rng.uniform(5.5, 9.0)), float(rng.uniform(0.8, 2.4))
    builder.add(tube((0, 0, -0.3), (0, 0, height), 0.1, 0.06, sides=7), _STEEL)
    builder.add(tube((0, 0, 0.0), (0, 0, 0.9), 0.15, 0.14, sides=7), _STEEL)
    builder.add(tube((0, 0, height), (reach, 0, height + 0.35), 0.05, 0.04), _STEEL)
    head = Finish(Semantic.POLE, (206, 206, 196), Texture.PLAIN, 0.5)
    builder.add(box((0.7, 0.26, 0.12), (reach + 0.25, 0, height + 0.35)), head)
    return builder.build()


def wooden_pole(rng: np.random.Generator) -> Mesh:
    """Utility pole with a cross-arm along y."""
    builder = MeshBuilder()
    wood = Finish(Semantic.POLE, shade((104, 84, 66), rng), Texture.BARK, 0.35)
    height = float(rng.uniform(7.5, 10.0))
    builder.add(tube((0, 0, -0.4), (0, 0, height), 0.16, 0.1, sides=7), wood)
    builder.add(box((0.12, 2.2, 0.14), (0, 0, height - 0.7)), wood)
    return builder.build()


def sign(rng: np.random.Generator) -> Mesh:
    """Traffic sign that faces -x (towards drivers who come along +x)."""
    builder = MeshBuilder()
    kind, colour = _SIGNS[int(rng.integers(len(_SIGNS)))]
    height = float(rng.uniform(2.1, 2.7))
    builder.add(tube((0, 0, -0.3), (0, 0, height + 0.3), 0.04, sides=6), _STEEL)
    face = Finish(Semantic.TRAFFIC_SIGN, colour, Texture.PLAIN, 0.95)
    if kind in ("square", "wide"):
        width = 1.4 if kind == "wide" else 0.65
        builder.add(box((0.04, width, 0.65), (-0.06, 0, height)), face)
    else:
        sides = {"round": 12, "triangle": 3, "octagon": 8}[kind]
        upright = np.pi / 2 if kind == "triangle" else np.pi / sides
        builder.add(tube((-0.08, 0, height), (-0.04, 0, height), 0.38, sides=sides, phase=upright), face)
    if rng.random() < 0.3:
        builder.add(
            box((0.03, 0.6, 0.25), (-0.06, 0, height - 0.6)),
            Finish(Semantic.TRAFFIC_SIGN, (230, 230, 226), 0, 0.9),
        )
    return builder.build()


def gantry(width: float) -> Mesh:
    """Overhead sign bridge across a carriageway of ``width`` metres (along y), facing -x."""
    builder = MeshBuilder()
    for y in (-width / 2, width / 2):
        builder.add(tube((0, y, -0.5), (0, y, 7.2), 0.18, sides=8), _STEEL)
    builder.add(box((0.4, width, 0.5), (0, 0, 7.0)), _STEEL)
    face = Finish(Semantic.TRAFFIC_SIGN, (28, 86, 150), Texture.PLAIN, 0.9)
    for y in np.linspace(-width / 2 + 3.5, width / 2 - 3.5, max(round(width / 8), 1)):
        builder.add(box((0.08, 4.2, 2.2), (-0.3, float(y), 6.9)), face)
    return builder.build()


def traffic_light(group: int, *, reach: float) -> Mesh:
    """Mast with signal heads of a group, facing -x; ``reach`` is how far its arm goes over the road (+y)."""
    builder = MeshBuilder()
    top = 5.6 if reach else 3.4
    builder.add(tube((0, 0, -0.3), (0, 0, top), 0.09, 0.07, sides=7), _STEEL)
    heads = [(0.0, 2.7)]
    if reach:
        builder.add(tube((0, 0, top - 0.15), (0, reach, top + 0.1), 0.06, 0.05), _STEEL)
        heads.append((reach, top - 0.35))
    for y, z in heads:
        builder.add(box((0.26, 0.34, 1.0), (-0.15, y, z)), _DARK)
        for index, (lamp, colour) in enumerate(_LENSES):
            switched = lamp + SIGNAL_GROUP * group
            lens = Finish(Semantic.TRAFFIC_LIGHT, colour, Texture.PLAIN, 0.3, switched)
            middle = z + 0.31 * (1 - index)
            builder.add(tube((-0.3, y, middle), (-0.27, y, middle), 0.12, sides=10), lens)
    return builder.build()


def fence(rng: np.random.Generator, length: float) -> Mesh:
    """Fence along x: pickets, mesh panels or a wall."""
    builder = MeshBuilder()
    kind = int(rng.integers(3))
    height = float(rng.uniform(0.9, 1.8))
    colour = shade(((190, 186, 178), (96, 84, 70), (84, 88, 90))[kind], rng)
    finish = Finish(Semantic.FENCE, colour, Texture.BRICK if kind == 1 else Texture.PLAIN, 0.4)
    if kind == 1:
        builder.add(box((length, 0.22, height + 0.4), (0, 0, (height - 0.4) / 2)), finish)
        return builder.build()
    for x in np.linspace(-length / 2, length / 2, max(round(length / 2.2), 1) + 1):
        builder.add(box((0.09, 0.09, height + 0.5), (x, 0, (height - 0.3) / 2)), finish)
    for z in (0.2, 0.55, 0.9):
        builder.add(box((length, 0.04, 0.07), (0, 0, z * height)), finish)
    spacing = 0.3 if kind == 0 else 0.45
    width = 0.12 if kind == 0 else 0.03
    for x in np.arange(-length / 2 + 0.15, length / 2, spacing):
        builder.add(box((width, 0.025, height * 0.85), (x, 0, height * 0.5)), finish)
    return builder.build()


def guard_rail(length: float) -> Mesh:
    """Steel rail on posts along x."""
    builder = MeshBuilder()
    steel = Finish(Semantic.FENCE, (160, 164, 168), Texture.PLAIN, 0.55)
    for z, y in ((0.5, -0.03), (0.6, 0.03), (0.7, -0.03)):
        builder.add(box((length, 0.05, 0.11), (0, y, z)), steel)
    for x in np.linspace(-length / 2, length / 2, max(round(length / 4.0), 1) + 1)[:-1]:
        builder.add(box((0.1, 0.12, 1.0), (x, 0, 0.2)), steel)
    return builder.build()


def clutter(rng: np.random.Generator) -> Mesh:
    """Something that stands on a sidewalk: bin, hydrant, bench, cabinet, bollard or stand for cycles."""
    builder = MeshBuilder()
    kind = int(rng.integers(6))
    finish = Finish(Semantic.OTHER_STRUCTURE, shade((92, 100, 96), rng, 0.3), Texture.PLAIN, 0.35)
    if kind == 0:
        builder.add(tube((0, 0, 0), (0, 0, 0.95), 0.27, 0.3, sides=9), finish)
    elif kind == 1:
        red = Finish(Semantic.OTHER_STRUCTURE, (176, 40, 32), Texture.PLAIN, 0.5)
        builder.add(tube((0, 0, 0), (0, 0, 0.65), 0.14, 0.12, sides=8), red)
        builder.add(tube((0, -0.22, 0.45), (0, 0.22, 0.45), 0.07, sides=6), red)
    elif kind == 2:
        builder.add(box((0.45, 1.7, 0.07), (0, 0, 0.45)), finish)
        builder.add(box((0.07, 1.7, 0.4), (0.22, 0, 0.75)), finish)
        for y in (-0.7, 0.7):
            builder.add(box((0.4, 0.08, 0.45), (0, y, 0.22)), finish)
    elif kind == 3:
        builder.add(box((0.5, 1.1, 1.2), (0, 0, 0.6)), finish)
    elif kind == 4:
        for y in (-1.2, 0.0, 1.2):
            builder.add(tube((0, y, 0), (0, y, 0.9), 0.08, 0.07, sides=7), finish)
    else:
        for y in (-0.8, 0.0, 0.8):
            builder.add(wheel((0, y, 0.4), 0.4, 0.05, sides=8), finish)
    return builder.build()


def column(rng: np.random.Generator) -> Mesh:
    """Something upright as thick as a person: advertising column, concrete post, ticket machine or stele."""
    builder = MeshBuilder()
    kind = int(rng.integers(4))
    colour = shade(((120, 128, 110), (150, 148, 142), (70, 84, 110), (96, 98, 100))[kind], rng, 0.3)
    finish = Finish(Semantic.OTHER_STRUCTURE, colour, Texture.PLAIN, float(rng.uniform(0.15, 0.7)))
    if kind == 0:
        radius, height = float(rng.uniform(0.3, 0.7)), float(rng.uniform(2.3, 3.6))
        builder.add(tube((0, 0, 0), (0, 0, height), radius, sides=12), finish)
        builder.add(
            tube((0, 0, height), (0, 0, height + 0.25), 1.15 * radius, 0.3 * radius, sides=12), finish
        )
    elif kind == 1:
        radius = float(rng.uniform(0.1, 0.35))
        builder.add(
            tube((0, 0, 0), (0, 0, rng.uniform(0.8, 4.0)), radius, radius * rng.uniform(0.7, 1.0), sides=9),
            finish,
        )
    elif kind == 2:
        height = float(rng.uniform(1.3, 1.9))
        builder.add(box((0.3, 0.3, 0.5), (0, 0, 0.25)), finish)
        builder.add(
            box((rng.uniform(0.3, 0.5), rng.uniform(0.35, 0.7), height - 0.5), (0, 0, (height + 0.5) / 2)),
            finish,
        )
    else:
        height = float(rng.uniform(1.5, 3.0))
        builder.add(box((rng.uniform(0.1, 0.35), rng.uniform(0.4, 1.2), height), (0, 0, height / 2)), finish)
    return builder.build()


def bus_shelter(rng: np.random.Generator) -> Mesh:
    """Bus stop with glass walls, open towards +x."""
    builder = MeshBuilder()
    frame = Finish(Semantic.OTHER_STRUCTURE, shade((70, 74, 78), rng), Texture.PLAIN, 0.45)
    glass = Finish(Semantic.OTHER_STRUCTURE, (140, 156, 164), Texture.GLASS, 0.12)
    builder.add(box((1.5, 4.0, 0.14), (0, 0, 2.45)), frame)
    builder.add(box((0.05, 3.9, 1.8), (-0.65, 0, 1.3)), glass)
    for y in (-1.95, 1.95):
        builder.add(box((1.3, 0.05, 1.8), (0, y, 1.3)), glass)
        builder.add(box((0.09, 0.09, 2.5), (0.65, y, 1.2)), frame)
        builder.add(box((0.09, 0.09, 2.5), (-0.65, y, 1.2)), frame)
    builder.add(box((0.4, 2.6, 0.06), (-0.4, 0, 0.5)), frame)
    return builder.build()
