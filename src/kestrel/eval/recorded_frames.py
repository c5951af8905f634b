# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Moments of a recording as the fusion node would hand them to its detector, without ROS.

Earlier sweeps are moved to where the vehicle is by the poses of the recording, cameras stand where they were
when they took their picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from kestrel.data.bag import BagMessage, BagReader
from kestrel.data.moment_messages import Key, WantedMoment, read_moments
from kestrel.data.recorded_sensors import CLOUD, RecordedCameras, camera_infos
from kestrel.data.recorded_sweeps import RecordedSweeps
from kestrel.data.recorded_transforms import RecordedTransforms
from kestrel.data.rig_parameters import ALL_THERE_IS, RigParameters
from kestrel.data.told_transforms import BASE
from kestrel.data.undistorter import Undistorter
from kestrel.eval.recording import Recording
from kestrel.pipelines.detector import Detector, chosen_sweeps
from kestrel.types import Calibration, Image, PointCloud, SensorFrame

OLDEST_NS: Final = 1_000_000_000
"""Age from which on earlier sweeps do not count, as in the fusion node."""


class RecordedFrames:
    """Frames of a recording for a detector.

    Args:
        recording: what it holds and when.
        stamps: of the moments.
        detector: which sweeps it wants.
        sensors: "lidar", "camera", or both; others take no part.
        rig: what the fusion node is told of the sensors.

    Attributes:
        stamps: of those moments at which a sensor has measured, sorted.
        took_part: by sensor ("lidar", each camera), in how many of the moments it has measured.
    """

    def __init__(
        self,
        recording: Recording,
        stamps: Sequence[int],
        detector: Detector,
        sensors: frozenset[str],
        rig: RigParameters = ALL_THERE_IS,
    ) -> None:
        self._recording, self._detector = recording, detector
        self._reader = BagReader(recording.path)
        self.transforms = RecordedTransforms(self._reader)
        stamps_of = {topic: {each.stamp_ns for each in sent} for topic, sent in recording.sent.items()}
        infos = camera_infos(self._reader) if "camera" in sensors else {}
        self._cameras = RecordedCameras(stamps_of, infos, self.transforms, rig)
        if "camera" in sensors:
            self._cameras.say_absent(recording.path)
            self._cameras.say_uncalibrated(recording.path)
        self._undistort = Undistorter()
        self._read_sweep = RecordedSweeps(recording.path, self.transforms, rig)
        self._sweeps = sorted(stamps_of.get(CLOUD, ())) if "lidar" in sensors else []
        wanted = (self._wanted(number, stamp) for number, stamp in enumerate(sorted(stamps)))
        self._moments = [moment for moment in wanted if moment.keys]
        self.stamps = [moment.stamp_ns for moment in self._moments]
        self.took_part = self._count(sensors)

    def _count(self, sensors: frozenset[str]) -> Counter[str]:
        """Return in how many moments each sensor takes part, also of those that never do."""
        counts = Counter[str]()
        if "lidar" in sensors:
            counts["lidar"] = sum(bool(moment.sweeps) for moment in self._moments)
        if "camera" in sensors:
            cameras = {*self._cameras.topics, *self._cameras.uncalibrated, *self._cameras.absent}
            counts.update(dict.fromkeys(sorted(cameras) or ("cameras",), 0))
            counts.update(name for moment in self._moments for name in moment.pictures)
        return counts

    def _wanted(self, number: int, stamp: int) -> WantedMoment:
        sweeps = [stamp] if stamp in self._sweeps else []
        if sweeps and self.transforms.vehicle_at(stamp) is not None:
            earlier = [
                at
                for at in reversed(self._sweeps)
                if stamp - OLDEST_NS <= at < stamp and self.transforms.vehicle_at(at) is not None
            ]
            chosen = chosen_sweeps(stamp, earlier, self._detector.sweeps, self._detector.sweep_s)
            sweeps += [earlier[index] for index in chosen]
        sample = self._recording.samples.get(stamp)
        pictures = self._cameras.keys(stamp, sample.pictures if sample is not None else None)
        return WantedMoment(number, stamp, tuple((CLOUD, at) for at in sweeps), pictures)

    def __len__(self) -> int:
        return len(self._moments)

    def __iter__(self) -> Iterator[SensorFrame]:
        """Yield the frames in the order of their stamps.

        Raises:
            InputError: a message that a frame needs is malformed, or cannot be read.
        """
        for moment, held in read_moments(self._reader, self._moments):
            yield self._frame(moment, held)

    def _frame(self, moment: WantedMoment, held: Mapping[Key, BagMessage]) -> SensorFrame:
        stamp = moment.stamp_ns
        clouds = [self._sweep(held[key], stamp, earlier=bool(n)) for n, key in enumerate(moment.sweeps)]
        images: dict[str, Image] = {}
        calibrations: dict[str, Calibration] = {}
        for name, key in moment.pictures.items():
            picture = self._cameras.picture(name, held[key], stamp)
            images[name], calibrations[name] = undistorted(
                picture.image, picture.calibration, self._undistort
            )
        return SensorFrame(
            stamp,
            BASE,
            clouds[0] if clouds else None,
            images,
            calibrations,
            tuple(clouds[1:]),
            self.transforms.vehicle_at(stamp),
        )

    def _sweep(self, message: BagMessage, stamp: int, *, earlier: bool) -> PointCloud:
        """Return a sweep in base_link at a stamp, an earlier one without what is too close to its sensor."""
        cloud = self._read_sweep(message)
        if earlier:
            close = (np.abs(cloud.points[:, :2]) < self._detector.remove_close_m).all(axis=1)
            cloud = cloud.chosen(np.asarray(~close))
        return self.transforms.placed(cloud, stamp)


def undistorted(image: Image, calibration: Calibration, undistort: Undistorter) -> tuple[Image, Calibration]:
    """Return a picture as a camera without lens distortion takes it, of the same matrix and size.

    Raises:
        CalibrationError: the picture does not have the size that was calibrated.
    """
    return replace(image, data=undistort(image.frame_id, image.data, calibration)), calibration.pinhole
