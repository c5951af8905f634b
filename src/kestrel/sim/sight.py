# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What each pixel of a camera sees, with fewer rays than pixels.

A quarter of the pixels, every fourth of each row and each column, cast rays. Half way between these, and then
half way between those, pixels see what lies between four others: where these see one plane, so do they, and
where they do not they cast rays of their own. Whatever is a pixel wide and a few pixels long meets the first
rays, and is drawn as if every pixel had cast one.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from kestrel.sim.blocks import Blocks
from kestrel.sim.caster import NO_TRIANGLE, Hits, WorldCaster
from kestrel.sim.compiled import compiled
from kestrel.sim.showroom import MovingActors, Pairs
from kestrel.sim.surfaces import NO_PLANE, SKY_PLANE
from kestrel.types import Float32Array, Float64Array, Int64Array

PERIOD: Final = 4
"""Pixels from one that casts the first rays to the next, along a row or a column."""


class Sight:
    """The eye of one camera of a drive."""

    def __init__(self, blocks: Blocks, caster: WorldCaster) -> None:
        self._blocks = blocks
        self._caster = caster
        row, column = np.indices(blocks.shape, sparse=True)
        few = min(blocks.shape) <= 2 * PERIOD
        self._first = np.flatnonzero(((row + column) % PERIOD == 0) | few)
        self._steps = () if few else (PERIOD // 2, PERIOD // 4)

    def look(self, rays: Float32Array, actors: MovingActors, map_from_camera: Float64Array) -> Hits:
        """Return what the rays (N, 6) float32 of all pixels, row by row, meet first; they have one origin.

        Args:
            rays: Origin and unit direction in map.
            actors: At the moment of the picture.
            map_from_camera: (4, 4) at that moment.
        """
        hits = Hits.of(rays)
        self._caster.cast_static(hits, self._first)
        pairs = self._blocks.pairs(actors, map_from_camera, hits.distance)
        self._add_actors(hits, self._first, actors, pairs)
        for step in self._steps:
            rows = _spread(self._blocks.shape[1], step, self._caster.table.plane, hits)
            self._caster.cast_static(hits, rows)
            self._add_actors(hits, rows, actors, pairs)
        return hits

    def _add_actors(self, hits: Hits, rows: Int64Array, actors: MovingActors, pairs: Pairs) -> None:
        """Let the rays ``rows`` (K,) alone meet the actors of their pairs."""
        if len(pairs.ray) and len(rows):
            asking = np.zeros(len(hits.rays), bool)
            asking[rows] = True
            asked = asking.take(pairs.ray)
            self._caster.add_actors(hits, actors, Pairs(pairs.actor[asked], pairs.ray[asked]))


@compiled
def _spread(width: int, step: int, plane: Int64Array, hits: Hits) -> Int64Array:
    """Give pixels the plane that the four pixels ``step`` away from them see; return the others (K,).

    Args:
        width: Of the picture, which has more than ``step`` pixels along each side.
        step: 2 for pixels half way between the first ones of their row, 1 for those between all these.
        plane: SurfaceTable.plane.
        hits: Of all pixels, known where ``step`` away from those in question, changed in place.
    """
    rays, distance, triangle, normal, instance, moving, local_point, local_normal = hits
    height = len(rays) // width
    others = np.empty(len(rays), np.int64)
    count = 0
    for row in range(height):
        for column in range((step - row) % (2 * step), width, 2 * step):
            pixel = row * width + column
            at_end = row < step or row >= height - step
            at_side = column < step or column >= width - step
            if at_end and at_side:  # between no others
                others[count] = pixel
                count += 1
                continue
            beside = pixel - step if column >= step else pixel + step
            opposite = pixel + step if column + step < width else beside
            above = pixel - step * width if row >= step else pixel + step * width
            below = pixel + step * width if row + step < height else above
            key = SKY_PLANE if triangle[beside] == NO_TRIANGLE else plane[triangle[beside]]
            alike = key != NO_PLANE
            for other in (opposite, above, below):
                there = triangle[other]
                alike &= key == (SKY_PLANE if there == NO_TRIANGLE else plane[there])
                alike &= instance[beside] == instance[other]
            if not alike:
                others[count] = pixel
                count += 1
                continue
            slope = own_slope = 0.0
            for axis in range(3):
                normal[pixel, axis] = normal[beside, axis]
                slope += normal[beside, axis] * rays[beside, 3 + axis]
                own_slope += normal[beside, axis] * rays[pixel, 3 + axis]
            triangle[pixel] = triangle[beside]
            instance[pixel] = instance[beside]
            distance[pixel] = np.inf if key == SKY_PLANE else distance[beside] * slope / own_slope
            moving[pixel] = moving[beside]
            if moving[pixel]:
                for axis in range(3):
                    total = local_point[beside, axis] + local_point[opposite, axis]
                    total += local_point[above, axis] + local_point[below, axis]
                    local_point[pixel, axis] = total / 4
                    local_normal[pixel, axis] = local_normal[beside, axis]
    return others[:count]
