# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Unpaved ground: level beside the pavement, rolling farther away."""

from __future__ import annotations

import numpy as np

from kestrel.sim.scene import Texture
from kestrel.sim.semantics import Semantic
from kestrel.sim.world.ground import KERB
from kestrel.sim.world.mesh import Finish, MeshBuilder
from kestrel.sim.world.raster import FreeSpace
from kestrel.sim.world.towns import Town
from kestrel.types import Float64Array

_CELL = 2.5


class Terrain:
    """Height of the ground over x and y, and its mesh."""

    def __init__(self, rng: np.random.Generator, space: FreeSpace, scene: str) -> None:
        self._space = space
        self._level = -0.06 if scene == "highway" else KERB - 0.03
        self._waves = rng.normal(0, 1, (6, 2)) * (2 * np.pi / rng.uniform(18, 70, (6, 1)))
        self._phases = rng.uniform(0, 2 * np.pi, 6)
        self._height = float(rng.uniform(0.15, 0.5)) * (2.0 if scene == "highway" else 1.0)

    def height(self, points: Float64Array) -> Float64Array:
        """Height at (N, 2) points off the pavement, metres."""
        distance = self._space.distance_at(points).astype(np.float64)
        waves = np.sin(points @ self._waves.T + self._phases).mean(1) + 0.4
        away = np.clip((distance - 3.0) / 25.0, 0.0, 1.0)
        return np.asarray(self._level + self._height * waves * away * 2.2)

    def add(self, builder: MeshBuilder, town: Town, reach: float) -> None:
        """Add the ground within ``reach`` metres of the pavement, under the pavement's edge too."""
        lower = self._space.lower
        extent = np.array(self._space.taken.shape) * 0.5
        x = np.arange(lower[0] + 1.0, lower[0] + extent[0] - 1.0, _CELL)
        y = np.arange(lower[1] + 1.0, lower[1] + extent[1] - 1.0, _CELL)
        grid = np.stack(np.meshgrid(x, y, indexing="ij"), -1).reshape(-1, 2)
        distance = self._space.distance_at(grid)
        z = np.where(distance > 0.0, self.height(grid), -0.3)
        index = np.arange(len(grid)).reshape(len(x), len(y))
        a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
        quads = np.stack([a, b, c, d], -1).reshape(-1, 4)
        quads = quads[distance[quads].min(1) < reach]
        hidden = distance[quads].max(1) < -1.0
        quads = quads[~hidden]
        triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
        used, triangles_used = np.unique(triangles, return_inverse=True)
        vertices = np.column_stack([grid, z])[used]
        finish = Finish(Semantic.TERRAIN, town.grass, Texture.GRASS, 0.38)
        builder.add((vertices, triangles_used.reshape(-1, 3)), finish)
