# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Triangle meshes from primitives: what every solid thing of the simulated world is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kestrel.sim.lamps import Lamp
from kestrel.sim.scene import Mesh, Texture
from kestrel.sim.semantics import Semantic
from kestrel.types import Float64Array

Colour: TypeAlias = tuple[int, int, int]
Indices: TypeAlias = NDArray[np.int64]
Shape: TypeAlias = tuple[Float64Array, Indices]
"""Vertices (V, 3) in metres and triangles (T, 3)."""

_BOX_CORNERS = np.array(
    [(x, y, z) for z in (-0.5, 0.5) for x, y in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))]
)
_BOX_TRIANGLES = np.array(
    [
        (0, 2, 1), (0, 3, 2), (4, 5, 6), (4, 6, 7), (0, 1, 5), (0, 5, 4),
        (1, 2, 6), (1, 6, 5), (2, 3, 7), (2, 7, 6), (3, 0, 4), (3, 4, 7),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Finish:
    """What the surface of a part is.

    colour: sRGB 0..255. texture: one of Texture. reflectivity: 0..1 at the LiDAR's wavelength.
    lamp: as in Mesh.
    """

    semantic: Semantic
    colour: Colour
    texture: int = Texture.PLAIN
    reflectivity: float = 0.4
    lamp: int = Lamp.NONE


class MeshBuilder:
    """Collects shapes with their finish and joins them into one Mesh."""

    def __init__(self) -> None:
        self._vertices: list[Float64Array] = []
        self._triangles: list[Indices] = []
        self._semantic: list[NDArray[np.uint8]] = []
        self._colour: list[NDArray[np.uint8]] = []
        self._texture: list[NDArray[np.uint8]] = []
        self._reflectivity: list[NDArray[np.float32]] = []
        self._lamp: list[NDArray[np.uint16]] = []
        self._count = 0

    def add(self, shape: Shape, finish: Finish) -> None:
        """Add a shape, all of it with one finish."""
        vertices, triangles = shape
        count = len(triangles)
        self._append(vertices, triangles)
        self._semantic.append(np.full(count, finish.semantic, np.uint8))
        self._colour.append(np.tile(np.array(finish.colour, np.uint8), (count, 1)))
        self._texture.append(np.full(count, finish.texture, np.uint8))
        self._reflectivity.append(np.full(count, finish.reflectivity, np.float32))
        self._lamp.append(np.full(count, finish.lamp, np.uint16))

    def add_mesh(
        self, mesh: Mesh, position: ArrayLike = (0.0, 0.0, 0.0), yaw: float = 0.0, scale: ArrayLike = 1.0
    ) -> None:
        """Add a copy of ``mesh``: scaled, then turned about z, then moved to ``position`` (3,)."""
        vertices = turn(mesh.vertices.astype(np.float64) * np.asarray(scale), yaw) + np.asarray(position)
        self._append(vertices, mesh.triangles.astype(np.int64))
        self._semantic.append(mesh.semantic)
        self._colour.append(mesh.colour)
        self._texture.append(mesh.texture)
        self._reflectivity.append(mesh.reflectivity)
        self._lamp.append(mesh.lamp)

    def _append(self, vertices: Float64Array, triangles: Indices) -> None:
        self._vertices.append(vertices)
        self._triangles.append(triangles + self._count)
        self._count += len(vertices)

    def build(self) -> Mesh:
        """Join everything added so far; an empty builder gives an empty mesh."""
        if not self._vertices:
            self._append(np.zeros((0, 3)), np.zeros((0, 3), np.int64))
            self._semantic.append(np.zeros(0, np.uint8))
            self._colour.append(np.zeros((0, 3), np.uint8))
            self._texture.append(np.zeros(0, np.uint8))
            self._reflectivity.append(np.zeros(0, np.float32))
            self._lamp.append(np.zeros(0, np.uint16))
        return Mesh(
            vertices=np.concatenate(self._vertices).astype(np.float32),
            triangles=np.concatenate(self._triangles).astype(np.uint32),
            semantic=np.concatenate(self._semantic),
            colour=np.concatenate(self._colour),
            texture=np.concatenate(self._texture),
            reflectivity=np.concatenate(self._reflectivity),
            lamp=np.concatenate(self._lamp),
        )


def turn(vertices: Float64Array, yaw: float) -> Float64Array:
    """Turn (V, 3) vertices about z."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    turned: Float64Array = vertices @ np.array([(cos, sin, 0.0), (-sin, cos, 0.0), (0.0, 0.0, 1.0)])
    return turned


def box(
    size: ArrayLike, centre: ArrayLike, *, yaw: float = 0.0, pitch: float = 0.0, taper: float = 1.0
) -> Shape:
    """Cuboid of ``size`` about ``centre``; ``taper`` scales the top, ``pitch`` raises the nose."""
    corners = _BOX_CORNERS * np.asarray(size, np.float64)
    corners[4:, :2] *= taper
    if pitch:
        cos, sin = np.cos(pitch), np.sin(pitch)
        corners = corners @ np.array([(cos, 0.0, sin), (0.0, 1.0, 0.0), (-sin, 0.0, cos)])
    return turn(corners, yaw) + np.asarray(centre, np.float64), _BOX_TRIANGLES


def loft(rings: Float64Array, *, closed: bool = True, caps: bool = True) -> Shape:
    """Skin over (R, K, 3) rings; ``closed`` joins last and first point of each, ``caps`` shut both ends."""
    count, points = rings.shape[:2]
    columns = np.arange(points if closed else points - 1)
    nexts = (columns + 1) % points
    start = np.arange(count - 1)[:, None] * points
    a, b = start + columns, start + nexts
    c, d = b + points, a + points
    triangles = np.concatenate(
        [np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)]
    )
    vertices = rings.reshape(-1, 3)
    if caps:
        fan = np.stack([np.zeros(points - 2, np.int64), np.arange(1, points - 1), np.arange(2, points)], -1)
        triangles = np.concatenate([triangles, fan[:, ::-1], fan + (count - 1) * points])
    return vertices, triangles


def tube(
    start: ArrayLike,
    end: ArrayLike,
    radius: float,
    end_radius: float | None = None,
    sides: int = 6,
    phase: float = 0.0,
) -> Shape:
    """Round bar from ``start`` to ``end``; ``phase`` turns the corners of its cross-section."""
    a, b = np.asarray(start, np.float64), np.asarray(end, np.float64)
    axis = (b - a) / max(float(np.linalg.norm(b - a)), 1e-9)
    side = _cross(axis, (0.0, 0.0, 1.0) if abs(axis[2]) < 0.9 else (1.0, 0.0, 0.0))
    side /= np.linalg.norm(side)
    angle = np.arange(sides) * (2 * np.pi / sides) + phase
    circle = np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * _cross(axis, side)
    return loft(np.stack([a + radius * circle, b + (radius if end_radius is None else end_radius) * circle]))


def _cross(first: Sequence[float] | Float64Array, second: Sequence[float] | Float64Array) -> Float64Array:
    """Return the vector product of two (3,); numpy's takes ten times as long for one pair."""
    (a, b, c), (d, e, f) = first, second
    return np.array([b * f - c * e, c * d - a * f, a * e - b * d], np.float64)


def ellipsoid(centre: ArrayLike, radii: ArrayLike, *, rows: int = 5, sides: int = 8) -> Shape:
    """Ellipsoid of ``rows`` rings between nearly closed poles."""
    latitude = np.linspace(-np.pi / 2 * 0.94, np.pi / 2 * 0.94, rows)
    longitude = np.arange(sides) * (2 * np.pi / sides)
    unit = np.stack(
        [
            np.cos(latitude)[:, None] * np.cos(longitude),
            np.cos(latitude)[:, None] * np.sin(longitude),
            np.tile(np.sin(latitude)[:, None], (1, sides)),
        ],
        -1,
    )
    return loft(unit * np.asarray(radii) + np.asarray(centre))


def wheel(centre: ArrayLike, radius: float, width: float, sides: int = 12) -> Shape:
    """Disc with its axle along y."""
    middle = np.asarray(centre, np.float64)
    half = np.array([0.0, width / 2, 0.0])
    return tube(middle - half, middle + half, radius, sides=sides)


def prism(outline: Float64Array, bottom: float, top: float) -> Shape:
    """Upright prism over a convex (K, 2) outline."""
    levels = [np.column_stack([outline, np.full(len(outline), z)]) for z in (bottom, top)]
    return loft(np.stack(levels))


def fitted(meshes: list[Mesh]) -> tuple[tuple[Mesh, ...], tuple[float, float, float]]:
    """Move meshes so that their common bounds stand on the origin, and return the size of these bounds."""
    low = np.stack([mesh.vertices.min(0) for mesh in meshes]).min(0)
    high = np.stack([mesh.vertices.max(0) for mesh in meshes]).max(0)
    foot = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]], np.float32)
    moved = tuple(replace(mesh, vertices=mesh.vertices - foot) for mesh in meshes)
    length, width, height = (float(extent) for extent in high - low)
    return moved, (length, width, height)
