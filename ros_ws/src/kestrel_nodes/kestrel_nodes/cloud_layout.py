# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The layouts of sensor_msgs/PointCloud2: checked before any byte is read, understood by field name and type.

Drivers agree on x, y, z and on little else. What is read here: XYZI (float32 or float64, intensity of any
integer or float type, or `reflectivity`), with a beam index (`ring`, `channel`, ...) and a time per point
(`time`, `t`, `timestamp`, `time_stamp`, ...; seconds or nanoseconds, relative to the stamp or absolute),
packed, padded or organised, of either byte order. There is no ROS in this module; messages are read by their
attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from kestrel.errors import InputError, describe
from kestrel.types import Float32Array, UInt16Array

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

LONGEST_SWEEP_S: Final = 10.0
"""Times per point further from the stamp than this are in a unit or epoch that is not known here."""

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


@dataclass(frozen=True)
class Columns:
    """The columns of a cloud before points are dropped: points (N, 4) float32 [x, y, z, intensity]."""

    points: Float32Array
    ring: UInt16Array | None
    time_s: Float32Array | None
    notes: tuple[str, ...]


def columns(table: Structured, *, stamp_ns: int, intensity_max: float) -> Columns:
    """Return what is understood of the structured points ``table``.

    Args:
        table: (N,) from `structured`.
        stamp_ns: what the times per point are made relative to.
        intensity_max: the value that is intensity 1; 0: the largest of an integer type, 1 for floats.

    Raises:
        InputError: x, y or z is missing or not a single float.
    """
    names = table.dtype.names or ()
    for axis in ("x", "y", "z"):
        if axis not in names or table.dtype[axis].kind != "f":
            found = table.dtype[axis] if axis in names else f"fields {', '.join(names) or 'none'}"
            raise InputError(describe(f"cloud field {axis!r}", expected="float32 or float64", found=found))
    points = np.empty((len(table), 4), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for index, axis in enumerate(("x", "y", "z")):
            points[:, index] = table[axis]
        notes = _fill_intensity(points, table, intensity_max)
    ring = _first(names, RING_NAMES)
    beams = None if ring is None or table.dtype[ring].kind not in "ui" else table[ring].astype(np.uint16)
    time_s, note = _relative_time(table, _first(names, TIME_NAMES), stamp_ns)
    return Columns(points, beams, time_s, (*notes, *note))


def _first(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in names}
    return next((lower[name] for name in wanted if name in lower), None)


def _fill_intensity(points: Float32Array, table: Structured, intensity_max: float) -> tuple[str, ...]:
    name = _first(table.dtype.names or (), INTENSITY_NAMES)
    if name is None or table.dtype[name].shape:
        points[:, 3] = 0.0
        return ("no intensity field: 0 is used",)
    kind = table.dtype[name]
    full = intensity_max or (float(np.iinfo(kind).max) if kind.kind in "ui" else 1.0)
    points[:, 3] = table[name]
    points[:, 3] /= np.float32(full)
    beyond = bool((points[:, 3] > 1.0).any())
    np.clip(points[:, 3], 0.0, 1.0, out=points[:, 3])
    return (f"intensity above {full:g} is clipped: set intensity_max",) if beyond else ()


def _relative_time(
    table: Structured, name: str | None, stamp_ns: int
) -> tuple[Float32Array | None, tuple[str, ...]]:
    """Return seconds relative to the stamp.

    Integers (32 bits at most) count nanoseconds from the stamp; floats are seconds or, absolute, nanoseconds.
    """
    if name is None or not len(table) or table.dtype[name].shape:
        return None, ()
    values = table[name]
    with np.errstate(invalid="ignore", over="ignore"):
        magnitude = np.abs(values if values.dtype.kind == "f" else values.astype(np.float64))
        largest = float(magnitude.max(where=np.isfinite(magnitude), initial=0.0))
        if values.dtype.kind in "ui":
            relative = values * 1e-9
        elif largest > 1e15:
            relative = (values - float(stamp_ns)) * 1e-9
        elif largest > 1e8:
            relative = values.astype(np.float64) - stamp_ns * 1e-9
        else:
            relative = values
        distance = np.abs(relative)
        usable = distance.max(where=np.isfinite(distance), initial=0.0) <= LONGEST_SWEEP_S
    if not usable:
        return None, (f"field {name!r} is not a time near the stamp: not used",)
    return np.ascontiguousarray(relative, np.float32), ()
