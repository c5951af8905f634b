# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The order in which the pixels of a camera are worked on: block by block.

Neighbours in a picture meet the same surfaces; a block of them is looked at as one when moving actors are
sought, and a strip of blocks is small enough to stay in the cache while it is shaded.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np

from kestrel.sim.showroom import MovingActors, Pairs
from kestrel.sim.surfaces import BoolArray
from kestrel.types import Float32Array, Float64Array, Int64Array

BLOCK: Final = 16
"""Pixels along one side of a block."""


class Blocks:
    """All pixels of one camera, in blocks.

    Args:
        directions: (H, W, 3) float32 unit vectors, the ray of each pixel in the optical frame.

    Attributes:
        shape: (H, W). directions: (N, 3) float32, in the order of blocks.
        pixel: (N,) int64 flat index, into the picture, of each ray. block: (N,) int64 block of each ray.
        strips: rays of each row of blocks.
    """

    def __init__(self, directions: Float32Array) -> None:
        height, width = self.shape = (directions.shape[0], directions.shape[1])
        row, column = np.divmod(np.arange(height * width), width)
        across = -(-width // BLOCK)
        number = row // BLOCK * across + column // BLOCK
        self.pixel: Int64Array = np.argsort(number, kind="stable")
        self.block: Int64Array = number[self.pixel]
        self._first = np.flatnonzero(np.diff(self.block, prepend=-1))
        self._count = np.diff(self._first, append=height * width)
        bounds = [*range(0, height, BLOCK), height]
        self.strips = [slice(top * width, bottom * width) for top, bottom in pairwise(bounds)]
        self.directions: Float32Array = directions.reshape(-1, 3)[self.pixel]
        axis = np.add.reduceat(self.directions.astype(np.float64), self._first)
        self._axis: Float64Array = axis / np.linalg.norm(axis, axis=1, keepdims=True)
        cosine = (self.directions * self._axis[self.block]).sum(axis=1)
        widest = np.minimum.reduceat(cosine, self._first)
        self._angle: Float64Array = np.arccos(np.clip(widest, -1, 1)) + 1e-3

    def pairs(self, actors: MovingActors, map_from_camera: Float64Array, distance: Float32Array) -> Pairs:
        """Pair the actors with the rays of the blocks that they may be seen in.

        Args:
            actors: At the moment of the picture.
            map_from_camera: (4, 4) at that moment.
            distance: (N,) metres of each ray to what does not move; actors behind it are not seen.
        """
        centre, radius, first = actors.balls()
        towards = (centre - map_from_camera[:3, 3]) @ map_from_camera[:3, :3]
        away = np.sqrt((towards**2).sum(axis=1))
        half = np.where(away > radius, np.arcsin(np.minimum(radius / np.maximum(away, 1e-6), 1.0)), np.pi)
        cosine = np.einsum("ak,bk->ab", towards / np.maximum(away, 1e-6)[:, None], self._axis)
        touched = cosine >= np.cos(np.minimum(half[:, None] + self._angle, np.pi))
        touched &= (away - radius)[:, None] < np.maximum.reduceat(distance, self._first)
        actor, block = np.nonzero(np.logical_or.reduceat(touched, first))
        return Pairs.of_runs(actor, self._first[block], self._count[block])

    def shadow_pairs(
        self, actors: MovingActors, rows: Int64Array, places: Float32Array, sun: Float64Array
    ) -> Pairs:
        """Pair the actors with those of the places (3, K) that they may keep the sun from.

        Args:
            actors: At the moment of the picture.
            rows: (K,) ray, ascending, that found each place. A pair's ray is an index into these.
            places: (3, K) float32 in map.
            sun: (3,) unit vector to the sun.
        """
        first = np.flatnonzero(np.diff(self.block[rows], prepend=-1))
        frame = _frame_along(sun)
        seen = [sum(frame[axis, k].astype(np.float32) * places[k] for k in range(3)) for axis in range(3)]
        low = np.array([np.minimum.reduceat(along, first) for along in seen])
        high = np.array([np.maximum.reduceat(along, first) for along in seen])
        centre, radius, first_ball = actors.balls()
        ball = np.einsum("ij,kj->ik", frame, centre)[:, :, None]
        gap = [np.maximum(np.maximum(low[k] - ball[k], ball[k] - high[k]), 0) for k in range(2)]
        reach = radius[:, None]
        touched: BoolArray = (gap[0] ** 2 + gap[1] ** 2 < reach**2) & (ball[2] + reach > low[2])
        actor, group = np.nonzero(np.logical_or.reduceat(touched, first_ball))
        return Pairs.of_runs(actor, first[group], np.diff(first, append=len(rows))[group])


def _frame_along(direction: Float64Array) -> Float64Array:
    """Return (3, 3) orthonormal rows of which the last is ``direction``."""
    side = np.cross(direction, (1.0, 0.0, 0.0) if abs(direction[0]) < 0.8 else (0.0, 1.0, 0.0))
    side /= np.linalg.norm(side)
    return np.stack([side, np.cross(direction, side), direction])
