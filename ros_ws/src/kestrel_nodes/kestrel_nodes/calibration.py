# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""From sensor_msgs/CameraInfo and a transform to a Calibration, from a raw picture to one without distortion.

Everything is checked before it is used: a camera whose calibration cannot be trusted is an error with a
reason, so that the caller leaves the camera out. There is no ROS in this module; messages are read by their
attributes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from kestrel.errors import CalibrationError, describe
from kestrel.types import DISTORTION_COEFFICIENTS, Calibration, Float64Array, UInt8Array

ROS_MODEL_NAMES = {"": "none", "none": "none", "fisheye": "equidistant"}
"""Names in use for the models of sensor_msgs/distortion_models.hpp."""


class CameraInfo(Protocol):
    """What is read of sensor_msgs/CameraInfo."""

    header: Any
    width: int
    height: int
    distortion_model: str
    d: Sequence[float]
    k: Sequence[float]
    r: Sequence[float]
    p: Sequence[float]
    binning_x: int
    binning_y: int
    roi: Any


@dataclass(frozen=True)
class Intrinsics:
    """How one camera projects, checked; equal values have an equal ``key``.

    camera_matrix: (3, 3) float64 K, pixels. distortion: coefficients in the order of CameraInfo.
    raw_from_picture: (3, 3) rotation from the axes of the picture to the camera frame (rectified pictures).
    """

    camera_matrix: Float64Array
    width: int
    height: int
    distortion_model: str
    distortion: Float64Array
    raw_from_picture: Float64Array
    frame_id: str

    @property
    def key(self) -> str:
        """Hash of everything that decides how the picture has to be changed."""
        numbers = (self.camera_matrix.tobytes(), self.distortion.tobytes(), self.raw_from_picture.tobytes())
        text = f"{self.distortion_model} {self.width} {self.height} {self.frame_id}"
        return hashlib.sha256(b"".join(numbers) + text.encode()).hexdigest()

    @property
    def distorted(self) -> bool:
        """Whether a picture of this camera has to be remapped."""
        return self.distortion_model != "none" and bool(self.distortion.any())

    def calibration(self, base_from_camera: Float64Array) -> Calibration:
        """Return the calibration of the picture without distortion, for the pose of its camera frame."""
        base_from_picture = base_from_camera.copy()
        base_from_picture[:3, :3] = base_from_camera[:3, :3] @ self.raw_from_picture
        return Calibration(self.camera_matrix, self.width, self.height, base_from_picture)


def read_camera_info(camera: str, info: CameraInfo, *, rectified: bool = False) -> Intrinsics:
    """Return the checked intrinsics in ``info``.

    Args:
        camera: name for error texts.
        info: sensor_msgs/CameraInfo.
        rectified: the pictures are already rectified (image_proc): P and R count, K and D do not.

    Raises:
        CalibrationError: Anything is missing, not finite, of the wrong length or of an unknown model.
    """
    name = f"CameraInfo of {camera}"
    if not info.header.frame_id:
        raise CalibrationError(describe(f"{name} frame_id", expected="a frame", found="an empty name"))
    _check_whole_picture(name, info)
    if rectified:
        projection = _finite(f"{name} P", info.p, 12).reshape(3, 4)
        rotation = _finite(f"{name} R", info.r, 9).reshape(3, 3)
        if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3):
            raise CalibrationError(describe(f"{name} R", expected="a rotation", found=rotation.tolist()))
        matrix, model, coefficients = projection[:, :3].copy(), "none", np.zeros(0)
        raw_from_picture = rotation.T.copy()
    else:
        matrix = _finite(f"{name} K", info.k, 9).reshape(3, 3)
        model = ROS_MODEL_NAMES.get(info.distortion_model, info.distortion_model)
        coefficients = _distortion(name, model, info.d)
        raw_from_picture = np.eye(3)
    _check_matrix(name, matrix, info.width, info.height)
    return Intrinsics(
        matrix,
        int(info.width),
        int(info.height),
        model,
        coefficients,
        raw_from_picture,
        info.header.frame_id,
    )


