# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""From sensor_msgs/CameraInfo and a transform to a Calibration.

Everything is checked before it is used: a camera whose calibration cannot be trusted is an error with a
reason, so that the caller leaves the camera out. The nodes and all that reads recordings have this reader
alone. Messages are read by their attributes: those of rclpy serve as well as those of `kestrel.data.bag`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from kestrel.errors import CalibrationError, describe
from kestrel.types import DISTORTION_COEFFICIENTS, Calibration, Float64Array

ROS_MODEL_NAMES: Final = {"": "none", "none": "none", "fisheye": "equidistant"}
"""Names in use for the models of sensor_msgs/distortion_models.hpp."""

POLYNOMIALS: Final = ("plumb_bob", "rational_polynomial")
"""Models that are a pinhole where all coefficients are 0; an equidistant lens is none even then."""


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

    camera_matrix: (3, 3) float64 K in pixels of the pictures as they are sent, of ``width`` x ``height``.
    distortion: coefficients in the order of CameraInfo.
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
        """Hash of everything that decides what a pixel shows."""
        numbers = (self.camera_matrix.tobytes(), self.distortion.tobytes(), self.raw_from_picture.tobytes())
        text = f"{self.distortion_model} {self.width} {self.height} {self.frame_id}"
        return hashlib.sha256(b"".join(numbers) + text.encode()).hexdigest()

    def calibration(self, base_from_camera: Float64Array) -> Calibration:
        """Return the calibration of the picture as it is sent, for the pose (4, 4) of its camera frame."""
        base_from_picture = base_from_camera.copy()
        base_from_picture[:3, :3] = base_from_camera[:3, :3] @ self.raw_from_picture
        return Calibration(
            self.camera_matrix,
            self.width,
            self.height,
            base_from_picture,
            self.distortion_model,
            self.distortion,
        )


def read_camera_info(camera: str, info: CameraInfo, *, rectified: bool = False) -> Intrinsics:
    """Return the checked intrinsics in ``info`` for the pictures that are sent with it.

    K and P are of the sensor's full picture. Of one that is a region of it, or binned, they are those of what
    is sent.

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
    if rectified:
        projection = _finite(f"{name} P", info.p, 12).reshape(3, 4)
        rotation = _finite(f"{name} R", info.r, 9).reshape(3, 3)
        if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3):
            raise CalibrationError(describe(f"{name} R", expected="a rotation", found=rotation.tolist()))
        matrix, model, coefficients = projection[:, :3].copy(), "none", np.zeros(0)
        raw_from_picture = rotation.T.copy()
    else:
        matrix = _finite(f"{name} K", info.k, 9).reshape(3, 3)
        model, coefficients = _distortion(name, info)
        raw_from_picture = np.eye(3)
    _check_matrix(name, matrix, info.width, info.height)
    matrix, width, height = _of_what_is_sent(name, matrix, info)
    return Intrinsics(matrix, width, height, model, coefficients, raw_from_picture, info.header.frame_id)


def _finite(name: str, values: Sequence[float], count: int) -> Float64Array:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (count,) or not np.isfinite(array).all():
        raise CalibrationError(describe(name, expected=f"{count} finite numbers", found=array.tolist()))
    return array


def _distortion(name: str, info: CameraInfo) -> tuple[str, Float64Array]:
    """Return the model and its coefficients; drivers fill unused ones with zeros, which may be cut off.

    ``plumb_bob`` without any coefficient is how some drivers say that there is no distortion.
    """
    model = ROS_MODEL_NAMES.get(info.distortion_model, info.distortion_model)
    if model not in DISTORTION_COEFFICIENTS:
        known = sorted(DISTORTION_COEFFICIENTS)
        raise CalibrationError(describe(f"{name} distortion_model", expected=f"one of {known}", found=model))
    array = np.asarray(info.d, dtype=np.float64)
    allowed = DISTORTION_COEFFICIENTS[model]
    if len(array) > max(allowed) and not array[max(allowed) :].any():
        array = array[: max(allowed)]
    empty = model == "plumb_bob" and len(array) == 0
    if not empty and (len(array) not in allowed or not np.isfinite(array).all()):
        expected = f"{' or '.join(map(str, allowed))} finite numbers for {model}"
        raise CalibrationError(describe(f"{name} D", expected=expected, found=array.tolist()))
    if model in POLYNOMIALS and not array.any():
        return "none", np.zeros(0)
    return model, array


def _of_what_is_sent(name: str, matrix: Float64Array, info: CameraInfo) -> tuple[Float64Array, int, int]:
    """Return matrix, width and height of a region of the full picture, binned."""
    roi = info.roi
    if not any((roi.x_offset, roi.y_offset, roi.width, roi.height)):
        x, y, width, height = 0, 0, info.width, info.height
    else:
        x, y, width, height = roi.x_offset, roi.y_offset, roi.width, roi.height
    binning = np.array([max(1, info.binning_x), max(1, info.binning_y)])
    columns, rows = int(width // binning[0]), int(height // binning[1])
    if not (columns > 0 and rows > 0 and x + width <= info.width and y + height <= info.height):
        expected = f"pixels within {info.width}x{info.height}"
        found = f"{width}x{height} at {x}, {y}, binning {binning[0]}x{binning[1]}"
        raise CalibrationError(describe(f"{name} roi", expected=expected, found=found))
    sent = matrix.copy()
    sent[:2, 2] -= x, y
    # The middle of the first pixel is at 0; that of a binned one lies between those that it is made of.
    sent[:2, 2] -= (binning - 1) / 2
    sent[:2] /= binning[:, None]
    return sent, columns, rows


def _check_matrix(name: str, matrix: Float64Array, width: int, height: int) -> None:
    focal = matrix[0, 0] > 0 and matrix[1, 1] > 0 and np.allclose(matrix[2], (0, 0, 1))
    if width <= 0 or height <= 0:
        raise CalibrationError(describe(f"{name} size", expected="positive", found=f"{width}x{height}"))
    if not focal:
        found = "all zero (not calibrated)" if not matrix.any() else matrix.tolist()
        raise CalibrationError(describe(f"{name} K", expected="positive focal lengths", found=found))
