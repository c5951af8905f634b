# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Moments of a recording that have true boxes: sweeps, pictures and truth, as of where the vehicle is then.

A recording is read three times: for transforms, for what it holds and when, and for what is needed of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS
from kestrel.data.bag import BagMessage, BagReader
from kestrel.data.messages import source_of
from kestrel.data.moment_messages import Key, WantedMoment, nearest, read_moments
from kestrel.data.nuscenes_samples import SAMPLES_TOPIC, Rack, Sample, samples_from_message
from kestrel.data.perception_messages import boxes_from_message, map_from_messages
from kestrel.data.recorded_sensors import (
    CAMERA,
    CAMERA_TYPES,
    CLOUD,
    CLOUD_TYPE,
    RecordedCameras,
    camera_infos,
)
from kestrel.data.recorded_sweeps import RecordedSweeps
from kestrel.data.recorded_transforms import ODOMETRY, RecordedTransforms
from kestrel.data.rig_parameters import ALL_THERE_IS, RigParameters
from kestrel.errors import InputError, describe
from kestrel.eval.recording import BASE_FRAME
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.pipelines.fusion_frame import check_size
from kestrel.train.key_stamps import key_stamps
from kestrel.train.progress import track
from kestrel.types import BevMap, Boxes3D, Calibration, Float64Array, Image, PointCloud

OBJECTS: Final = "/truth/objects"
MAPS: Final = {layer: f"/truth/map/{layer}" for layer in MAP_LAYERS}

SWEEP_NS: Final = 60_000_000
"""By how much an earlier sweep may be older or newer than wanted."""

TYPES: Final = {
    CLOUD: CLOUD_TYPE,
    OBJECTS: "kestrel_msgs/msg/PerceivedObjects",
    SAMPLES_TOPIC: "std_msgs/msg/String",
    ODOMETRY: "nav_msgs/msg/Odometry",
    **dict.fromkeys(MAPS.values(), "nav_msgs/msg/OccupancyGrid"),
    **dict.fromkeys(("/tf", "/tf_static"), "tf2_msgs/msg/TFMessage"),
}


@dataclass(frozen=True)
class Moment:
    """One key frame of a recording; positions are in base_link at its stamp.

    sweeps: the current one first; their stamps are those of their measurement. pictures: by camera, with how
    each shows what is around the vehicle at the stamp. base_from_picture: by camera, (4, 4) where the vehicle
    was when it took the picture, as of where it is. racks: where cycles stand without boxes. bev_map: what
    the ground is, or None. odom_from_base: (4, 4), None where nobody knows.
    """

    number: int
    sweeps: tuple[PointCloud, ...]
    pictures: dict[str, tuple[Image, Calibration]]
    base_from_picture: dict[str, Float64Array]
    truth: Boxes3D
    racks: tuple[Rack, ...]
    bev_map: BevMap | None
    odom_from_base: Float64Array | None


