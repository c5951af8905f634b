# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What is understood of a sensor_msgs/PointCloud2, by field name and type.

Drivers agree on x, y, z and on little else. What is read here: XYZI (float32 or float64, intensity of any
integer or float type, or `reflectivity`), with a beam index (`ring`, `channel`, ...) and a time per point
(`time`, `t`, `timestamp`, `time_stamp`, ...; seconds or nanoseconds, relative to the stamp or absolute). The
nodes and all that reads recordings have this reader alone: a score is of what a vehicle sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from kestrel.data.cloud_layout import (
    INTENSITY_NAMES,
    RING_NAMES,
    TIME_NAMES,
    PointCloud2,
    Structured,
    check_layout,
    structured,
)
from kestrel.data.messages import stamp_of
from kestrel.errors import InputError, describe
from kestrel.types import Float32Array, Int64Array, PointCloud, UInt16Array

MAX_COORDINATE_M: Final = 1e4
"""No LiDAR sees further; larger finite values (1e30) would overflow voxel indices."""

LONGEST_SWEEP_S: Final = 10.0
"""Times per point further from the stamp than this are in a unit or epoch that is not known here."""


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
        message: sensor_msgs/PointCloud2 of any layout, of rclpy or of `kestrel.data.bag`.
        capacity: at most so many points are kept, spread evenly over the cloud.
        intensity_max: the value that is intensity 1; 0: the largest of an integer type, 1 for floats.

    Raises:
        InputError: the message contradicts itself or has no coordinates.
    """
    stamp = stamp_of(message)
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
