# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Boxes in camera pictures."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from kestrel.classes import DETECTION_COLOURS
from kestrel.eval.scene import CameraView
from kestrel.show import draw
from kestrel.types import Boxes3D, Calibration, Float64Array, UInt8Array

NEAR_M: Final = 0.3
LABELLED_WITHIN_M: Final = 40.0
EDGES: Final = np.array(
    [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)]
)
FRONT: Final = (0, 1, 5, 4)
"""Corners of the face that looks along the yaw of a box."""

_SIGNS: Final = np.array(
    [(1, 1, -1), (1, -1, -1), (-1, -1, -1), (-1, 1, -1), (1, 1, 1), (1, -1, 1), (-1, -1, 1), (-1, 1, 1)]
)


def corners(boxes: Boxes3D) -> Float64Array:
    """Return the (N, 8, 3) corners of boxes: four at the bottom, the four above them."""
    local = _SIGNS[None] * boxes.size[:, None, :].astype(np.float64) / 2
    cos, sin = np.cos(boxes.yaw)[:, None], np.sin(boxes.yaw)[:, None]
    turned = np.stack(
        [local[..., 0] * cos - local[..., 1] * sin, local[..., 0] * sin + local[..., 1] * cos, local[..., 2]],
        -1,
    )
    return np.asarray(turned + boxes.center[:, None, :])


def project(points: Float64Array, calibration: Calibration) -> Float64Array:
    """Return the (N, 2) pixels of (N, 3) points of the optical frame, all in front of the camera."""
    matrix, distortion = calibration.camera_matrix, calibration.distortion
    still = np.zeros(3)
    if calibration.distortion_model == "equidistant":
        pixels, _ = cv2.fisheye.projectPoints(points[:, None], still, still, matrix, distortion)
    else:
        coefficients = distortion if calibration.distortion_model != "none" else np.zeros(5)
        pixels, _ = cv2.projectPoints(points[:, None], still, still, matrix, coefficients)
    return np.asarray(pixels, np.float64).reshape(-1, 2)


def box_lines(boxes: Boxes3D, calibration: Calibration) -> list[tuple[int, Float64Array]]:
    """Return the visible edges as (box, (2, 2) pixels); what is behind the camera is cut off."""
    camera_from_base = np.linalg.inv(calibration.reference_from_camera)
    placed = corners(boxes) @ camera_from_base[:3, :3].T + camera_from_base[:3, 3]
    owners, segments = [], []
    for index in range(len(boxes)):
        if placed[index, :, 2].max() <= NEAR_M or not _in_picture(placed[index].mean(0), calibration):
            continue
        for first, second in placed[index][EDGES]:
            segment = _clip(first, second)
            if segment is not None:
                owners.append(index)
                segments.append(segment)
    if not segments:
        return []
    pixels = project(np.concatenate(segments), calibration).reshape(-1, 2, 2)
    return list(zip(owners, pixels, strict=True))


def _in_picture(center: Float64Array, calibration: Calibration) -> bool:
    """Whether a box may be seen; lens models are not to be trusted far outside of the picture."""
    reach = calibration.width / calibration.camera_matrix[0, 0]
    return bool(abs(center[0]) < 1.2 * reach * max(center[2], 2.0))


def _clip(first: Float64Array, second: Float64Array) -> Float64Array | None:
    """Return the part of a segment in front of the camera."""
    if max(first[2], second[2]) <= NEAR_M:
        return None
    segment = np.array([first, second])
    for index, (here, there) in enumerate(((first, second), (second, first))):
        if here[2] < NEAR_M:
            segment[index] = here + (there - here) * (NEAR_M - here[2]) / (there[2] - here[2])
    return segment


def annotate(view: CameraView, boxes: Boxes3D | None, width: int, height: int) -> UInt8Array:
    """Return the picture at the given size with boxes, name and event of the camera."""
    scale_x, scale_y = width / view.picture.shape[1], height / view.picture.shape[0]
    resized = cv2.resize(view.picture, (width, height), interpolation=cv2.INTER_AREA)
    picture: UInt8Array = np.asarray(resized, np.uint8)
    if boxes is not None and view.calibration is not None:
        boxes = boxes.at(view.stamp_ns)  # what moves has moved on by then
        scale = np.array([scale_x, scale_y])
        far_first = np.argsort(-np.hypot(boxes.center[:, 0], boxes.center[:, 1]), kind="stable")
        lines = box_lines(boxes, view.calibration)
        for index in far_first:
            own = [line * scale for box, line in lines if box == index]
            if own:
                _draw_box(picture, own, boxes, int(index))
    draw.tag(picture, view.name.replace("_", " "), (8, 8), colour=draw.MUTED, size=14)
    if view.event is not None:
        name, score = view.event
        quiet = name == "clear"
        text = f"{name.replace('_', ' ')}  {score:.0%}"
        draw.tag(picture, text, (8, height - 32), colour=(94, 200, 120) if quiet else draw.ACCENT, size=14)
    return picture


def _draw_box(picture: UInt8Array, lines: list[Float64Array], boxes: Boxes3D, index: int) -> None:
    name = boxes.class_names[boxes.label[index]]
    colour = draw.visible(DETECTION_COLOURS.get(name, draw.MUTED))
    for line in lines:
        draw.polyline(picture, line, (8, 10, 14), width=3)
    for line in lines:
        draw.polyline(picture, line, colour, width=1)
    pixels = np.concatenate(lines)
    left, top = pixels.min(0)
    right, bottom = pixels.max(0)
    if min(right - left, bottom - top) < 14 or np.hypot(*boxes.center[index, :2]) > LABELLED_WITHIN_M:
        return
    if 0 <= left < picture.shape[1] - 60 and 16 < top < picture.shape[0]:
        draw.write(picture, name.replace("_", " "), (left + 1, top - 15), size=12, colour=(0, 0, 0))
        draw.write(picture, name.replace("_", " "), (left, top - 16), size=12, colour=colour)
