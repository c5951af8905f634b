# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What each pixel of a camera sees, with fewer rays than pixels.

The pixels of one colour of a chequerboard cast rays. Each of the others lies between four of them: where
these see one plane, it sees that plane too, and where they do not it casts a ray of its own. Whatever is a
pixel wide meets rays of the board, and is drawn as if every pixel had cast one.
"""

from __future__ import annotations

import numpy as np

from kestrel.sim.blocks import Blocks
from kestrel.sim.caster import NO_TRIANGLE, Hits, Surfaces, WorldCaster
from kestrel.sim.compiled import compiled
from kestrel.sim.showroom import MovingActors, Pairs
from kestrel.sim.surfaces import NO_PLANE, SKY_PLANE
from kestrel.types import Float32Array, Float64Array, Int64Array


class Sight:
    """The eye of one camera of a drive."""

    def __init__(self, blocks: Blocks, caster: WorldCaster) -> None:
        self._blocks = blocks
        self._caster = caster
        row, column = np.indices(blocks.shape, sparse=True)
        self._board = np.flatnonzero((row + column) % 2 == 0)

    def look(self, rays: Float32Array, actors: MovingActors, map_from_camera: Float64Array) -> Hits:
        """Return what the rays (N, 6) float32 of all pixels, row by row, meet first; they have one origin.

        Args:
            rays: Origin and unit direction in map.
            actors: At the moment of the picture.
            map_from_camera: (4, 4) at that moment.
        """
        hits = Hits.of(rays)
        self._cast(hits, self._board, actors, map_from_camera)
        others = _spread(self._blocks.shape[1], self._caster.table.plane, rays, hits.surfaces)
        self._cast(hits, others, actors, map_from_camera)
        return hits

    def _cast(
        self, hits: Hits, rows: Int64Array, actors: MovingActors, map_from_camera: Float64Array
    ) -> None:
        """Cast the rays ``rows`` (K,) and enter what they meet, in place."""
        self._caster.cast_static(hits, rows)
        if len(actors) and len(rows):
            asking = np.zeros(len(hits.rays), bool)
            asking[rows] = True
            pairs = self._blocks.pairs(
                actors, map_from_camera, np.where(asking, hits.distance, np.float32(0))
            )
            asked = asking.take(pairs.ray)
            self._caster.add_actors(hits, actors, Pairs(pairs.actor[asked], pairs.ray[asked]))


@compiled
def _spread(width: int, plane: Int64Array, rays: Float32Array, hits: Surfaces) -> Int64Array:
    """Give pixels off the board the plane that all their neighbours see; return the others (K,).

    Args:
        width: Of the picture.
        plane: SurfaceTable.plane.
        rays: (N, 6) of all pixels.
        hits: Of all pixels, known of the board, changed in place.
    """
    distance, triangle, normal, instance, moving, local_point, local_normal = hits
    height = len(rays) // width
    others = np.empty(len(rays) // 2 + 1, np.int64)
    count = 0
    for row in range(height):
        for column in range(1 - row % 2, width, 2):
            pixel = row * width + column
            at_end = row == 0 or row == height - 1
            at_side = column == 0 or column == width - 1
            if height == 1 or width == 1 or (at_end and at_side):  # between no others
                others[count] = pixel
                count += 1
                continue
            beside = pixel - 1 if column > 0 else pixel + 1
            opposite = pixel + 1 if column + 1 < width else beside
            above = pixel - width if row > 0 else pixel + width
            below = pixel + width if row + 1 < height else above
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
