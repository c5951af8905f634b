# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Deskews sweeps by the transforms of a node, and says what became of them; without ROS."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kestrel.data.deskew import SHORTEST_S, deskewed
from kestrel.data.transform_buffer import TransformBuffer
from kestrel.errors import CalibrationError
from kestrel.types import PointCloud
from kestrel_nodes.health import Concern


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
            frames = self._fixed_frame, cloud.frame_id
            return deskewed(cloud, lambda stamp: self._transforms.lookup(*frames, stamp)), Deskewed("on")
        except CalibrationError as error:
            return cloud, Deskewed("no odometry", error)
