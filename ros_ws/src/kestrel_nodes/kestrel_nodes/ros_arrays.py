# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The seam between ROS messages and arrays: point clouds and images in, point clouds and images out.

By numpy and rosbags-image on every installation: cv_bridge of a full ROS 2 Jazzy is built against NumPy 1,
and with NumPy 2 its conversions end the process. Every message is checked here first, because none of these
survives a malformed one; all that is wrong raises InputError.
"""

from __future__ import annotations

import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from rosbags.image import image_to_cvimage
from sensor_msgs.msg import CompressedImage, PointCloud2, PointField
from sensor_msgs.msg import Image as ImageMessage
from std_msgs.msg import Header

from kestrel.errors import InputError, describe
from kestrel.types import Image, Int64Array, PointCloud, UInt8Array
from kestrel_nodes.cloud_layout import check_layout, columns, structured
from kestrel_nodes.picture_header import check_compressed
from kestrel_nodes.stamps import stamp_ns

MAX_COORDINATE_M: Final = 1e4
"""No LiDAR sees further; larger finite values (1e30) would overflow voxel indices."""

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


@dataclass(frozen=True)
class DecodedCloud:
    """A point cloud and what became of the points of its message.

    cloud: the usable points, in the order of the message.
    kept: (N,) int64 their indices in the message. total: how many points the message had.
    invalid: points with a NaN or infinite coordinate. far: beyond MAX_COORDINATE_M.
    clipped: points beyond the capacity, which were left out. notes: what was assumed or not understood.
    """

    cloud: PointCloud
    kept: Int64Array
    total: int
    invalid: int
    far: int
    clipped: int
    notes: tuple[str, ...]


def read_cloud(
    message: PointCloud2, *, capacity: int | None = None, intensity_max: float = 0.0
) -> DecodedCloud:
    """Return the points of ``message``; NaN and Inf are legal in ROS (REP-117) and are filtered and counted.

    Args:
        message: of any layout that kestrel_nodes.cloud_layout understands.
        capacity: at most so many points are kept, spread evenly over the cloud.
        intensity_max: the value that is intensity 1; 0: the largest of an integer type, 1 for floats.

    Raises:
        InputError: the message contradicts itself or has no coordinates.
    """
    stamp = stamp_ns(message.header.stamp)
    if message.width * message.height == 0:
        empty = PointCloud(np.empty((0, 4), np.float32), stamp, message.header.frame_id)
        return DecodedCloud(empty, np.empty(0, np.int64), 0, 0, 0, 0, ())
    check_layout(message)
    read = columns(structured(message), stamp_ns=stamp, intensity_max=intensity_max)
    # In float64 a sum of float32 values is finite if and only if all of them are; this is the fastest test.
    finite = np.isfinite(read.points.sum(axis=1, dtype=np.float64))
    if read.time_s is not None:
        finite &= np.isfinite(read.time_s)
    x, y, z = (np.abs(read.points[:, axis]) <= MAX_COORDINATE_M for axis in range(3))
    kept = np.flatnonzero(finite & x & y & z)
    usable = len(kept)
    if capacity is not None and usable > capacity:
        kept = kept[np.linspace(0, usable - 1, capacity).astype(np.int64)]
    chosen: Any = slice(None) if len(kept) == len(read.points) else kept
    cloud = PointCloud(
        points=read.points[chosen],
        stamp_ns=stamp,
        frame_id=message.header.frame_id,
        ring=None if read.ring is None else read.ring[chosen],
        time_s=None if read.time_s is None else read.time_s[chosen],
    )
    total = len(read.points)
    valid = int(finite.sum())
    return DecodedCloud(
        cloud=cloud,
        kept=kept,
        total=total,
        invalid=total - valid,
        far=valid - usable,
        clipped=usable - len(kept),
        notes=read.notes,
    )


def read_image(message: ImageMessage | CompressedImage) -> Image:
    """Return the picture of ``message`` in RGB.

    Raises:
        InputError: an encoding that does not say what the bytes mean, a wrong size, or a broken file.
    """
    data = _decode(message) if isinstance(message, CompressedImage) else _unpack(message)
    return Image(np.ascontiguousarray(data), stamp_ns(message.header.stamp), message.header.frame_id)


def read_labels(message: ImageMessage) -> UInt8Array:
    """Return a label image (H, W) uint8; only mono8 and 8UC1 carry labels.

    Raises:
        InputError: another encoding, or a wrong size.
    """
    if message.encoding not in ("mono8", "8UC1"):
        raise InputError(
            describe("label image encoding", expected="mono8 or 8UC1", found=repr(message.encoding))
        )
    return np.ascontiguousarray(_rows(message, 1)).reshape(message.height, message.width)


def _rows(message: ImageMessage, bytes_per_pixel: int) -> UInt8Array:
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


def _unpack(message: ImageMessage) -> UInt8Array:
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
    packed = ImageMessage(
        header=message.header,
        height=message.height,
        width=message.width,
        encoding=message.encoding,
        step=message.width * size,
    )
    packed.data = byte_array(rows)
    return np.asarray(image_to_cvimage(packed, "rgb8"), np.uint8)


def _decode(message: CompressedImage) -> UInt8Array:
    width, height = check_compressed(message.data)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    picture = cv2.imdecode(np.frombuffer(message.data, np.uint8), flags)
    if picture is None or picture.shape != (height, width, 3):
        found = "nothing decodable" if picture is None else picture.shape
        raise InputError(describe("compressed image", expected=f"{width} x {height} pixels", found=found))
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


def byte_array(values: NDArray[Any]) -> array.array[int]:
    """Return the bytes of ``values`` as the one type that fills ``uint8[]`` without a check per element."""
    filled = array.array("B")
    filled.frombytes(np.ascontiguousarray(values).data.cast("B"))
    return filled


def image_message(data: UInt8Array, header: Header) -> ImageMessage:
    """Return a picture (H, W, 3) as rgb8 or labels (H, W) as mono8."""
    height, width = data.shape[:2]
    encoding, channels = ("rgb8", 3) if data.ndim == 3 else ("mono8", 1)
    message = ImageMessage(
        header=header, height=height, width=width, encoding=encoding, step=width * channels
    )
    message.data = byte_array(data)
    return message


FIELD_TYPES: Final = {np.dtype(np.uint8): PointField.UINT8, np.dtype(np.float32): PointField.FLOAT32}


def cloud_message(values: Sequence[tuple[str, NDArray[Any]]], header: Header) -> PointCloud2:
    """Return a packed cloud with one field per named column, each (N,) uint8 or float32."""
    table = np.empty(len(values[0][1]), np.dtype([(name, column.dtype) for name, column in values]))
    fields = []
    for name, column in values:
        table[name] = column
        offset = table.dtype.fields[name][1]  # type: ignore[index]
        fields.append(PointField(name=name, offset=offset, datatype=FIELD_TYPES[column.dtype], count=1))
    step = table.dtype.itemsize
    message = PointCloud2(
        header=header,
        height=1,
        width=len(table),
        fields=fields,
        is_bigendian=False,
        point_step=step,
        row_step=step * len(table),
        is_dense=all(bool(np.isfinite(column).all()) for name, column in values if name in ("x", "y", "z")),
    )
    message.data = byte_array(table.view(np.uint8) if len(table) else np.empty(0, np.uint8))
    return message


def finite_points(message: PointCloud2) -> NDArray[np.bool_]:
    """Return which points of a checked ``message`` have finite coordinates, (N,)."""
    table = structured(message)
    return np.isfinite(table["x"]) & np.isfinite(table["y"]) & np.isfinite(table["z"])


def chosen_points(message: PointCloud2, stays: NDArray[np.bool_]) -> PointCloud2:
    """Return the points of a checked ``message`` for which ``stays`` (N,) holds, every field as it is.

    The answer is one row without padding between rows; fields, byte order and point_step are kept.
    """
    step = message.point_step
    width = int(stays.sum())
    result = PointCloud2(
        header=message.header,
        height=1,
        width=width,
        fields=message.fields,
        is_bigendian=message.is_bigendian,
        point_step=step,
        row_step=step * width,
        is_dense=True,
    )
    if width:
        rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.row_step)
        points = rows[:, : message.width * step].reshape(-1, step)
        result.data = byte_array(points[stays])
    return result
