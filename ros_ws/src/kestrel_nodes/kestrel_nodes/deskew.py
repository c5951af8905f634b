# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Undoes the motion of the vehicle within a sweep: each point goes where it was at the stamp.

A sweep takes 50 to 100 ms, in which a car moves by metres. There is no ROS in this module.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from kestrel.data.trajectory import moved
from kestrel.data.transform_buffer import TransformBuffer, invert
from kestrel.errors import CalibrationError
from kestrel.types import Float64Array, PointCloud
from kestrel_nodes.health import Concern
from kestrel_nodes.stamps import NANOSECONDS

KNOTS: Final = 9
"""Poses over a sweep; linear motion between them errs by less than 1 mm at 1 rad/s and 50 m."""
SHORTEST_S: Final = 1e-4
"""A sweep within so short a time is a snapshot."""


@dataclass(frozen=True)
class Deskewed:
    """What became of a sweep: ``outcome`` in words, and why it could not be corrected."""

    outcome: str
    error: CalibrationError | None = None

    def report(self, concern: Concern) -> None:
        """Say it."""
        concern.set("deskew", self.outcome)
        text = None if self.error is None else f"the sweep is not deskewed: {self.error}"
        concern.check("deskew", text)


class Deskewer:
    """Corrects sweeps by the time of each point and the pose of their sensor in a frame that stands still.

    Args:
        transforms: where poses come from.
        fixed_frame: stands still while the vehicle moves (``odom``).
        enabled: otherwise sweeps stay as they are.
    """

    def __init__(self, transforms: TransformBuffer, fixed_frame: str, *, enabled: bool = True) -> None:
        self._transforms = transforms
        self._fixed_frame = fixed_frame
        self._enabled = enabled

    def __call__(self, cloud: PointCloud) -> tuple[PointCloud, Deskewed]:
        """Return ``cloud`` as if all of it had been measured at its stamp; as it is where that cannot be."""
        times = cloud.time_s
        if not self._enabled:
            return cloud, Deskewed("off")
        if times is None or not len(times):
            return cloud, Deskewed("no time per point")
        if float(np.abs(times).max()) < SHORTEST_S:
            return cloud, Deskewed("all points at once")
        try:
            return self._corrected(cloud, times.astype(np.float64)), Deskewed("on")
        except CalibrationError as error:
            return cloud, Deskewed("no odometry", error)

    def _corrected(self, cloud: PointCloud, times: Float64Array) -> PointCloud:
        first, last = float(times.min()), float(times.max())
        frames, stamp = (self._fixed_frame, cloud.frame_id), cloud.stamp_ns
        now = self._transforms.lookup(*frames, stamp)
        motions = [
            invert(now) @ self._transforms.lookup(*frames, stamp + round(knot * NANOSECONDS))
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
