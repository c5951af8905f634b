# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Messages as sensors send them, good ones and broken ones."""

from __future__ import annotations

import array

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header

from kestrel_nodes.stamps import stamp_message

START_NS = 1_700_000_000_000_000_000
MILLISECOND = 1_000_000

TYPES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 8}


def header(at_ms: int, frame_id: str = "lidar") -> Header:
    return Header(stamp=stamp_message(START_NS + at_ms * MILLISECOND), frame_id=frame_id)


def fill(message: Image | PointCloud2 | CompressedImage, data: bytes) -> None:
    message.data = array.array("B", data)


def cloud_of(table: NDArray[np.void], at_ms: int = 0, frame_id: str = "lidar") -> PointCloud2:
    """Return a cloud with the layout of a structured array (N,) or (H, W), of either byte order."""
    height, width = (1, len(table)) if table.ndim == 1 else table.shape
    assert table.dtype.names is not None
    fields = []
    big = False
    for name in table.dtype.names:
        kind, offset = table.dtype.fields[name][:2]
        base = kind.base
        big = big or base.byteorder == ">"
        count = int(np.prod(kind.shape)) if kind.shape else 1
        datatype = TYPES[base.str[1:]]
        fields.append(PointField(name=name, offset=offset, datatype=datatype, count=count))
    step = table.dtype.itemsize
    message = PointCloud2(
        header=header(at_ms, frame_id),
        height=height,
        width=width,
        fields=fields,
        is_bigendian=big,
        point_step=step,
        row_step=step * width,
    )
    fill(message, np.ascontiguousarray(table).tobytes())
    return message


def cloud(points: list[list[float]], at_ms: int = 0, frame_id: str = "lidar") -> PointCloud2:
    """Return an XYZI float32 cloud."""
    kind = np.dtype([(name, "<f4") for name in ("x", "y", "z", "intensity")])
    table = np.zeros(len(points), kind)
    for row, point in enumerate(points):
        table[row] = tuple(point)
    return cloud_of(table, at_ms, frame_id)


def timed_cloud(
    points: list[list[float]], times_s: list[float], at_ms: int = 0, frame_id: str = "lidar"
) -> PointCloud2:
    """Return a cloud of [x, y, z] with the time of each point after the stamp."""
    kind = np.dtype([(name, "<f4") for name in ("x", "y", "z", "intensity", "time")])
    table = np.zeros(len(points), kind)
    for row, (point, time_s) in enumerate(zip(points, times_s, strict=True)):
        table[row] = (*point, 0.5, time_s)
    return cloud_of(table, at_ms, frame_id)


def picture(height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """Return a smooth coloured picture (H, W, 3) RGB that JPEG changes little."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green, blue = columns * 255 // width, rows * 255 // height, np.full_like(rows, 90)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def raw_image(data: NDArray[np.uint8], encoding: str, at_ms: int = 0, frame_id: str = "camera") -> Image:
    """Return an unpadded image whose rows are ``data`` (H, W) or (H, W, C)."""
    height, width = data.shape[:2]
    message = Image(
        header=header(at_ms, frame_id),
        height=height,
        width=width,
        encoding=encoding,
        step=data[0].size,
    )
    fill(message, data.tobytes())
    return message


def jpeg(at_ms: int = 0, frame_id: str = "camera", size: tuple[int, int] = (48, 64)) -> CompressedImage:
    """Return a JPEG of `picture`."""
    encoded = cv2.imencode(".jpg", picture(*size)[..., ::-1])[1]
    message = CompressedImage(header=header(at_ms, frame_id), format="jpeg")
    fill(message, encoded.tobytes())
    return message
