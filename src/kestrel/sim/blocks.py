# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Blocks of the pixels of a camera, as which moving actors are sought.

Neighbours in a picture meet the same surfaces, so a block of them is looked at as one.
"""

from __future__ import annotations

from typing import Final, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from kestrel.sim.showroom import MovingActors, Pairs
from kestrel.sim.surfaces import BoolArray
from kestrel.types import Float32Array, Float64Array, Int64Array

BLOCK: Final = 16
"""Pixels along one side of a block."""

_MARGIN: Final = 1e-5
"""By which blocks are widened, so that rounding loses no ray: of the focal length, or metres of shadow."""

Number = TypeVar("Number", np.float32, np.float64)

_NEAR: Final = 1e-3
"""Depth in front of the camera from which on a corner has a place in the picture."""

_EDGES: Final = np.array([(i, i | bit) for i in range(8) for bit in (1, 2, 4) if not i & bit])
"""(12, 2) corners that the edges of a box join, where bit k of a corner is its side along axis k."""


class Blocks:
    """All pixels of one camera, row by row, in blocks.

    Args:
        directions: (H, W, 3) float32 unit vectors, the ray of each pixel in the optical frame.

    Attributes:
        shape: (H, W). directions: (N, 3) float32.
    """

    def __init__(self, directions: Float32Array) -> None:
        height, width = self.shape = (directions.shape[0], directions.shape[1])
        self.directions: Float32Array = np.ascontiguousarray(directions.reshape(-1, 3))
        self._tops, self._lefts = np.arange(0, height, BLOCK), np.arange(0, width, BLOCK)
        row, column = np.divmod(np.arange(height * width), width)
        number = row // BLOCK * len(self._lefts) + column // BLOCK
        self._pixel: Int64Array = np.argsort(number, kind="stable")
        self._first = np.flatnonzero(np.diff(number[self._pixel], prepend=-1))
        self._count = np.diff(self._first, append=height * width)
        x, y, z = self.directions.T.astype(np.float64)
        self._low = np.stack([self._least(x / z), self._least(y / z)], axis=1) - _MARGIN
        self._high = np.stack([self._most(x / z), self._most(y / z)], axis=1) + _MARGIN
        self._depth = self._least(z), self._most(z)

    def _least(self, values: NDArray[Number]) -> NDArray[Number]:
        """Return the least of the values (N,) in each block (B,)."""
        rows = np.minimum.reduceat(values.reshape(self.shape), self._tops, axis=0)
        return np.minimum.reduceat(rows, self._lefts, axis=1).reshape(-1)

    def _most(self, values: NDArray[Number]) -> NDArray[Number]:
        """Return the highest of the values (N,) in each block (B,)."""
        rows = np.maximum.reduceat(values.reshape(self.shape), self._tops, axis=0)
        return np.maximum.reduceat(rows, self._lefts, axis=1).reshape(-1)

    def pairs(self, actors: MovingActors, map_from_camera: Float64Array, distance: Float32Array) -> Pairs:
        """Pair the actors with the rays of the blocks that they may be seen in.

        Args:
            actors: At the moment of the picture.
            map_from_camera: (4, 4) at that moment.
            distance: (N,) metres of rays to what does not move, 0 where that is not known; actors behind the
                farthest of a block and those around it are not seen.
        """
        corners = (actors.corners() - map_from_camera[:3, 3]) @ map_from_camera[:3, :3]
        centre, radius = corners.mean(axis=1), np.linalg.norm(corners[:, 7] - corners[:, 0], axis=1) / 2
        nearest = np.linalg.norm(centre, axis=1) - radius
        most = self._most(distance).reshape(len(self._tops), len(self._lefts))
        around = cv2.dilate(most, np.ones((3, 3), np.uint8)).reshape(-1).astype(np.float32)
        return self._of(*_overlaps(corners, self._low, self._high, nearest, around))

    def shadow_pairs(
        self,
        actors: MovingActors,
        map_from_camera: Float64Array,
        distance: Float32Array,
        faces: BoolArray,
        sun: Float64Array,
    ) -> Pairs:
        """Pair the actors with the rays of the blocks that they may keep the sun from.

        Args:
            actors: At the moment of the picture.
            map_from_camera: (4, 4) at that moment.
            distance: (N,) metres of each ray to what it found.
            faces: (N,) bool, what was found is turned to the sun; other rays count for nothing.
            sun: (3,) unit vector to the sun.
        """
        near = self._least(np.where(faces, distance, np.float32(np.inf)))
        far = self._most(np.where(faces, distance, np.float32(0)))
        any_ = np.flatnonzero(far > 0)
        depth = np.stack([near[any_] * self._depth[0][any_], far[any_] * self._depth[1][any_]])
        low, high = self._low[any_], self._high[any_]
        frame = _frame_along(sun)
        turn = frame @ map_from_camera[:3, :3]
        seen = [
            np.stack([x, y, np.ones(len(any_))], axis=1) @ turn.T * z[:, None]
            for x in (low[:, 0], high[:, 0])
            for y in (low[:, 1], high[:, 1])
            for z in depth
        ]
        corners = (actors.corners() - map_from_camera[:3, 3]) @ frame.T
        top = corners[..., 2].max(axis=1)
        corners[..., 2] = 1.0
        lowest, highest = np.min(seen, axis=0) - _MARGIN, np.max(seen, axis=0) + _MARGIN
        actor, block = _overlaps(corners, lowest[:, :2], highest[:, :2], -top, -lowest[:, 2])
        return self._of(actor, any_[block])

    def _of(self, actor: Int64Array, block: Int64Array) -> Pairs:
        """Pair each of the actors (R,) with the rays of a block (R,)."""
        runs = Pairs.of_runs(actor, self._first[block], self._count[block])
        return Pairs(runs.actor, self._pixel[runs.ray])


def _overlaps(
    corners: Float64Array,
    low: Float64Array,
    high: Float64Array,
    nearest: Float64Array,
    farthest: Float32Array | Float64Array,
) -> tuple[Int64Array, Int64Array]:
    """Return which boxes (K,) may be seen in which rectangles (K,), ascending by box.

    Two convex outlines are apart if a side of one of them has the other wholly beyond it (separating axes).

    Args:
        corners: (A, 8, 3) of boxes, homogeneous: seen at x/z, y/z if z > 0.
        low: (B, 2) of rectangles.
        high: (B, 2) of rectangles.
        nearest: (A,) how far away a box begins.
        farthest: (B,) how far away what hides it is.
    """
    x, y, z = corners.transpose(2, 1, 0)
    in_front = z.max(axis=0) > 0
    whole = z.min(axis=0) > _NEAR
    touched: BoolArray = in_front[:, None] & (nearest[:, None] < farthest)
    for axis, along in enumerate((x, y)):
        plane = along / np.where(whole, z, 1.0)
        touched &= np.where(whole, plane.min(axis=0), -np.inf)[:, None] <= high[:, axis]
        touched &= np.where(whole, plane.max(axis=0), np.inf)[:, None] >= low[:, axis]
    box, rectangle = np.nonzero(touched)
    lower, upper = low[rectangle].T, high[rectangle].T
    apart = np.zeros(len(box), bool)
    depth = z.take(box, axis=1)
    for axis, along in enumerate((x, y)):
        place = along.take(box, axis=1)
        apart |= ((place - lower[axis] * depth).max(axis=0) < 0) | (
            (place - upper[axis] * depth).min(axis=0) > 0
        )
    normal = _outward(corners)[:, :, box]
    least = np.minimum(normal[0] * lower[0], normal[0] * upper[0])
    least += np.minimum(normal[1] * lower[1], normal[1] * upper[1])
    least += normal[2]
    apart |= least.max(axis=0) > 0
    return box[~apart], rectangle[~apart]


def _outward(corners: Float64Array) -> Float64Array:
    """Return (3, 12, A) normals, away from the box, of the planes through the origin and one of its edges.

    They are 0 where the plane cuts the box.
    """
    normal = np.cross(corners[:, _EDGES[:, 0]], corners[:, _EDGES[:, 1]])
    beside = np.einsum("aek,ack->cae", normal, corners)
    most, least = beside.max(axis=0), beside.min(axis=0)
    slack = 1e-9 * np.maximum(most, -least)
    sign = (most <= slack).astype(np.float64) - (least >= -slack)
    outward: Float64Array = (normal * sign[..., None]).transpose(2, 1, 0)
    return outward


def _frame_along(direction: Float64Array) -> Float64Array:
    """Return (3, 3) orthonormal rows of which the last is ``direction``."""
    side = np.cross(direction, (1.0, 0.0, 0.0) if abs(direction[0]) < 0.8 else (0.0, 1.0, 0.0))
    side /= np.linalg.norm(side)
    return np.stack([side, np.cross(direction, side), direction])