class RecordedMoments:
    """The key frames of a recording, at most two a second, in their order.

    Args:
        path: of the recording.
        rig: what the fusion node is told of the sensors.

    Attributes:
        wanted: the moments; what they hold is read by :meth:`read`.
        without_picture: how many were left out since a camera had no picture then, by camera.
        without_pose: of how many it is not known where the vehicle was.
        without_sweep: how many messages of true boxes have no sweep of their stamp.
        truth: all true boxes, by stamp.
        has_maps: whether all of these moments have a map. without_map: how many have none, where others do.
        other_truth: what else below /truth there is.
    """

    def __init__(self, path: Path, rig: RigParameters = ALL_THERE_IS) -> None:
        self._rig, self._reader = rig, BagReader(path)
        for topic, held in self._reader.topics.items():
            camera = CAMERA.fullmatch(topic)
            expected = CAMERA_TYPES[camera["kind"]] if camera else TYPES.get(topic, held.msgtype)
            if held.msgtype != expected:
                raise InputError(describe(f"type of {topic}", expected=expected, found=held.msgtype))
        told = {topic for topic in self._reader.topics if topic.startswith("/truth/")}
        self.other_truth = sorted({topic.split("/")[2] for topic in told - TYPES.keys()})
        self._stamps: dict[str, set[int]] = {}
        self._samples: dict[int, Sample] = {}
        self.truth: dict[int, Boxes3D] = {}
        self._transforms = RecordedTransforms(self._reader)
        self._read_sweep = RecordedSweeps(path, self._transforms, rig)
        self._read_index()
        self._reader.raise_if_damaged()
        self._cameras = self._find_cameras()
        self.without_picture: Counter[str] = Counter()
        self.without_sweep = len(self.truth.keys() - self._stamps.get(CLOUD, set()))
        self.wanted = self._choose()
        self.without_map = sum(len(wanted.maps) < len(MAPS) for wanted in self.wanted)
        self.has_maps = self.without_map == 0
        poses = (self._transforms.vehicle_at(wanted.stamp_ns) for wanted in self.wanted)
        self.without_pose = sum(pose is None for pose in poses)

    @property
    def cameras(self) -> list[str]:
        """The names of the cameras, in the order of their pictures."""
        return list(self._cameras.topics)

    def _read_index(self) -> None:
        """Note what there is and when."""
        for message in self._reader.messages([topic for topic in self._reader.topics if _is_of_use(topic)]):
            if message.topic == OBJECTS:
                self._add_truth(message)
            elif message.topic == SAMPLES_TOPIC:
                self._samples |= samples_from_message(message.decode())
            else:
                source = source_of(message.msgtype, message.raw)
                if source is not None:
                    self._stamps.setdefault(message.topic, set()).add(source.stamp_ns)
        for stamp in self._samples.keys() & self.truth.keys():
            self.truth[stamp] = self._samples[stamp].with_attributes(self.truth[stamp])

    def _add_truth(self, message: BagMessage) -> None:
        boxes = boxes_from_message(message.decode(), DETECTION_CLASSES)
        if boxes.frame_id != BASE_FRAME:
            raise InputError(describe(f"frame of {OBJECTS}", expected=BASE_FRAME, found=boxes.frame_id))
        numbers = np.concatenate((boxes.center, boxes.size, boxes.yaw[:, None]), 1)
        if not np.isfinite(numbers).all() or (boxes.size <= 0).any():
            expected = "boxes of finite numbers, sizes above 0"
            raise InputError(describe(f"{OBJECTS} at {boxes.stamp_ns} ns", expected=expected, found="others"))
        self.truth[boxes.stamp_ns] = boxes

    def _find_cameras(self) -> RecordedCameras:
        """Return the cameras, all of which have to be calibrated."""
        cameras = RecordedCameras(self._stamps, camera_infos(self._reader), self._transforms, self._rig)
        for name, topic in cameras.uncalibrated.items():
            expected = f"its calibration, /camera/{name}/camera_info"
            raise InputError(describe(topic, expected=expected, found="none"))
        cameras.say_absent(self._reader.path)
        return cameras

    def _choose(self) -> list[WantedMoment]:
        """Return the moments that have a sweep, true boxes and pictures of all cameras."""
        sweeps = sorted(self._stamps.get(CLOUD, ()))
        both = sorted(self.truth.keys() & set(sweeps))
        if not both:
            found = f"{len(sweeps)} sweeps and {len(self.truth)} messages of true boxes"
            raise InputError(
                describe(f"{CLOUD} and {OBJECTS}", expected="some of the same stamp", found=found)
            )
        chosen = []
        for number, stamp in key_stamps(both):
            keys = self._cameras.keys(stamp)
            self.without_picture.update(self._cameras.topics.keys() - keys.keys())
            if len(keys) == len(self._cameras.topics):
                clouds = tuple((CLOUD, at) for at in (stamp, *self._earlier(sweeps, stamp)))
                told = {name: topic for name, topic in MAPS.items() if stamp in self._stamps.get(topic, ())}
                maps = {name: (topic, stamp) for name, topic in told.items()}
                chosen.append(WantedMoment(number, stamp, clouds, keys, maps))
        return chosen

    def _earlier(self, sweeps: list[int], stamp: int) -> Iterator[int]:
        """Yield the stamps of the earlier sweeps that can be moved to where the vehicle is at a stamp."""
        if self._transforms.vehicle_at(stamp) is None:
            return
        for back in range(1, 1 + FusionConfig.sweeps):
            at = nearest(sweeps, stamp - round(back * FusionConfig.sweep_s * 1e9), SWEEP_NS)
            if at is not None and self._transforms.vehicle_at(at) is not None:
                yield at

    def read(self) -> Iterator[Moment]:
        """Yield the moments, showing how many are done."""
        read = read_moments(self._reader, self.wanted)
        for _, (wanted, held) in zip(track(self.wanted, "key frames"), read, strict=True):
            yield self._moment(wanted, held)

    def _moment(self, wanted: WantedMoment, held: Mapping[Key, BagMessage]) -> Moment:
        stamp = wanted.stamp_ns
        pictures, moved = {}, {}
        for name, key in wanted.pictures.items():
            picture = self._cameras.picture(name, held[key], stamp)
            check_size(name, picture.image, picture.mounted)
            pictures[name], moved[name] = (picture.image, picture.mounted), picture.base_from_then
        return Moment(
            wanted.number,
            tuple(self._sweep(held[key], stamp) for key in wanted.sweeps),
            pictures,
            moved,
            self.truth[stamp],
            self._samples[stamp].racks if stamp in self._samples else (),
            _map({name: held[key] for name, key in wanted.maps.items()}) if self.has_maps else None,
            self._transforms.vehicle_at(stamp),
        )

    def _sweep(self, message: BagMessage, stamp: int) -> PointCloud:
        """Return a sweep in base_link at another stamp, the motion within it undone."""
        return self._transforms.placed(self._read_sweep(message), stamp)


def _is_of_use(topic: str) -> bool:
    return topic in (CLOUD, OBJECTS, SAMPLES_TOPIC, *MAPS.values()) or CAMERA.fullmatch(topic) is not None


def _map(grids: dict[str, BagMessage]) -> BevMap:
    """Return the map of the grids of all layers."""
    decoded = {name: message.decode() for name, message in grids.items()}
    for name, grid in decoded.items():
        if (np.asarray(grid.data, np.int8) < 0).any():
            raise InputError(describe(MAPS[name], expected="cells from 0 to 100", found="unknown ones (-1)"))
    return map_from_messages(decoded)
