# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The sensors of a recording: which cameras there are, and what they show around a moment."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from kestrel.data.bag import BagMessage, BagReader
from kestrel.data.camera_info import read_camera_info
from kestrel.data.moment_messages import PICTURE_NS, Key, nearest
from kestrel.data.picture_reader import read_image
from kestrel.data.recorded_transforms import RecordedTransforms
from kestrel.data.rig_parameters import ALL_THERE_IS, RigParameters
from kestrel.types import Calibration, Float64Array, Image

CLOUD: Final = "/lidar/points"
CLOUD_TYPE: Final = "sensor_msgs/msg/PointCloud2"
CAMERA: Final = re.compile(r"/camera/(?P<name>[^/]+)/(?P<kind>image/compressed|image|camera_info)")
CAMERA_TYPES: Final = {
    "camera_info": "sensor_msgs/msg/CameraInfo",
    "image": "sensor_msgs/msg/Image",
    "image/compressed": "sensor_msgs/msg/CompressedImage",
}


def picture_topics(topics: Iterable[str]) -> dict[str, str]:
    """Return the topic of the pictures of each camera; of one that has both, that of the compressed ones."""
    found: dict[str, str] = {}
    for topic in sorted(topics):  # a compressed topic comes after the plain one
        camera = CAMERA.fullmatch(topic)
        if camera is not None and camera["kind"] != "camera_info":
            found[camera["name"]] = topic
    return found


def camera_infos(reader: BagReader) -> dict[str, Any]:
    """Return the first CameraInfo of each camera, by name."""
    found = {topic: camera for topic in reader.topics if (camera := CAMERA.fullmatch(topic))}
    names = {topic: camera["name"] for topic, camera in found.items() if camera["kind"] == "camera_info"}
    infos: dict[str, Any] = {}
    for message in reader.messages(list(names)) if names else ():
        infos.setdefault(names[message.topic], message.decode())
        if len(infos) == len(names):
            break
    return infos


@dataclass(frozen=True)
class RecordedPicture:
    """A picture of a moment.

    mounted: the calibration, where the camera is on the vehicle. base_from_then: (4, 4) where the vehicle was
    when it took the picture, as of where it is at the moment.
    """

    image: Image
    mounted: Calibration
    base_from_then: Float64Array

    @property
    def calibration(self) -> Calibration:
        """How the picture shows what is around the vehicle at the moment."""
        pose = self.base_from_then @ self.mounted.reference_from_camera
        return replace(self.mounted, reference_from_camera=pose)


class RecordedCameras:
    """The cameras of a recording.

    Args:
        stamps: of the messages that there are, by topic.
        infos: calibrations by camera, see `camera_infos`.
        transforms: of the recording.
        rig: which cameras count, whether pictures are rectified, and how far stamps are ahead.

    Attributes:
        topics: of the pictures, by camera whose calibration is known.
        uncalibrated: the same of all others.
        absent: cameras that ``rig`` names and of which there are no pictures.
    """

    def __init__(
        self,
        stamps: Mapping[str, Collection[int]],
        infos: Mapping[str, Any],
        transforms: RecordedTransforms,
        rig: RigParameters = ALL_THERE_IS,
    ) -> None:
        self._infos, self._transforms, self._rig = infos, transforms, rig
        self.absent: tuple[str, ...] = ()
        found = picture_topics(stamps)
        if rig.cameras is not None:
            self.absent = tuple(name for name in rig.cameras if name not in found)
            found = {name: found[name] for name in rig.cameras if name in found}
        self.topics = {name: topic for name, topic in found.items() if name in infos}
        self.uncalibrated = {name: topic for name, topic in found.items() if name not in infos}
        self._stamps = {name: sorted(stamps[topic]) for name, topic in self.topics.items()}

    def say_absent(self, recording: str | Path) -> None:
        """Say on standard error which cameras are to count and are not there."""
        if self.absent:
            missing = ", ".join(self.absent)
            print(f"{recording}: no pictures of these of the parameter cameras: {missing}", file=sys.stderr)

    def say_uncalibrated(self, recording: str | Path) -> None:
        """Say on standard error which cameras are left out since nobody knows their calibration."""
        if self.uncalibrated:
            names = ", ".join(self.uncalibrated)
            print(f"{recording}: left out, without /camera/NAME/camera_info: {names}", file=sys.stderr)

    def keys(self, stamp_ns: int, told: Mapping[str, int] | None = None) -> dict[str, Key]:
        """Return the picture of a moment, by camera that took one in time: the nearest one.

        Args:
            stamp_ns: of the moment.
            told: stamps of pictures that are said to belong to it, by camera; they come before the nearest.
        """
        keys: dict[str, Key] = {}
        for name, topic in self.topics.items():
            at, wanted = (told or {}).get(name), stamp_ns + self._rig.ahead_ns(name)
            if at not in self._stamps[name]:  # a recording need not hold every picture of its moments
                at = nearest(self._stamps[name], wanted, PICTURE_NS)
            if at is not None and abs(at - wanted) <= PICTURE_NS:
                keys[name] = topic, at
        return keys

    def picture(self, name: str, message: BagMessage, stamp_ns: int) -> RecordedPicture:
        """Return the picture in a message of a camera, as of a moment.

        Raises:
            InputError: it cannot be read.
            CalibrationError: the calibration is none, or nobody knows where the camera is.
        """
        image, info = read_image(message.decode()), self._infos[name]
        mount = self._transforms.mount(info.header.frame_id, image.stamp_ns)
        measured_ns = image.stamp_ns - self._rig.ahead_ns(name)
        base_from_then = self._transforms.motion(stamp_ns, measured_ns)
        intrinsics = read_camera_info(name, info, rectified=self._rig.rectified)
        return RecordedPicture(image, intrinsics.calibration(mount), base_from_then)
