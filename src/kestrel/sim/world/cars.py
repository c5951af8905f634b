# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Passenger cars and vans: lofted bodies with glass, wheels and lights."""

from __future__ import annotations

from typing import Final

import numpy as np

from kestrel.sim.scene import Mesh, Texture
from kestrel.sim.semantics import Semantic
from kestrel.sim.world.mesh import Colour, Finish, Indices, MeshBuilder, box, fitted, tube, wheel
from kestrel.types import Float64Array

Model = tuple[tuple[Mesh, ...], tuple[float, float, float]]
"""Meshes of all phases and the size of their box."""

_KINDS: Final[dict[str, tuple[tuple[float, float, float], tuple[tuple[float, float, float, float], ...]]]] = {
    "sedan": ((4.6, 1.84, 1.45), (
        (0.0, .34, .50, .86), (.02, .20, .60, .95), (.10, .17, .64, 1.0), (.30, .16, .68, 1.0), (.45, .16, 1.0, .99),
        (.62, .16, 1.0, .98), (.66, .16, .98, .98), (.81, .17, .70, .97), (.97, .19, .68, .94), (1.0, .32, .56, .88),
    )),
    "hatch": ((4.0, 1.78, 1.48), (
        (0.0, .32, .50, .86), (.02, .20, .60, .95), (.10, .17, .64, 1.0), (.27, .16, .68, 1.0), (.44, .16, 1.0, .99),
        (.70, .16, 1.0, .98), (.86, .17, .95, .97), (.96, .19, .66, .94), (1.0, .32, .55, .9),
    )),
    "estate": ((4.75, 1.86, 1.5), (
        (0.0, .33, .50, .86), (.02, .20, .59, .95), (.10, .17, .63, 1.0), (.29, .16, .66, 1.0), (.42, .16, .98, .99),
        (.68, .16, 1.0, .98), (.88, .17, .95, .97), (.97, .19, .64, .95), (1.0, .32, .55, .9),
    )),
    "suv": ((4.75, 1.96, 1.78), (
        (0.0, .34, .54, .90), (.02, .22, .61, .96), (.09, .18, .65, 1.0), (.27, .17, .67, 1.0), (.40, .17, .98, .99),
        (.66, .17, 1.0, .98), (.90, .18, .95, .98), (.97, .21, .64, .96), (1.0, .34, .55, .92),
    )),
    "van": ((5.3, 2.02, 2.25), (
        (0.0, .24, .42, .90), (.02, .15, .48, .97), (.08, .13, .53, 1.0), (.17, .12, .58, 1.0), (.30, .12, .97, .99),
        (.50, .12, 1.0, .98), (.96, .13, .99, .98), (.99, .15, .96, .97), (1.0, .22, .90, .95),
    )),
    "pickup": ((5.5, 1.98, 1.85), (
        (0.0, .34, .56, .90), (.02, .22, .61, .96), (.09, .18, .64, 1.0), (.27, .17, .66, 1.0), (.38, .17, .98, .99),
        (.55, .17, 1.0, .98), (.61, .17, .62, .98), (.98, .19, .62, .97), (1.0, .32, .58, .94),
    )),
}  # fmt: skip
"""Length, width, height; then stations from the nose to the tail: place, underside, top, width (fractions)."""

_BELT: Final = {"sedan": 0.66, "hatch": 0.66, "estate": 0.64, "suv": 0.64, "van": 0.56, "pickup": 0.62}
_TYRE = Finish(Semantic.CAR, (24, 24, 26), Texture.PLAIN, 0.06)

KINDS: Final = tuple(_KINDS)
"""Kinds of build_car."""


def _ring(
    place: float, low: float, top: float, width: float, belt: float, length: float, height: float
) -> Float64Array:
    """Cross-section of a body: 12 points from the lower right side over the roof to the lower left side."""
    shoulder = min(belt, top - 0.01)
    cabin = max((top - shoulder) / max(1.0 - belt, 0.05), 0.0)
    inward = 1.0 - 0.24 * min(cabin, 1.0)
    half = np.array(
        [(0.80, low), (0.97, low + 0.06), (1.0, (low + shoulder) / 2 + 0.05), (0.97, shoulder),
         (inward + 0.02, top - 0.06 * min(cabin, 1.0) - 0.003), (inward - 0.16, top)]
    )  # fmt: skip
    y, z = half[:, 0] * width / 2, half[:, 1] * height
    across = np.concatenate([-y, y[::-1]])
    return np.column_stack([np.full(12, (0.5 - place) * length), across, np.concatenate([z, z[::-1]])])


def _body(stations: Float64Array, belt: float, length: float, width: float, height: float) -> Float64Array:
    """Rings (R, 12, 3) of a body, with rings added between the given stations for rounder shoulders."""
    places = np.sort(np.concatenate([stations[:, 0], (stations[1:-2, 0] + stations[2:-1, 0]) / 2]))
    columns = [np.interp(places, stations[:, 0], stations[:, i]) for i in (1, 2, 3)]
    return np.stack(
        [
            _ring(p, low, top, w * width, belt, length, height)
            for p, low, top, w in zip(places, *columns, strict=True)
        ]
    )


