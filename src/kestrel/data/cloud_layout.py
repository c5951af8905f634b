# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The layouts of sensor_msgs/PointCloud2: packed, padded or organised, of either byte order.

All of a layout is checked before any byte is read. Messages are read by their attributes: those of rclpy
serve as well as those of `kestrel.data.bag`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from kestrel.errors import InputError, describe

DATATYPES: Final[dict[int, str]] = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
"""Type codes of sensor_msgs/PointField as numpy types without byte order."""

INTENSITY_NAMES: Final = ("intensity", "intensities", "i", "reflectivity", "reflectance", "remission")
RING_NAMES: Final = ("ring", "channel", "line", "laser_id", "beam")
TIME_NAMES: Final = (
    "time",
    "t",
    "timestamp",
    "time_stamp",
    "time_offset",
    "offset_time",
    "point_time_offset",
)

Structured = NDArray[np.void]


class PointField(Protocol):
    """What is read of sensor_msgs/PointField."""

    name: str
    offset: int
    datatype: int
    count: int


class PointCloud2(Protocol):
    """What is read of sensor_msgs/PointCloud2."""

    header: Any
    height: int
    width: int
    fields: Sequence[Any]
    is_bigendian: bool
    point_step: int
    row_step: int
    data: Any


def check_layout(message: PointCloud2) -> None:
    """Raise InputError unless the fields, steps and length of ``message`` fit together."""
    step = message.point_step
    if step <= 0:
        raise InputError(describe("cloud point_step", expected="a positive size", found=step))
    for field in message.fields:
        _check_field(field, step)
    names = [field.name for field in message.fields]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(describe("cloud fields", expected="unique names", found=doubled))
    _check_overlap(message)
    if message.row_step < message.width * step:
        raise InputError(
            describe(
                "cloud row_step",
                expected=f"at least width * point_step = {message.width * step}",
                found=message.row_step,
            )
        )
    expected = message.height * message.row_step
    if len(message.data) != expected:
        raise InputError(
            describe(
                "cloud data", expected=f"height * row_step = {expected} bytes", found=f"{len(message.data)}"
            )
        )


def _check_field(field: PointField, step: int) -> None:
    if field.datatype not in DATATYPES:
        raise InputError(
            describe(f"cloud field {field.name!r}", expected="datatype 1 .. 8", found=field.datatype)
        )
    if field.count < 1:
        raise InputError(
            describe(f"cloud field {field.name!r}", expected="count of 1 or more", found=field.count)
        )
    if _end(field) > step:
        raise InputError(
            describe(
                f"cloud field {field.name!r}", expected=f"to end within point_step {step}", found=_end(field)
            )
        )


def _end(field: PointField) -> int:
    return int(field.offset + np.dtype(DATATYPES[field.datatype]).itemsize * field.count)


def _check_overlap(message: PointCloud2) -> None:
    """Two fields in the same bytes are a broken description, where one of them is read here."""
    read = {"x", "y", "z", *INTENSITY_NAMES, *RING_NAMES, *TIME_NAMES}
    ordered = sorted(message.fields, key=lambda field: int(field.offset))
    for before, after in pairwise(ordered):
        if after.offset < _end(before) and {before.name, after.name} & read:
            raise InputError(
                describe(
                    "cloud fields",
                    expected="fields that do not overlap",
                    found=f"{before.name} and {after.name}",
                )
            )


def structured(message: PointCloud2) -> Structured:
    """Return the points of a checked message as structured (height * width,), a view where possible."""
    order = ">" if message.is_bigendian else "<"
    dtype = np.dtype(
        {
            "names": [field.name for field in message.fields],
            "formats": [
                order + DATATYPES[field.datatype]
                if field.count == 1
                else (order + DATATYPES[field.datatype], (field.count,))
                for field in message.fields
            ],
            "offsets": [field.offset for field in message.fields],
            "itemsize": message.point_step,
        }
    )
    used = message.width * message.point_step
    raw = np.frombuffer(message.data, np.uint8)
    if message.row_step != used:
        raw = np.ascontiguousarray(raw.reshape(message.height, message.row_step)[:, :used]).reshape(-1)
    return raw.view(dtype)


def cloud_fields(message: PointCloud2) -> Structured:
    """Return the points of a message as structured (height * width,), in its order.

    Raises:
        InputError: the message contradicts itself.
    """
    check_layout(message)
    return structured(message)