def _finite(name: str, values: Sequence[float], count: int) -> Float64Array:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (count,) or not np.isfinite(array).all():
        raise CalibrationError(describe(name, expected=f"{count} finite numbers", found=array.tolist()))
    return array


def _distortion(name: str, model: str, values: Sequence[float]) -> Float64Array:
    """Return the coefficients; drivers fill unused ones with zeros, so trailing zeros may be cut off."""
    if model not in DISTORTION_COEFFICIENTS:
        known = sorted(DISTORTION_COEFFICIENTS)
        raise CalibrationError(describe(f"{name} distortion_model", expected=f"one of {known}", found=model))
    array = np.asarray(values, dtype=np.float64)
    allowed = DISTORTION_COEFFICIENTS[model]
    if len(array) > max(allowed) and not array[max(allowed) :].any():
        array = array[: max(allowed)]
    if len(array) not in allowed or not np.isfinite(array).all():
        expected = f"{' or '.join(map(str, allowed))} finite numbers for {model}"
        raise CalibrationError(describe(f"{name} D", expected=expected, found=array.tolist()))
    return array


def _check_whole_picture(name: str, info: CameraInfo) -> None:
    roi = info.roi
    whole = (roi.width, roi.height) in ((0, 0), (info.width, info.height)) and not (
        roi.x_offset or roi.y_offset
    )
    if max(info.binning_x, info.binning_y) > 1 or not whole:
        found = f"binning {info.binning_x}x{info.binning_y}, region {roi.width}x{roi.height}"
        raise CalibrationError(describe(name, expected="the whole picture without binning", found=found))


def _check_matrix(name: str, matrix: Float64Array, width: int, height: int) -> None:
    focal = matrix[0, 0] > 0 and matrix[1, 1] > 0 and np.allclose(matrix[2], (0, 0, 1))
    if width <= 0 or height <= 0:
        raise CalibrationError(describe(f"{name} size", expected="positive", found=f"{width}x{height}"))
    if not focal:
        found = "all zero (not calibrated)" if not matrix.any() else matrix.tolist()
        raise CalibrationError(describe(f"{name} K", expected="positive focal lengths", found=found))


class Undistorter:
    """Removes lens distortion with remap tables that are built once per set of intrinsics."""

    def __init__(self, *, capacity: int = 16) -> None:
        self._capacity = capacity
        self._maps: dict[str, tuple[NDArray[np.int16], NDArray[np.uint16]]] = {}
        self.built = 0
        """How many tables were computed so far."""

    def __call__(self, camera: str, picture: UInt8Array, intrinsics: Intrinsics) -> UInt8Array:
        """Return ``picture`` (H, W, 3) as a camera with the same K and no distortion would have taken it.

        Raises:
            CalibrationError: The picture does not have the size that was calibrated.
        """
        height, width = picture.shape[:2]
        if (width, height) != (intrinsics.width, intrinsics.height):
            expected = f"{intrinsics.width}x{intrinsics.height} as in CameraInfo"
            raise CalibrationError(
                describe(f"picture of {camera}", expected=expected, found=f"{width}x{height}")
            )
        if not intrinsics.distorted:
            return picture
        first, second = self._tables(intrinsics)
        return np.asarray(cv2.remap(picture, first, second, cv2.INTER_LINEAR), dtype=np.uint8)

    def _tables(self, intrinsics: Intrinsics) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
        key = intrinsics.key
        if key not in self._maps:
            while len(self._maps) >= self._capacity:
                del self._maps[next(iter(self._maps))]
            fisheye = intrinsics.distortion_model == "equidistant"
            build: Any = cv2.fisheye.initUndistortRectifyMap if fisheye else cv2.initUndistortRectifyMap
            matrix, size = intrinsics.camera_matrix, (intrinsics.width, intrinsics.height)
            first, second = build(matrix, intrinsics.distortion, np.eye(3), matrix, size, cv2.CV_16SC2)
            self._maps[key] = (first, second)
            self.built += 1
        return self._maps[key]