def _skin(rings: Float64Array) -> tuple[Float64Array, Indices, Indices, Indices]:
    """Vertices, triangles, and the row (0..10, 11 = underside, 12 = end caps) and column of each triangle."""
    count, points = rings.shape[:2]
    triangles, rows, columns = [], [], []
    for r in range(count - 1):
        for k in range(points):
            a, b = r * points + k, r * points + (k + 1) % points
            triangles += [(a, b, b + points), (a, b + points, a + points)]
            rows += [k, k]
            columns += [r, r]
    for r in (0, count - 1):
        start = r * points
        for k in range(1, points - 1):
            triangles.append((start, start + k, start + k + 1))
            rows.append(12)
            columns.append(r)
    return rings.reshape(-1, 3), np.array(triangles), np.array(rows), np.array(columns)


def build_car(rng: np.random.Generator, kind: str, paint: Colour) -> Model:
    """A passenger car or van of a kind in KINDS; proportions vary by a few per cent."""
    (length, width, height), table = _KINDS[kind]
    length, width, height = np.array([length, width, height]) * rng.normal(1.0, (0.04, 0.025, 0.03), 3)
    semantic = Semantic.VAN if kind == "van" else Semantic.CAR
    body = Finish(
        semantic,
        paint,
        Texture.PLAIN,
        float(np.clip(0.12 + sum(paint) / 1400 + rng.normal(0, 0.06), 0.05, 0.8)),
    )
    glass = Finish(semantic, (30, 36, 42), Texture.GLASS, 0.05)
    stations = np.array(table)
    stations[1:-1, 0] += rng.normal(0, 0.008, len(table) - 2)
    belt = _BELT[kind] + float(rng.normal(0, 0.012))
    rings = _body(stations, belt, length, width, height)
    vertices, triangles, rows, columns = _skin(rings)
    tops = rings[..., 2].max(1) / height
    raised = tops > belt + 0.12
    nexts = np.minimum(columns + 1, len(tops) - 1)
    closed_rear = kind == "van" and rng.random() < 0.7
    behind = rings[columns, 0, 0] < (0.12 * length if closed_rear else -0.5 * length)
    sides = np.isin(rows, (3, 7)) & (raised[columns] & raised[nexts]) & ~behind
    slope = np.abs(tops[nexts] - tops[columns]) > 0.07
    screens = (
        np.isin(rows, (3, 4, 5, 6, 7))
        & slope
        & (np.maximum(tops[columns], tops[nexts]) > belt + 0.08)
        & ~behind
    )
    is_glass = sides | screens
    builder = MeshBuilder()
    builder.add((vertices, triangles[~is_glass]), body)
    builder.add((vertices, triangles[is_glass]), glass)
    _add_details(builder, rng, semantic, length, width, height, rings)
    return fitted([builder.build()])


def _add_details(
    builder: MeshBuilder, rng: np.random.Generator, semantic: Semantic, length: float, width: float, height: float,
    rings: Float64Array,
) -> None:  # fmt: skip
    """Wheels, lights, plates and mirrors."""
    radius = float(np.clip(0.205 * height + rng.normal(0, 0.01), 0.28, 0.40))
    tyre = Finish(semantic, _TYRE.colour, Texture.PLAIN, _TYRE.reflectivity)
    rim = Finish(semantic, (150, 152, 156), Texture.PLAIN, 0.5)
    for x in (length * 0.31, -length * 0.29):
        for side in (-1, 1):
            y = side * (width / 2 - 0.12)
            builder.add(wheel((x, y, radius), radius, 0.23, sides=11), tyre)
            builder.add(wheel((x, y + side * 0.01, radius), radius * 0.62, 0.23, sides=8), rim)
    nose, tail = float(rings[0, 0, 0]), float(rings[-1, 0, 0])
    lamps = 0.44 * height if semantic is Semantic.CAR else 0.38 * height
    white = Finish(semantic, (236, 238, 232), Texture.PLAIN, 0.7)
    red = Finish(semantic, (188, 24, 22), Texture.PLAIN, 0.85)
    plate = Finish(semantic, (228, 228, 220), Texture.PLAIN, 0.95)
    for side in (-1, 1):
        y = side * width * 0.36
        builder.add(box((0.10, 0.34, 0.14), (nose - 0.03, y, lamps)), white)
        builder.add(box((0.10, 0.30, 0.18), (tail + 0.03, y, lamps + 0.07)), red)
        mirror = Finish(semantic, (40, 42, 44), Texture.PLAIN, 0.2)
        builder.add(
            box((0.14, 0.16, 0.12), (length * 0.17, side * (width / 2 - 0.01), 0.66 * height)), mirror
        )
    builder.add(box((0.04, 0.5, 0.12), (tail, 0, 0.33 * height)), plate)
    builder.add(box((0.04, 0.5, 0.12), (nose, 0, 0.27 * height)), plate)
    if rng.random() < 0.15:
        bar = Finish(semantic, (60, 62, 64), Texture.PLAIN, 0.3)
        for y in (-0.45, 0.45):
            builder.add(tube((0.1 * length, y, height), (-0.25 * length, y, height), 0.025, sides=5), bar)
