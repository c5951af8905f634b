# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Plausible street scenes as label images, drawn from a seed with a pinhole camera above a road."""

from __future__ import annotations

import cv2
import numpy as np

from kestrel.sim.semantics import Semantic
from kestrel.types import Float64Array, UInt8Array

CAMERA_HEIGHT_M = 1.6
FOCAL = 0.8
"""Focal length in picture widths."""

FARTHEST_M = 120.0
NEAREST_M = 3.0


class _Canvas:
    """A label image and the camera that looks along the road onto it."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.labels: UInt8Array = np.full(size, Semantic.SKY, np.uint8)
        self.focal = FOCAL * size[1]
        self.middle = np.array([size[1] / 2, size[0] * 0.42])

    def draw(self, corners: Float64Array, semantic: Semantic) -> None:
        """Fill the polygon with ``corners`` (N, 3): metres right of the camera, above the ground, ahead."""
        ahead = np.maximum(corners[:, 2], NEAREST_M)
        pixels = self.middle + self.focal / ahead[:, None] * np.stack(
            (corners[:, 0], CAMERA_HEIGHT_M - corners[:, 1]), 1
        )
        cv2.fillPoly(self.labels, [np.round(pixels).clip(-32000, 32000).astype(np.int32)], int(semantic))

    def strip(self, left: float, right: float, near: float, far: float, semantic: Semantic) -> None:
        """Fill a piece of the ground."""
        rows = [(left, 0, near), (right, 0, near), (right, 0, far), (left, 0, far)]
        self.draw(np.array(rows), semantic)

    def box(self, x: float, z: float, size: tuple[float, float, float], semantic: Semantic) -> None:
        """Fill the outline of a box that stands at (x, z): its size is length, width, height."""
        length, width, height = size
        corners = [
            (x + sx * width / 2, y, z + sz * length / 2)
            for sx in (-1, 1)
            for y in (0, height)
            for sz in (-1, 1)
        ]
        outline = np.array(corners)
        ahead = np.maximum(outline[:, 2], NEAREST_M)
        pixels = self.middle + self.focal / ahead[:, None] * np.stack(
            (outline[:, 0], CAMERA_HEIGHT_M - outline[:, 1]), 1
        )
        hull = cv2.convexHull(np.round(pixels).clip(-32000, 32000).astype(np.int32))
        cv2.fillPoly(self.labels, [hull], int(semantic))


def scene_labels(seed: int, size: tuple[int, int]) -> UInt8Array:
    """Return a street as a label image of ``size`` (H, W); the same seed gives the same street."""
    random = np.random.default_rng(seed)
    canvas = _Canvas(size)
    lanes_left, lanes_right = int(random.integers(1, 3)), int(random.integers(1, 3))
    left, right = -3.5 * lanes_left - 1.75, 3.5 * lanes_right - 1.75
    walk = float(random.uniform(2, 4))
    canvas.strip(-200, 200, NEAREST_M, FARTHEST_M, Semantic.TERRAIN)
    canvas.strip(left - walk, right + walk, NEAREST_M, FARTHEST_M, Semantic.SIDEWALK)
    canvas.strip(left, right, NEAREST_M, FARTHEST_M, Semantic.ROAD)
    for lane in range(1, lanes_left + lanes_right):
        middle = left + 3.5 * lane
        for start in np.arange(NEAREST_M, 80, 8.0):
            canvas.strip(middle - 0.08, middle + 0.08, start, start + 4, Semantic.LANE_MARKING)
    if random.random() < 0.5:
        start = float(random.uniform(10, 30))
        for stripe in np.arange(left + 0.3, right - 0.5, 1.0):
            canvas.strip(stripe, stripe + 0.5, start, start + 3, Semantic.CROSSING)
    things = _roadside(random, left - walk, right + walk) + _traffic(random, left, right, walk)
    for x, z, box, semantic in sorted(things, key=lambda thing: -thing[1]):
        canvas.box(x, z, box, semantic)
    return canvas.labels


_Thing = tuple[float, float, tuple[float, float, float], Semantic]


def _roadside(random: np.random.Generator, left: float, right: float) -> list[_Thing]:
    things: list[_Thing] = []
    for side, edge in ((-1, left), (1, right)):
        z = 8.0
        while z < 110:
            length, set_back = float(random.uniform(8, 25)), float(random.uniform(3, 10))
            if random.random() < 0.7:
                size = (length, 10.0, float(random.uniform(5, 20)))
                things.append((edge + side * (set_back + 5), z + length / 2, size, Semantic.BUILDING))
            else:
                size = (3.0, 3.0, float(random.uniform(3, 7)))
                things.append((edge + side * 2, z, size, Semantic.VEGETATION))
            if random.random() < 0.4:
                things.append((edge, z, (0.2, 0.2, 6.0), Semantic.POLE))
            z += length + float(random.uniform(1, 6))
    return things


def _traffic(random: np.random.Generator, left: float, right: float, walk: float) -> list[_Thing]:
    kinds = (
        (Semantic.CAR, (4.5, 1.9, 1.6)),
        (Semantic.VAN, (5.2, 2.0, 2.2)),
        (Semantic.TRUCK, (8.0, 2.5, 3.4)),
        (Semantic.BUS, (12.0, 2.6, 3.2)),
        (Semantic.BICYCLIST, (1.8, 0.7, 1.8)),
    )
    things: list[_Thing] = []
    for _ in range(int(random.integers(2, 8))):
        semantic, size = kinds[int(random.choice(5, p=(0.6, 0.12, 0.1, 0.06, 0.12)))]
        lane = left + 1.75 + 3.5 * int(random.integers(round((right - left) / 3.5)))
        things.append((lane, float(random.uniform(12, 90)), size, semantic))
    for _ in range(int(random.integers(0, 7))):
        edge = random.choice((left - walk / 2, right + walk / 2))
        things.append((float(edge), float(random.uniform(8, 50)), (0.5, 0.6, 1.75), Semantic.PEDESTRIAN))
    return things
