# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The sweeps of a recording, read as the fusion node reads them on the vehicle."""

from __future__ import annotations

import sys
from pathlib import Path

from kestrel.data.bag import BagMessage
from kestrel.data.cloud_reader import DecodedCloud, read_cloud
from kestrel.data.own_vehicle import OwnVehicle
from kestrel.data.recorded_transforms import RecordedTransforms
from kestrel.data.rig_parameters import RigParameters
from kestrel.types import PointCloud


class SweepReader:
    """Decodes clouds; what was assumed or not understood is said once on standard error.

    Args:
        recording: its path, for what is said.
        rig: what is intensity 1.
    """

    def __init__(self, recording: str | Path, rig: RigParameters) -> None:
        self._recording, self._rig = recording, rig
        self._said: set[str] = set()

    def __call__(self, message: BagMessage) -> DecodedCloud:
        """Return the cloud of a message.

        Raises:
            InputError: it contradicts itself or has no coordinates.
        """
        decoded = read_cloud(message.decode(), intensity_max=self._rig.intensity_max)
        for note in decoded.notes:
            if note not in self._said:
                self._said.add(note)
                print(f"{self._recording}: {message.topic}: {note}", file=sys.stderr)
        return decoded


class RecordedSweeps:
    """Sweeps without the points of the vehicle itself, the motion within them undone.

    Args:
        recording: its path, for what is said.
        transforms: of the recording.
        rig: what is intensity 1, and where the vehicle is.
    """

    def __init__(self, recording: str | Path, transforms: RecordedTransforms, rig: RigParameters) -> None:
        self._read = SweepReader(recording, rig)
        self._transforms = transforms
        self._own = OwnVehicle(rig.own_vehicle_box_m) if rig.own_vehicle_box_m else None

    def __call__(self, message: BagMessage) -> PointCloud:
        """Return the sweep in a message, in the frame of its LiDAR.

        Raises:
            InputError: it cannot be read.
            CalibrationError: it is not known where its LiDAR sits.
        """
        cloud = self._read(message).cloud
        if self._own is not None:
            cloud = cloud.chosen(
                ~self._own.holds(cloud, self._transforms.mount(cloud.frame_id, cloud.stamp_ns))
            )
        return self._transforms.deskewed(cloud)
