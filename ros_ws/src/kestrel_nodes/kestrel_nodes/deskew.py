# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Undoes the motion of the vehicle within a sweep: each point goes where it was at the stamp.

A sweep takes 50 to 100 ms, in which a car moves by metres. There is no ROS in this module.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from kestrel.errors import CalibrationError
from kestrel.types import Float64Array, PointCloud
from kestrel_nodes.health import Concern
from kestrel_nodes.stamps import NANOSECONDS
from kestrel_nodes.tf_buffer import TransformBuffer, invert, moved

KNOTS: Final = 9
"""Poses over a sweep; linear motion between them errs by less than 1 mm at 1 rad/s and 50 m."""
SHORTEST_S: Final = 1e-4
"""A sweep within so short a time is a snapshot."""


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
        self.error: CalibrationError | None = None
        """Why the last sweep could not be corrected."""
        self.outcome = "no sweep yet"

    def __call__(self, cloud: PointCloud) -> PointCloud:
        """Return ``cloud`` as if all of it had been measured at its stamp; as it is where that cannot be."""
        self.error = None
        times = cloud.time_s
        if not self._enabled:
            self.outcome = "off"
        elif times is None or not len(times):
            self.outcome = "no time per point"
        elif float(np.abs(times).max()) < SHORTEST_S:
            self.outcome = "all points at once"
        else:
            try:
                corrected = self._corrected(cloud, times.astype(np.float64))
            except CalibrationError as error:
                self.error, self.outcome = error, "no odometry"
            else:
                self.outcome = "on"
                return corrected
        return cloud

    def report(self, concern: Concern) -> None:
        """Say what became of the last sweep."""
        concern.set("deskew", self.outcome)
        text = None if self.error is None else f"motion within the sweep is not undone: {self.error}"
        concern.check("deskew", text)

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
