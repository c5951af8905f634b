# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of any camera as Kestrel's networks were trained on: upright, cut to their aspect, resized."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

import cv2
import numpy as np

from kestrel.types import Calibration, Float64Array, UInt8Array

SKY: Final = 0.15
"""Share of the rows that stays above the horizon if there is as much: a lorry 30 m ahead is that tall."""

_TURNED_AWAY: Final = 0.5
"""A camera that looks farther up or down than this cosine to the horizon has no side that is up."""


def crop_to_road(data: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """Cut a picture (H, W, 3) of a camera that nobody knows to the aspect of ``size`` (h, w), and resize it.

    The top (sky) goes when it is too tall, both sides in equal parts when it is too wide: the road stays.
    """
    height, width = data.shape[:2]
    kept_width, kept_height = _kept(width, height, size, stretch=1.0)
    return _resized(data[height - kept_height :, _middle(width, kept_width)], size)


def road_view(
    data: UInt8Array, calibration: Calibration, size: tuple[int, int]
) -> tuple[UInt8Array, Calibration]:
    """Return what a network sees of a picture, and the calibration of that part before it is resized.

    That of a camera upside down or on its side is turned by quarters. Then it is cut so that its pixels are
    square once it is resized: both sides in equal parts when it is too wide, the top when it is too tall. If
    that would take the horizon (4:3, square, looking down) the bottom goes for as much of the top as SKY.

    Args:
        data: (H, W, 3).
        calibration: of the picture; its lens distortion only matters to what is turned, which has none.
        size: (h, w) of what the network sees.

    Returns:
        (h, w, 3) uint8, and a calibration in pixels of the part that was cut out.
    """
    quarters = _quarters_to_upright(calibration)
    if quarters:
        data, calibration = np.rot90(data, quarters), _turned(calibration, quarters)
    rows, columns = road_window(calibration, size)
    matrix = calibration.camera_matrix.copy()
    matrix[:2, 2] -= columns.start, rows.start
    width, height = columns.stop - columns.start, rows.stop - rows.start
    cut = replace(calibration, camera_matrix=matrix, width=width, height=height)
    return _resized(data[rows, columns], size), cut


def road_window(calibration: Calibration, size: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of an upright picture that `road_view` keeps for ``size`` (h, w)."""
    stretch = calibration.camera_matrix[1, 1] / calibration.camera_matrix[0, 0]
    width, height = calibration.width, calibration.height
    kept_width, kept_height = _kept(width, height, size, stretch)
    top = round(min(height - kept_height, lowest_top(calibration, kept_height)))
    return slice(top, top + kept_height), _middle(width, kept_width)


def lowest_top(calibration: Calibration, kept: float) -> float:
    """Return below which row ``kept`` rows of an upright picture must not begin: SKY is above the horizon.

    Where it looks so far up or down that there is no horizon, they may begin anywhere: infinity.
    """
    _, y, z = _up(calibration)
    if -y < _TURNED_AWAY:
        return math.inf
    horizon = calibration.camera_matrix[1, 2] - calibration.camera_matrix[1, 1] * z / y
    return max(0.0, float(horizon) - SKY * kept)


def _kept(width: int, height: int, size: tuple[int, int], stretch: float) -> tuple[int, int]:
    """Return (width, height) of the largest part with the aspect of ``size``, whose pixels are as tall."""
    wanted = size[1] / size[0] / stretch
    if width / height > wanted:
        return max(1, round(height * wanted)), height
    return width, max(1, round(width / wanted))


def _middle(width: int, kept: int) -> slice:
    left = (width - kept) // 2
    return slice(left, left + kept)


def _resized(cut: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    if cut.shape[:2] == size:
        return cut
    return np.asarray(cv2.resize(cut, (size[1], size[0]), interpolation=cv2.INTER_AREA), np.uint8)


def _up(calibration: Calibration) -> Float64Array:
    """Return which way is up in the axes of the camera, (3,) of length 1."""
    up: Float64Array = calibration.reference_from_camera[2, :3]
    return up / np.linalg.norm(up)


def _quarters_to_upright(calibration: Calibration) -> int:
    """Return by how many quarters the picture has to be turned, anticlockwise, until up is at its top."""
    x, y, _ = _up(calibration)
    if np.hypot(x, y) < _TURNED_AWAY or calibration.distortion_model != "none":
        return 0
    return round(math.atan2(x, -y) / (math.pi / 2)) % 4


def _turned(calibration: Calibration, quarters: int) -> Calibration:
    """Return the calibration of a picture after ``quarters`` of an anticlockwise turn (np.rot90)."""
    for _ in range(quarters):
        (fx, _, cx), (_, fy, cy), _ = calibration.camera_matrix
        width, height = calibration.height, calibration.width
        matrix = np.array([[fy, 0, cy], [0, fx, height - 1 - cx], [0, 0, 1.0]])
        pose = calibration.reference_from_camera.copy()
        # What was to the right is above now: x of the turned picture is y of the one before, its y is -x.
        pose[:3, 0], pose[:3, 1] = pose[:3, 1].copy(), -pose[:3, 0]
        calibration = replace(
            calibration, camera_matrix=matrix, width=width, height=height, reference_from_camera=pose
        )
    return calibration
