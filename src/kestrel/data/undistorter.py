# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""From a raw picture to one without lens distortion."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kestrel.data.camera_info import Intrinsics
from kestrel.errors import CalibrationError, describe
from kestrel.types import Calibration, UInt8Array


class Undistorter:
    """Removes lens distortion with remap tables that are built once per lens."""

    def __init__(self, *, capacity: int = 16) -> None:
        self._capacity = capacity
        self._maps: dict[tuple[object, ...], tuple[NDArray[np.int16], NDArray[np.uint16]]] = {}
        self.built = 0
        """How many tables were computed so far."""

    def __call__(self, camera: str, picture: UInt8Array, lens: Intrinsics | Calibration) -> UInt8Array:
        """Return ``picture`` (H, W, 3) as a camera with the same K and no distortion would have taken it.

        Raises:
            CalibrationError: The picture does not have the size that was calibrated.
        """
        height, width = picture.shape[:2]
        if (width, height) != (lens.width, lens.height):
            expected = f"{lens.width}x{lens.height} as in CameraInfo"
            raise CalibrationError(
                describe(f"picture of {camera}", expected=expected, found=f"{width}x{height}")
            )
        if lens.distortion_model == "none":
            return picture
        first, second = self._tables(lens)
        return np.asarray(cv2.remap(picture, first, second, cv2.INTER_LINEAR), dtype=np.uint8)

    def _tables(self, lens: Intrinsics | Calibration) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
        matrix, model, size = lens.camera_matrix, lens.distortion_model, (lens.width, lens.height)
        key = model, size, matrix.tobytes(), lens.distortion.tobytes()
        if key not in self._maps:
            while len(self._maps) >= self._capacity:
                del self._maps[next(iter(self._maps))]
            fisheye = model == "equidistant"
            build: Any = cv2.fisheye.initUndistortRectifyMap if fisheye else cv2.initUndistortRectifyMap
            first, second = build(matrix, lens.distortion, np.eye(3), matrix, size, cv2.CV_16SC2)
            self._maps[key] = (first, second)
            self.built += 1
        return self._maps[key]
