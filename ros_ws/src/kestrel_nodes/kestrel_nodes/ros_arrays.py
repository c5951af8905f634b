# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""From arrays to ROS messages: point clouds and images out; `kestrel.data` reads those that come in.

By numpy on every installation: cv_bridge of a full ROS 2 Jazzy is built against NumPy 1, and with NumPy 2 its
conversions end the process.
"""

from __future__ import annotations

import array
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import Image as ImageMessage
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from kestrel.data.cloud_layout import structured
from kestrel.types import UInt8Array


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
