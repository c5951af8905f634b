# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Undoes the motion of the vehicle within a sweep, which takes 50 to 100 ms: metres of a car's way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from kestrel.data.trajectory import moved
from kestrel.data.transform_buffer import invert
from kestrel.types import Float64Array, PointCloud

KNOTS: Final = 9
"""Poses over a sweep; linear motion between them errs by less than 1 mm at 1 rad/s and 50 m."""
SHORTEST_S: Final = 1e-4
"""A sweep within so short a time is a snapshot."""


def deskewed(cloud: PointCloud, pose_at: Callable[[int], Float64Array]) -> PointCloud:
    """Return a sweep, in the frame of its sensor, as if all of it had been measured at its stamp.

    A snapshot, or a sweep without a time of each point, stays as it is.

    Args:
        cloud: the sweep.
        pose_at: where its sensor is at a stamp in ns, fixed_from_sensor (4, 4).
    """
    if cloud.time_s is None or not len(cloud) or float(np.abs(cloud.time_s).max()) < SHORTEST_S:
        return cloud
    times = cloud.time_s.astype(np.float64)
    first, last = float(times.min()), float(times.max())
    stamp_from_fixed = invert(pose_at(cloud.stamp_ns))
    motions = [
        stamp_from_fixed @ pose_at(cloud.stamp_ns + round(knot * 1e9))
        for knot in np.linspace(first, last, KNOTS)
    ]
    place = (times - first) / max(last - first, SHORTEST_S) * (KNOTS - 1)
    before = np.minimum(place.astype(np.int8), KNOTS - 2)
    share = (place - before).astype(np.float32)[:, None]
    points = np.empty_like(cloud.points)
    # A point between two knots is moved by both, and lies between: a motion for each point costs more.
    order = np.argsort(before, kind="stable")
    for knot, rows in enumerate(np.split(order, np.searchsorted(before[order], range(1, KNOTS - 1)))):
        begin, end = (moved(cloud.points[rows], motion) for motion in motions[knot : knot + 2])
        points[rows] = begin + share[rows] * (end - begin)
    return replace(cloud, points=points)
