# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Moments of a recording as the fusion node would hand them to its detector, without ROS.

Earlier sweeps are moved to where the vehicle is by the poses of the recording, cameras stand where they were
when they took their picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import cv2
import numpy as np

from kestrel.data.bag import BagMessage, BagReader
from kestrel.data.moment_messages import PICTURE_NS, Key, WantedMoment, nearest, read_moments
from kestrel.data.recorded_transforms import BASE, RecordedTransforms
from kestrel.data.sensor_messages import calibration_from_message, cloud_from_message, image_from_message
from kestrel.eval.recording import Recording
from kestrel.eval.scene import CAMERA, CLOUD
from kestrel.pipelines.detector import Detector, chosen_sweeps
from kestrel.types import Calibration, Float64Array, Image, PointCloud, SensorFrame

OLDEST_NS: Final = 1_000_000_000
"""Age from which on earlier sweeps do not count, as in the fusion node."""


class RecordedFrames:
    """Frames of a recording for a detector.

    Args:
        recording: what it holds and when.
        stamps: of the moments.
        detector: which sweeps it wants.
        sensors: "lidar", "camera", or both; others take no part.

    Attributes:
        stamps: of those moments at which a sensor has measured, sorted.
    """

    def __init__(
        self, recording: Recording, stamps: Sequence[int], detector: Detector, sensors: frozenset[str]
    ) -> None:
        self._recording, self._detector = recording, detector
        self._reader = BagReader(recording.path)
        self.transforms = RecordedTransforms(self._reader)
        self._infos = self._read_infos() if "camera" in sensors else {}
        self._sweeps = self._stamps_of(CLOUD) if "lidar" in sensors else []
        self._image_topics = self._find_cameras()
        self._pictures = {name: self._stamps_of(topic) for name, topic in self._image_topics.items()}
        wanted = (self._wanted(number, stamp) for number, stamp in enumerate(sorted(stamps)))
        self._moments = [moment for moment in wanted if moment.keys]
        self.stamps = [moment.stamp_ns for moment in self._moments]

    def _read_infos(self) -> dict[str, Any]:
        """Return the first calibration of every camera."""
        topics = {
            topic: found["name"]
            for topic in self._reader.topics
            if (found := CAMERA.fullmatch(topic)) and found["kind"] == "camera_info"
        }
        infos: dict[str, Any] = {}
        for message in self._reader.messages(list(topics)) if topics else ():
            infos.setdefault(topics[message.topic], message.decode())
            if len(infos) == len(topics):
                break
        return infos

    def _stamps_of(self, topic: str) -> list[int]:
        return sorted({source.stamp_ns for source in self._recording.sent.get(topic, {})})

    def _find_cameras(self) -> dict[str, str]:
        """Return the topic of the pictures of every camera whose calibration is known."""
        found: dict[str, str] = {}
        for topic in sorted(self._recording.sent):  # a compressed topic comes later, and is preferred
            camera = CAMERA.fullmatch(topic)
            if camera and camera["name"] in self._infos:
                found[camera["name"]] = topic
        return found

    def _wanted(self, number: int, stamp: int) -> WantedMoment:
        sweeps = [stamp] if stamp in self._sweeps else []
        if sweeps and self.transforms.trajectory.at(stamp) is not None:
            earlier = [
                at
                for at in reversed(self._sweeps)
                if stamp - OLDEST_NS <= at < stamp and self.transforms.trajectory.at(at) is not None
            ]
            chosen = chosen_sweeps(stamp, earlier, self._detector.sweeps, self._detector.sweep_s)
            sweeps += [earlier[index] for index in chosen]
        sample = self._recording.samples.get(stamp)
        pictures: dict[str, Key] = {}
        for name, topic in self._image_topics.items():
            at = sample.pictures.get(name) if sample is not None else None
            if at not in self._pictures[name]:  # nor need a recording hold every picture of its samples
                at = nearest(self._pictures[name], stamp, PICTURE_NS)
            if at is not None and abs(at - stamp) <= PICTURE_NS:
                pictures[name] = topic, at
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
            image = image_from_message(held[key].decode())
            info = self._infos[name]
            moved = self.transforms.trajectory.motion(stamp, image.stamp_ns)
            mount: Float64Array = moved @ self.transforms.mount(info.header.frame_id)
            images[name], calibrations[name] = undistorted(image, calibration_from_message(info, mount))
        return SensorFrame(
            stamp,
            BASE,
            clouds[0] if clouds else None,
            images,
            calibrations,
            tuple(clouds[1:]),
            self.transforms.trajectory.at(stamp),
        )

    def _sweep(self, message: BagMessage, stamp: int, *, earlier: bool) -> PointCloud:
        """Return a sweep in base_link at a stamp, an earlier one without what is too close to its sensor."""
        cloud = self.transforms.deskewed(cloud_from_message(message.decode()))
        if earlier:
            close = (np.abs(cloud.points[:, :2]) < self._detector.remove_close_m).all(axis=1)
            cloud = cloud.chosen(np.asarray(~close))
        return self.transforms.placed(cloud, stamp)


def undistorted(image: Image, calibration: Calibration) -> tuple[Image, Calibration]:
    """Return a picture as a camera without lens distortion takes it, of the same matrix and size."""
    if calibration.distortion_model == "none":
        return image, calibration
    matrix = calibration.camera_matrix
    if calibration.distortion_model == "equidistant":
        clean = cv2.fisheye.undistortImage(image.data, matrix, calibration.distortion, None, matrix)
    else:
        clean = cv2.undistort(image.data, matrix, calibration.distortion)
    picture = replace(image, data=np.ascontiguousarray(clean, np.uint8))
    return picture, replace(calibration, distortion_model="none", distortion=np.zeros(0))
