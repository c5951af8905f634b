# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The scene from above: map, coloured cloud, boxes with velocity, truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from kestrel.classes import (
    DETECTION_COLOURS,
    IGNORE,
    MAP_COLOURS,
    POINT_CLASSES,
    POINT_COLOURS,
)
from kestrel.eval.scene import Frame
from kestrel.show import draw
from kestrel.show.camera import corners
from kestrel.types import BevMap, Boxes3D, Float32Array, UInt8Array

VELOCITY_S: Final = 1.0
"""An arrow is as long as what moves covers in this time."""
STANDS_STILL_M_S: Final = 0.5
RING_M: Final = 10.0
MAP_THRESHOLD: Final = 0.5
LAYER_OPACITY: Final = {"drivable_area": 0.30, "carpark_area": 0.30, "walkway": 0.40, "ped_crossing": 0.6}

_COLOURS: Final = np.full((256, 3), draw.MUTED, np.uint8)
for _index, _name in enumerate(POINT_CLASSES):
    _COLOURS[_index] = draw.visible(POINT_COLOURS[_name])
_COLOURS[IGNORE] = (90, 96, 110)


@dataclass(frozen=True)
class Window:
    """What part of the ground is seen: x ahead is to the right, y to the left is up.

    behind_m: how far back; ahead and to the sides follow from the size in pixels.
    """

    width: int
    height: int
    pixels_per_m: float
    behind_m: float

    def place(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the (N, 2) pixels of (N, 2 or more) positions in base_link."""
        columns = (points[:, 0].astype(np.float64) + self.behind_m) * self.pixels_per_m
        rows = self.height / 2 - points[:, 1].astype(np.float64) * self.pixels_per_m
        return np.stack([columns, rows], 1)


def paint(frame: Frame, window: Window, *, with_map: bool, with_points: bool, with_boxes: bool) -> UInt8Array:
    """Return the picture of a frame from above."""
    picture = draw.canvas(window.width, window.height, draw.PANEL)
    if with_map and frame.bev_map is not None:
        _paint_map(picture, frame.bev_map, window)
    _paint_rings(picture, window)
    if with_points and frame.points is not None:
        _paint_points(picture, frame.points, frame.classes, window)
    if with_boxes and frame.truth is not None:
        for corner in corners(frame.truth):
            draw.dashed(picture, window.place(corner[:4]), draw.TRUTH)
    if with_boxes and frame.objects is not None:
        _paint_boxes(picture, frame.objects, window)
    _paint_vehicle(picture, window)
    return picture


def _paint_map(picture: UInt8Array, bev: BevMap, window: Window) -> None:
    cells_x, cells_y = bev.probability.shape[1:]
    first, last = (
        bev.lower,
        (bev.lower[0] + cells_x * bev.resolution, bev.lower[1] + cells_y * bev.resolution),
    )
    # Cell (0, 0) is at the lower left; rows of the picture run along -y.
    spots = window.place(np.array([(first[0], last[1]), (last[0], last[1]), (first[0], first[1])]))
    source = np.array([(0, 0), (cells_x, 0), (0, cells_y)], np.float32)
    matrix = cv2.getAffineTransform(source, spots.astype(np.float32))
    colour = np.full((cells_y, cells_x, 3), draw.PANEL, np.float32)
    for index, layer in enumerate(bev.layer_names):
        there = (bev.probability[index] >= MAP_THRESHOLD).T[::-1]
        opacity = LAYER_OPACITY.get(layer, 0.8)
        colour[there] = colour[there] * (1 - opacity) + np.array(MAP_COLOURS[layer], np.float32) * opacity
    size = (window.width, window.height)
    cv2.warpAffine(
        colour.astype(np.uint8),
        matrix,
        size,
        dst=picture,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=draw.PANEL,
    )


def _paint_rings(picture: UInt8Array, window: Window) -> None:
    center = window.place(np.zeros((1, 2)))[0].round().astype(int)
    far = max(window.behind_m, window.width / window.pixels_per_m - window.behind_m)
    for radius in np.arange(RING_M, far + RING_M, RING_M):
        pixels = round(radius * window.pixels_per_m)
        cv2.circle(picture, tuple(center.tolist()), pixels, (52, 59, 74), 1, cv2.LINE_AA)
        draw.write(
            picture, f"{radius:.0f} m", (center[0] + pixels + 3, center[1] + 2), size=11, colour=draw.MUTED
        )


def _paint_points(
    picture: UInt8Array, points: Float32Array, classes: UInt8Array | None, window: Window
) -> None:
    order = np.argsort(points[:, 2], kind="stable")
    spots = draw.within_reach(window.place(points[order])).astype(np.int64)
    if classes is None:
        grey = np.clip(90 + 165 * points[order, 3:4], 0, 255)
        colours = np.repeat(grey, 3, 1).astype(np.uint8)
    else:
        colours = _COLOURS[classes[order]]
    for step_x, step_y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = spots[:, 0] + step_x, spots[:, 1] + step_y
        inside = (x >= 0) & (y >= 0) & (x < window.width) & (y < window.height)
        picture[y[inside], x[inside]] = colours[inside]


def _paint_boxes(picture: UInt8Array, boxes: Boxes3D, window: Window) -> None:
    for index, corner in enumerate(corners(boxes)):
        colour = draw.visible(DETECTION_COLOURS.get(boxes.class_names[boxes.label[index]], draw.MUTED))
        outline = window.place(corner[:4])
        draw.fill(picture, outline, colour, 0.35)
        draw.polyline(picture, outline, colour, width=2, closed=True)
        center = window.place(boxes.center[index : index + 1])[0]
        velocity = boxes.velocity[index].astype(np.float64)
        if np.isfinite(velocity).all() and np.hypot(*velocity) > STANDS_STILL_M_S:
            tip = window.place((boxes.center[index, :2] + velocity * VELOCITY_S)[None])[0]
            draw.arrow(picture, center, tip, colour)


def _paint_vehicle(picture: UInt8Array, window: Window) -> None:
    outline = window.place(np.array([(2.4, 0.9), (3.0, 0.0), (2.4, -0.9), (-1.2, -0.9), (-1.2, 0.9)]))
    draw.fill(picture, outline, draw.ACCENT, 0.9)
    draw.polyline(picture, outline, (20, 20, 20), width=1, closed=True)
