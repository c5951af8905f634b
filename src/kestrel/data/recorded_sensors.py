# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The sensors of a recording: which cameras there are, and what they show around a moment."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from kestrel.data.bag import BagMessage, BagReader
from kestrel.data.moment_messages import PICTURE_NS, Key, nearest
from kestrel.data.recorded_transforms import RecordedTransforms
from kestrel.data.sensor_messages import calibration_from_message, image_from_message
from kestrel.types import Calibration, Float64Array, Image

CLOUD: Final = "/lidar/points"
CAMERA: Final = re.compile(r"/camera/(?P<name>[^/]+)/(?P<kind>image/compressed|image|camera_info)")


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

    Attributes:
        topics: of the pictures, by camera whose calibration is known.
        uncalibrated: the same of all others.
    """

    def __init__(
        self, stamps: Mapping[str, Collection[int]], infos: Mapping[str, Any], transforms: RecordedTransforms
    ) -> None:
        self._infos, self._transforms = infos, transforms
        found = picture_topics(stamps)
        self.topics = {name: topic for name, topic in found.items() if name in infos}
        self.uncalibrated = {name: topic for name, topic in found.items() if name not in infos}
        self._stamps = {name: sorted(stamps[topic]) for name, topic in self.topics.items()}

    def keys(self, stamp_ns: int, told: Mapping[str, int] | None = None) -> dict[str, Key]:
        """Return the picture of a moment, by camera that took one in time: the nearest one.

        Args:
            stamp_ns: of the moment.
            told: stamps of pictures that are said to belong to it, by camera; they come before the nearest.
        """
        keys: dict[str, Key] = {}
        for name, topic in self.topics.items():
            at = (told or {}).get(name)
            if at not in self._stamps[name]:  # a recording need not hold every picture of its moments
                at = nearest(self._stamps[name], stamp_ns, PICTURE_NS)
            if at is not None and abs(at - stamp_ns) <= PICTURE_NS:
                keys[name] = topic, at
        return keys

    def picture(self, name: str, message: BagMessage, stamp_ns: int) -> RecordedPicture:
        """Return the picture in a message of a camera, as of a moment.

        Raises:
            InputError: it cannot be read.
            CalibrationError: the calibration is none, or nobody knows where the camera is.
        """
        image, info = image_from_message(message.decode()), self._infos[name]
        mount = self._transforms.mount(info.header.frame_id)
        base_from_then = self._transforms.trajectory.motion(stamp_ns, image.stamp_ns)
        return RecordedPicture(image, calibration_from_message(info, mount), base_from_then)
