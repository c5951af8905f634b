# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Which way each pixel of a camera looks, with lens distortion."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from kestrel.errors import CalibrationError, describe
from kestrel.types import Calibration, Float32Array, Float64Array

_ROUNDS: Final = 200
_CLOSE_PX: Final = 1e-3


def pixel_directions(calibration: Calibration) -> Float32Array:
    """Return (H, W, 3) float32 unit vectors in the optical frame (x right, y down, z forward).

    Raises:
        CalibrationError: The distortion bends rays so much that a pixel has no direction.
    """
    columns, rows = np.meshgrid(np.arange(calibration.width), np.arange(calibration.height))
    pixels = np.stack([columns, rows], axis=-1).reshape(-1, 2).astype(np.float64)
    plane = _undistort(pixels, calibration).reshape(calibration.height, calibration.width, 2)
    if not np.isfinite(plane).all():
        raise CalibrationError(
            describe("lens distortion", expected="a direction for every pixel", found=calibration.distortion)
        )
    directions = np.concatenate([plane, np.ones((*plane.shape[:2], 1))], axis=-1)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return directions.astype(np.float32)


def _undistort(pixels: Float64Array, calibration: Calibration) -> Float64Array:
    """Return (N, 2) x/z and y/z of pixels (N, 2): where ``project`` leads back to them."""
    matrix = calibration.camera_matrix
    focal = matrix[[0, 1], [0, 1]]
    plane: Float64Array = (pixels - matrix[:2, 2]) / focal
    if calibration.distortion_model == "none":
        return plane
    for _ in range(_ROUNDS):
        points = np.concatenate([plane, np.ones((len(plane), 1))], axis=1)
        miss = project(points, calibration) - pixels
        if not np.isfinite(miss).all() or np.abs(miss).max() < _CLOSE_PX:
            break
        plane = plane - miss / focal
    return plane if np.abs(miss).max() < _CLOSE_PX else np.full_like(plane, np.nan)


def project(points: Float64Array, calibration: Calibration) -> Float64Array:
    """Return the (N, 2) pixels of ``points`` (N, 3) given in the optical frame; z must be positive."""
    zero = np.zeros(3)
    if calibration.distortion_model == "equidistant":
        pixels, _ = cv2.fisheye.projectPoints(
            points.reshape(-1, 1, 3), zero, zero, calibration.camera_matrix, calibration.distortion
        )
    else:
        pixels, _ = cv2.projectPoints(
            points.reshape(-1, 1, 3), zero, zero, calibration.camera_matrix, calibration.distortion
        )
    return np.asarray(pixels, np.float64).reshape(-1, 2)
