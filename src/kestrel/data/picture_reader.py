# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of sensor_msgs/Image and CompressedImage in RGB, checked before they are decoded.

Messages are read by their attributes: those of rclpy serve as well as those of `kestrel.data.bag`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Final

import cv2
import numpy as np
from rosbags.image import image_to_cvimage

from kestrel.data.messages import stamp_of
from kestrel.data.picture_header import check_compressed
from kestrel.errors import InputError, describe
from kestrel.types import Image, UInt8Array

BYTES_PER_PIXEL: Final[dict[str, int]] = {
    "rgb8": 3,
    "bgr8": 3,
    "rgba8": 4,
    "bgra8": 4,
    "mono8": 1,
    "bayer_rggb8": 1,
    "bayer_bggr8": 1,
    "bayer_gbrg8": 1,
    "bayer_grbg8": 1,
    "yuv422": 2,
    "uyvy": 2,
    "yuv422_yuy2": 2,
    "yuyv": 2,
}
"""Encodings of sensor_msgs/Image that are understood; others do not say what the bytes mean."""


def read_image(message: Any) -> Image:
    """Return the picture of a sensor_msgs/Image or CompressedImage in RGB.

    The orientation that EXIF says of a JPEG does not count: calibrations are of the stored pixels.

    Raises:
        InputError: an encoding that does not say what the bytes mean, a wrong size, or a broken file.
    """
    data = _unpack(message) if hasattr(message, "encoding") else _decode(message)
    return Image(np.ascontiguousarray(data), stamp_of(message), message.header.frame_id)


def read_labels(message: Any) -> UInt8Array:
    """Return the labels of a sensor_msgs/Image, (H, W) uint8; only mono8 and 8UC1 carry labels.

    Raises:
        InputError: another encoding, or a wrong size.
    """
    if message.encoding not in ("mono8", "8UC1"):
        raise InputError(
            describe("label image encoding", expected="mono8 or 8UC1", found=repr(message.encoding))
        )
    return np.ascontiguousarray(_rows(message, 1)).reshape(message.height, message.width)


def _rows(message: Any, bytes_per_pixel: int) -> UInt8Array:
    """Return the bytes of the picture (H, W * bytes_per_pixel) without padding, a view."""
    if message.width == 0 or message.height == 0:
        raise InputError(
            describe("image size", expected="at least one pixel", found=f"{message.width} x {message.height}")
        )
    used = message.width * bytes_per_pixel
    if message.step < used:
        raise InputError(describe("image step", expected=f"at least {used} bytes", found=message.step))
    expected = message.height * message.step
    if len(message.data) != expected:
        raise InputError(
            describe("image data", expected=f"height * step = {expected} bytes", found=len(message.data))
        )
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)[:, :used]


def _unpack(message: Any) -> UInt8Array:
    size = BYTES_PER_PIXEL.get(message.encoding)
    if size is None:
        raise InputError(
            describe(
                "image encoding",
                expected=f"one of {', '.join(BYTES_PER_PIXEL)}",
                found=repr(message.encoding),
            )
        )
    rows = _rows(message, size)
    if message.encoding == "rgb8":
        return rows.reshape(message.height, message.width, 3)
    if size == 2 and message.width % 2:
        raise InputError(
            describe("image width", expected="an even number for YUV 4:2:2", found=message.width)
        )
    packed: Any = SimpleNamespace(
        height=message.height,
        width=message.width,
        encoding=message.encoding,
        is_bigendian=False,
        data=np.ascontiguousarray(rows),
    )
    return np.asarray(image_to_cvimage(packed, "rgb8"), np.uint8)


def _decode(message: Any) -> UInt8Array:
    width, height = check_compressed(message.data)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    picture = cv2.imdecode(np.frombuffer(message.data, np.uint8), flags)
    if picture is None or picture.shape != (height, width, 3):
        found = "nothing decodable" if picture is None else picture.shape
        raise InputError(describe("compressed image", expected=f"{width} x {height} pixels", found=found))
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
