# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Passenger cars and vans: lofted bodies with glass, wheels and lights."""

from __future__ import annotations

from typing import Final

import numpy as np

from kestrel.sim.lamps import Lamp
from kestrel.sim.scene import Mesh, Texture
from kestrel.sim.semantics import Semantic
from kestrel.sim.world.mesh import Colour, Finish, Indices, MeshBuilder, box, fitted, tube, wheel
from kestrel.sim.world.vehicle_lamps import add_lamp, add_pair
from kestrel.types import Float64Array

Model = tuple[tuple[Mesh, ...], tuple[float, float, float]]
"""Meshes of all phases and the size of their box."""

_KINDS: Final[dict[str, tuple[tuple[float, float, float], tuple[tuple[float, float, float, float], ...]]]] = {
    "sedan": ((4.6, 1.84, 1.45), (
        (0.0, 0.34, 0.5, 0.86), (0.02, 0.2, 0.6, 0.95), (0.1, 0.17, 0.64, 1.0), (0.3, 0.16, 0.68, 1.0),
        (0.45, 0.16, 1.0, 0.99), (0.62, 0.16, 1.0, 0.98), (0.66, 0.16, 0.98, 0.98), (0.81, 0.17, 0.7, 0.97),
        (0.97, 0.19, 0.68, 0.94), (1.0, 0.32, 0.56, 0.88),
    )),
    "hatch": ((4.0, 1.78, 1.48), (
        (0.0, 0.32, 0.5, 0.86), (0.02, 0.2, 0.6, 0.95), (0.1, 0.17, 0.64, 1.0), (0.27, 0.16, 0.68, 1.0),
        (0.44, 0.16, 1.0, 0.99), (0.7, 0.16, 1.0, 0.98), (0.86, 0.17, 0.95, 0.97), (0.96, 0.19, 0.66, 0.94),
        (1.0, 0.32, 0.55, 0.9),
    )),
    "estate": ((4.75, 1.86, 1.5), (
        (0.0, 0.33, 0.5, 0.86), (0.02, 0.2, 0.59, 0.95), (0.1, 0.17, 0.63, 1.0), (0.29, 0.16, 0.66, 1.0),
        (0.42, 0.16, 0.98, 0.99), (0.68, 0.16, 1.0, 0.98), (0.88, 0.17, 0.95, 0.97), (0.97, 0.19, 0.64, 0.95),
        (1.0, 0.32, 0.55, 0.9),
    )),
    "suv": ((4.75, 1.96, 1.78), (
        (0.0, 0.34, 0.54, 0.9), (0.02, 0.22, 0.61, 0.96), (0.09, 0.18, 0.65, 1.0), (0.27, 0.17, 0.67, 1.0),
        (0.4, 0.17, 0.98, 0.99), (0.66, 0.17, 1.0, 0.98), (0.9, 0.18, 0.95, 0.98), (0.97, 0.21, 0.64, 0.96),
        (1.0, 0.34, 0.55, 0.92),
    )),
    "van": ((5.3, 2.02, 2.25), (
        (0.0, 0.24, 0.42, 0.9), (0.02, 0.15, 0.48, 0.97), (0.08, 0.13, 0.53, 1.0), (0.17, 0.12, 0.58, 1.0),
        (0.3, 0.12, 0.97, 0.99), (0.5, 0.12, 1.0, 0.98), (0.96, 0.13, 0.99, 0.98), (0.99, 0.15, 0.96, 0.97),
        (1.0, 0.22, 0.9, 0.95),
    )),
    "pickup": ((5.5, 1.98, 1.85), (
        (0.0, 0.34, 0.56, 0.9), (0.02, 0.22, 0.61, 0.96), (0.09, 0.18, 0.64, 1.0), (0.27, 0.17, 0.66, 1.0),
        (0.38, 0.17, 0.98, 0.99), (0.55, 0.17, 1.0, 0.98), (0.61, 0.17, 0.62, 0.98), (0.98, 0.19, 0.62, 0.97),
        (1.0, 0.32, 0.58, 0.94),
    )),
}  # fmt: skip
"""Length, width, height; then stations from nose to tail: place, underside, top, width (fractions)."""

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
    builder: MeshBuilder,
    rng: np.random.Generator,
    semantic: Semantic,
    length: float,
    width: float,
    height: float,
    rings: Float64Array,
) -> None:
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
    plate = Finish(semantic, (228, 228, 220), Texture.PLAIN, 0.95)
    y = width * 0.36
    add_pair(builder, semantic, Lamp.HEAD, (0.10, 0.34, 0.14), (nose - 0.03, y, lamps))
    add_pair(builder, semantic, Lamp.LEFT, (0.10, 0.30, 0.07), (nose - 0.03, y + 0.02, lamps - 0.105))
    add_pair(builder, semantic, Lamp.REAR, (0.10, 0.30, 0.18), (tail + 0.03, y, lamps + 0.07))
    add_pair(builder, semantic, Lamp.LEFT, (0.10, 0.30, 0.08), (tail + 0.03, y, lamps - 0.06))
    roof_end = rings[np.flatnonzero(rings[..., 2].max(1) > 0.9 * height)[-1]]
    edge = (max(float(roof_end[0, 0]) - 0.03, tail + 0.02), 0.0, float(roof_end[:, 2].max()) - 0.03)
    add_lamp(builder, semantic, Lamp.STOP, (0.08, 0.5, 0.06), edge)
    for side in (-1, 1):
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
