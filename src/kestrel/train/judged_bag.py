# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Recorded sweeps with true boxes: what real recordings judge networks by that were trained on simulation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kestrel.classes import DETECTION_CLASSES
from kestrel.data.bag import BagReader
from kestrel.data.messages import stamp_of, transform_from_message
from kestrel.data.perception_messages import DONT_CARE, boxes_from_message
from kestrel.data.recorded_sweeps import SweepReader
from kestrel.data.rig_parameters import ALL_THERE_IS
from kestrel.errors import InputError, describe
from kestrel.types import Boxes3D, Float32Array, PointCloud

GROUPS: Final = {
    "vehicle": ("car", "truck", "bus", "trailer", "construction_vehicle"),
    "cycle": ("bicycle", "motorcycle"),
    "pedestrian": ("pedestrian",),
}
"""What counts as the same thing: a van that is called a truck is no mistake here."""

JUDGED_RANGE_M: Final = 40.0
"""Farther from base_link nothing is a mistake: labels of real recordings end somewhere."""


@dataclass(frozen=True)
class JudgedSweep:
    """A sweep in base_link and the true boxes of its moment, among them regions of class DONT_CARE."""

    cloud: PointCloud
    truth: Boxes3D

    @property
    def names(self) -> NDArray[np.str_]:
        """The class of every true box."""
        return np.array([self.truth.class_names[index] for index in self.truth.label], np.str_)

    def known(self, points: Float32Array) -> NDArray[np.bool_]:
        """Return at which points (P, 3) in base_link the truth says what is there, (P,)."""
        unknown = self.truth.chosen(self.names == DONT_CARE).contain(points).any(0)
        return ~unknown & (np.hypot(points[:, 0], points[:, 1]) < JUDGED_RANGE_M)


def judged_sweeps(bag: Path) -> list[JudgedSweep]:
    """Return the sweeps of a bag that have true boxes, in the order of time.

    Raises:
        InputError: there are none.
    """
    sweeps: dict[int, PointCloud] = {}
    truth: dict[int, Boxes3D] = {}
    base_from_lidar, read = np.eye(4), SweepReader(bag, ALL_THERE_IS)
    for message in BagReader(bag).messages(["/tf_static", "/lidar/points", "/truth/objects"]):
        decoded = message.decode()
        if message.topic == "/tf_static":
            for transform in decoded.transforms:
                if transform.child_frame_id == "lidar":
                    base_from_lidar = transform_from_message(transform.transform)
        elif message.topic == "/lidar/points":
            sweeps[stamp_of(decoded)] = read(message).cloud
        else:
            truth[stamp_of(decoded)] = boxes_from_message(decoded, DETECTION_CLASSES)
    both = sorted(sweeps.keys() & truth.keys())
    if not both:
        raise InputError(describe(f"bag {bag}", expected="/lidar/points with /truth/objects", found="none"))
    return [JudgedSweep(sweeps[stamp].moved(base_from_lidar, "base_link"), truth[stamp]) for stamp in both]
