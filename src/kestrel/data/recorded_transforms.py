# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Where sensors sit and where the vehicle was, as a recording tells it, looked up as the nodes do."""

from __future__ import annotations

from typing import Final

import numpy as np

from kestrel.data.bag import BagReader
from kestrel.data.deskew import deskewed
from kestrel.data.messages import stamp_of
from kestrel.data.told_transforms import BASE, ODOM, TellsOdometry, TellsTransforms
from kestrel.data.transform_buffer import TransformBuffer, invert
from kestrel.errors import CalibrationError, describe
from kestrel.types import Float64Array, PointCloud

ODOMETRY: Final = "/odometry"
STATIC: Final = "/tf_static"
TOPICS: Final = ("/tf", STATIC, ODOMETRY)

FOREVER_S: Final = 1e12
"""A recording is kept whole, and time that is set back in it takes nothing away."""


class RecordedTransforms:
    """All transforms of a recording.

    The way of the vehicle is that of base_link in /tf, through all frames between. Where nothing moves there
    it is that of /odometry; where that is missing as well and base_link is fixed in odom, the vehicle stands.

    Attributes:
        fixed_frame: the frame in which the way of the vehicle is told; None where nobody knows it.
    """

    def __init__(self, reader: BagReader) -> None:
        told, odometry = TellsTransforms(), TellsOdometry()
        for message in reader.messages([topic for topic in TOPICS if topic in reader.topics]):
            decoded = message.decode()
            if message.topic == ODOMETRY:
                odometry.add(decoded, stamp_of(decoded))
                continue
            for item in decoded.transforms:
                told.add(item, stamp_of(item), static=message.topic == STATIC)
        self._buffer = TransformBuffer(history_s=FOREVER_S, jump_back_s=FOREVER_S)
        chain = told.fill(self._buffer)
        self.fixed_frame = chain.moves_in
        if self.fixed_frame is None and odometry.fill(self._buffer, chain):
            self.fixed_frame = odometry.frame
        elif self.fixed_frame is None and ODOM in chain.frames:
            self.fixed_frame = ODOM

    def mount(self, frame: str, stamp_ns: int) -> Float64Array:
        """Return base_from_frame, (4, 4), at a stamp.

        Raises:
            CalibrationError: there is none, or it moves and is not known then.
        """
        return np.eye(4) if frame.lstrip("/") == BASE else self._buffer.lookup(BASE, frame, stamp_ns)

    def pose(self, stamp_ns: int, frame: str) -> Float64Array:
        """Return where the vehicle is at a stamp in a frame that stands still, frame_from_base (4, 4).

        Raises:
            CalibrationError: nobody knows.
        """
        if self.fixed_frame is None:
            expected = "a transform or /odometry around that time"
            raise CalibrationError(
                describe(f"pose of {BASE} at {stamp_ns} ns", expected=expected, found="none")
            )
        return self._buffer.lookup(frame, BASE, stamp_ns)

    def vehicle_at(self, stamp_ns: int) -> Float64Array | None:
        """Return fixed_from_base (4, 4) at a stamp, None where nobody knows."""
        try:
            return None if self.fixed_frame is None else self.pose(stamp_ns, self.fixed_frame)
        except CalibrationError:
            return None

    def motion(self, now_ns: int, then_ns: int) -> Float64Array:
        """Return where the vehicle was at one stamp as of where it is at another, (4, 4).

        Where either is not known it counts as standing: the identity.
        """
        now, then = self.vehicle_at(now_ns), self.vehicle_at(then_ns)
        return np.eye(4) if now is None or then is None else invert(now) @ then

    def deskewed(self, cloud: PointCloud) -> PointCloud:
        """Return a sweep, in its own frame, as if all of it had been measured at its stamp.

        A snapshot, or one during which nobody knows how its sensor moved, stays as it is.
        """
        fixed = self.fixed_frame
        if fixed is None:
            return cloud
        try:
            return deskewed(cloud, lambda stamp: self._buffer.lookup(fixed, cloud.frame_id, stamp))
        except CalibrationError:
            return cloud

    def placed(self, cloud: PointCloud, stamp_ns: int) -> PointCloud:
        """Return a sweep in base_link where the vehicle is at a stamp; its own stamp stays.

        Raises:
            CalibrationError: it is not known where its sensor sits.
        """
        motion = self.motion(stamp_ns, cloud.stamp_ns) @ self.mount(cloud.frame_id, cloud.stamp_ns)
        return cloud.moved(motion, BASE)
