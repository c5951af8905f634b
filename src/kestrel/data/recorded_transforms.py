# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Where sensors sit and where the vehicle was, as a recording tells it."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from kestrel.data.bag import BagReader
from kestrel.data.messages import new, stamp_of, transform_from_message, vector3
from kestrel.data.trajectory import Trajectory
from kestrel.errors import CalibrationError, describe
from kestrel.types import Float64Array, PointCloud

BASE: Final = "base_link"
ODOM: Final = "odom"
ODOMETRY: Final = "/odometry"
TOPICS: Final = ("/tf", "/tf_static", ODOMETRY)

KNOTS: Final = 9
"""Poses over a sweep; between them the vehicle moves evenly."""


class RecordedTransforms:
    """All transforms of a recording.

    Poses are those of base_link in /tf, or else those of /odometry.

    Attributes:
        trajectory: of base_link in a frame that stands still; empty where nobody knows.
    """

    def __init__(self, reader: BagReader) -> None:
        self._mounts: dict[str, tuple[str, Float64Array]] = {}
        by_tf: dict[int, Float64Array] = {}
        by_odometry: dict[int, Float64Array] = {}
        for message in reader.messages([topic for topic in TOPICS if topic in reader.topics]):
            decoded = message.decode()
            if message.topic == ODOMETRY:
                if decoded.child_frame_id == BASE:
                    by_odometry[stamp_of(decoded)] = _pose(decoded.pose.pose)
                continue
            for item in decoded.transforms:
                matrix = transform_from_message(item.transform)
                if item.child_frame_id == BASE:
                    by_tf[stamp_of(item)] = matrix
                else:
                    self._mounts[item.child_frame_id] = item.header.frame_id, matrix
        self.trajectory = Trajectory(by_tf or by_odometry)

    def mount(self, frame: str, parent: str = BASE) -> Float64Array:
        """Return parent_from_frame, (4, 4), as a chain of fixed transforms tells it.

        Raises:
            CalibrationError: there is none.
        """
        matrix, at = np.eye(4), frame
        for _ in range(len(self._mounts) + 1):
            if at == parent:
                return matrix
            if at not in self._mounts:
                break
            at, step = self._mounts[at]
            matrix = step @ matrix
        expected = "one in /tf_static or /tf"
        raise CalibrationError(describe(f"transform {parent} <- {frame}", expected=expected, found="none"))

    def pose(self, stamp_ns: int, frame: str) -> Float64Array:
        """Return where the vehicle is at a stamp in a frame that stands still, frame_from_base (4, 4).

        Raises:
            CalibrationError: nobody knows.
        """
        moving = self.trajectory.at(stamp_ns)
        if moving is None:
            found = "none" if len(self.trajectory) == 0 else "only others"
            raise CalibrationError(describe(f"pose of {BASE} at {stamp_ns} ns", expected="one", found=found))
        return self.mount(ODOM, frame) @ moving

    def deskewed(self, cloud: PointCloud) -> PointCloud:
        """Return a sweep, in its own frame, as if all of it had been measured at its stamp.

        A snapshot, or one during which nobody knows how the vehicle moved, stays as it is.
        """
        if cloud.time_s is None or not len(cloud):
            return cloud
        times = cloud.time_s.astype(np.float64)
        first, last = (cloud.stamp_ns + round(time * 1e9) for time in (times.min(), times.max()))
        if first == last or self.trajectory.at(first) is None or self.trajectory.at(last) is None:
            return cloud
        mount = self.mount(cloud.frame_id)
        base_from_now = np.linalg.inv(mount)
        place = (times * 1e9 + cloud.stamp_ns - first) / (last - first) * (KNOTS - 1)
        points = np.zeros((len(cloud), 3))
        for number, knot in enumerate(np.linspace(first, last, KNOTS)):
            motion = base_from_now @ self.trajectory.motion(cloud.stamp_ns, round(knot)) @ mount
            share = (1 - np.abs(place - number)).clip(0)[:, None]
            points += share * (cloud.points[:, :3] @ motion[:3, :3].T + motion[:3, 3])
        moved = np.concatenate((points, cloud.points[:, 3:]), 1).astype(np.float32)
        return PointCloud(moved, cloud.stamp_ns, cloud.frame_id, cloud.ring, cloud.time_s)

    def placed(self, cloud: PointCloud, stamp_ns: int) -> PointCloud:
        """Return a sweep in base_link where the vehicle is at a stamp; its own stamp stays."""
        motion = self.trajectory.motion(stamp_ns, cloud.stamp_ns) @ self.mount(cloud.frame_id)
        return cloud.moved(motion, BASE)


def _pose(pose: Any) -> Float64Array:
    place = vector3(pose.position.x, pose.position.y, pose.position.z)
    return transform_from_message(
        new("geometry_msgs/msg/Transform", translation=place, rotation=pose.orientation)
    )
