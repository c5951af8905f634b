# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Polygons on grids: which ground is taken, and the map layers around the vehicle."""

from __future__ import annotations

import cv2
import numpy as np

from kestrel.classes import MAP_LAYERS
from kestrel.types import BevMap, Float32Array, Float64Array, UInt8Array

_SHIFT = 4
_MAP_CELL = 0.2
_FREE_CELL = 0.5


def _fill(
    grid: UInt8Array, polygons: list[Float64Array], lower: Float64Array, cell: float, value: int
) -> None:
    """Set the cells [ix, iy] in the outlines (K, 2), and those that an outline passes through.

    The masks of nuscenes-devkit hold both too, so that lines as thin as a cell have no gaps.
    """
    for outline in polygons:
        columns = ((outline - lower) / cell - 0.5)[:, ::-1] * (1 << _SHIFT)
        cv2.fillPoly(grid, [np.rint(columns).astype(np.int32)], value, lineType=cv2.LINE_8, shift=_SHIFT)


class MapRaster:
    """Map layers of a whole world, one bit each, on a grid of 0.2 m cells."""

    def __init__(
        self,
        polygons: dict[str, list[Float64Array]],
        islands: list[Float64Array],
        lower: Float64Array,
        upper: Float64Array,
    ) -> None:
        self._lower = lower
        shape = tuple(np.ceil((upper - lower) / _MAP_CELL).astype(int))
        self._bits = np.zeros(shape, np.uint8)
        for index, layer in enumerate(MAP_LAYERS):
            mask = np.zeros(shape, np.uint8)
            _fill(mask, polygons[layer], lower, _MAP_CELL, 1 << index)
            if layer == "drivable_area":
                _fill(mask, islands, lower, _MAP_CELL, 0)
            self._bits |= mask

    def around(self, map_from_base: Float64Array, *, lower: float, resolution: float, cells: int) -> BevMap:
        """The layers at the middle of every cell of a square grid of base_link."""
        middles = lower + (np.arange(cells) + 0.5) * resolution
        heading = np.arctan2(map_from_base[1, 0], map_from_base[0, 0])
        cos, sin = np.cos(heading), np.sin(heading)
        x = cos * middles[:, None] - sin * middles + map_from_base[0, 3]
        y = sin * middles[:, None] + cos * middles + map_from_base[1, 3]
        column = np.floor((x - self._lower[0]) / _MAP_CELL).astype(np.int64)
        row = np.floor((y - self._lower[1]) / _MAP_CELL).astype(np.int64)
        inside = (column >= 0) & (row >= 0) & (column < self._bits.shape[0]) & (row < self._bits.shape[1])
        bits = np.where(inside, self._bits[np.where(inside, column, 0), np.where(inside, row, 0)], 0)
        shifts = np.arange(len(MAP_LAYERS), dtype=np.uint8)[:, None, None]
        layers: Float32Array = ((bits >> shifts) & 1).astype(np.float32)
        return BevMap(layers, MAP_LAYERS, (lower, lower), resolution, "base_link", 0)


class FreeSpace:
    """Which ground is still free to build on, on a grid of 0.5 m cells."""

    def __init__(self, polygons: list[Float64Array], lower: Float64Array, upper: Float64Array) -> None:
        self.lower = lower
        self.taken = np.zeros(tuple(np.ceil((upper - lower) / _FREE_CELL).astype(int)), np.uint8)
        _fill(self.taken, polygons, lower, _FREE_CELL, 1)
        paved = cv2.distanceTransform(1 - self.taken, cv2.DIST_L2, 5)
        self.distance: Float32Array = paved.astype(np.float32) * _FREE_CELL
        within = cv2.distanceTransform(self.taken, cv2.DIST_L2, 5)
        self._depth: Float32Array = within.astype(np.float32) * _FREE_CELL

    def claim(self, outline: Float64Array) -> bool:
        """Take the ground inside an outline (K, 2) if all of it is free."""
        cells = (outline - self.lower) / _FREE_CELL
        low = np.floor(cells.min(0)).astype(int) - 1
        high = np.ceil(cells.max(0)).astype(int) + 2
        if (low < 0).any() or (high > self.taken.shape).any():
            return False
        window = self.taken[low[0] : high[0], low[1] : high[1]]
        mask = np.zeros(window.shape, np.uint8)
        _fill(mask, [outline], self.lower + low * _FREE_CELL, _FREE_CELL, 1)
        if (window & mask).any():
            return False
        window |= mask
        return True

    def distance_at(self, points: Float64Array) -> Float32Array:
        """Distance of (N, 2) points from the nearest pavement, metres; negative inside it."""
        cells = ((points - self.lower) / _FREE_CELL).astype(np.int64)
        cells = np.clip(cells, 0, np.array(self.taken.shape) - 1)
        return self.distance[cells[:, 0], cells[:, 1]] - self._depth[cells[:, 0], cells[:, 1]]


def rectangle(centre: Float64Array, length: float, width: float, heading: float) -> Float64Array:
    """Outline (4, 2) of a rectangle whose length points along ``heading``."""
    half = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]) * (length, width)
    cos, sin = np.cos(heading), np.sin(heading)
    outline: Float64Array = half @ np.array([(cos, sin), (-sin, cos)]) + centre
    return outline
