# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What a recording holds at one moment: sensor data with the answers of the nodes and the truth."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np

from kestrel.data.bag import BagMessage, BagReader
from kestrel.data.camera_info import read_camera_info
from kestrel.data.messages import best_class, source_of
from kestrel.data.own_vehicle import OwnVehicle
from kestrel.data.perception_messages import DONT_CARE
from kestrel.data.picture_reader import read_image
from kestrel.data.recorded_sensors import CAMERA, CLOUD, picture_topics
from kestrel.data.recorded_sweeps import SweepReader
from kestrel.data.recorded_transforms import RecordedTransforms
from kestrel.data.rig_parameters import ALL_THERE_IS, RigParameters
from kestrel.errors import InputError, KestrelError, describe
from kestrel.eval.recording import BASE_FRAME, EVENT, Recording, read_recording
from kestrel.eval.timing import latencies_ms
from kestrel.types import BevMap, Boxes3D, Calibration, Float32Array, UInt8Array

CAMERA_ORDER: Final = ("front_left", "front", "front_right", "back_left", "back", "back_right")
T = TypeVar("T")

STALE_NS: Final = 500_000_000
"""An answer older than this is not shown with a frame."""
SILENT_SWEEPS: Final = 2.5
"""After so many periods without a sweep the frames are those of the cameras."""


@dataclass(frozen=True)
class CameraView:
    """One camera at one moment.

    stamp_ns: when it took the picture. calibration: how the picture shows what is around the vehicle at the
    stamp of the frame, or None. event: name and score of what its video shows, or None.
    """

    name: str
    stamp_ns: int
    picture: UInt8Array
    encoded: bytes | None
    calibration: Calibration | None
    event: tuple[str, float] | None


@dataclass(frozen=True)
class Frame:
    """One moment of a recording; positions are in base_link.

    points: (N, 4) float32 x, y, z, intensity. classes: (N,) index into POINT_CLASSES, or None.
    latencies_ms: of the newest answer, by node.
    """

    stamp_ns: int
    seconds: float
    points: Float32Array | None
    classes: UInt8Array | None
    cameras: tuple[CameraView, ...]
    objects: Boxes3D | None
    truth: Boxes3D | None
    bev_map: BevMap | None
    truth_event: str | None
    latencies_ms: dict[str, float]


class Scene:
    """A recording, frame by frame: one frame per sweep, or per image of one camera without LiDAR.

    Args:
        path: of the recording.
        rig: what the fusion node is told of the sensors.
    """

    def __init__(self, path: str | Path, rig: RigParameters = ALL_THERE_IS) -> None:
        self._rig = rig
        self._read_sweep, self._own_vehicle = SweepReader(path, rig), OwnVehicle(rig.own_vehicle_box_m)
        self.recording: Recording = read_recording(path)
        self._messages: dict[str, list[tuple[int, BagMessage]]] = {}
        reader = BagReader(path)
        self._transforms = RecordedTransforms(reader)
        for message in reader.messages([topic for topic in reader.topics if self._wanted(topic)]):
            source = source_of(message.msgtype, message.raw)
            if source is not None:
                self._messages.setdefault(message.topic, []).append((source.stamp_ns, message))
        for items in self._messages.values():
            items.sort(key=lambda item: item[0])
        self._image_topics = picture_topics(self._messages)
        if rig.cameras is not None:
            self._image_topics = {
                name: topic for name, topic in self._image_topics.items() if name in rig.cameras
            }
        self.cameras = self._camera_names()
        self.stamps = self._reference_stamps()
        if not self.stamps:
            self.recording.raise_if_damaged()
            expected = "a LiDAR or a camera"
            raise InputError(describe(f"recording {path}", expected=expected, found="neither"))
        self._latencies = {
            key: sorted(values.items())
            for key, values in latencies_ms(self.recording.sent, self.recording.received).items()
        }

    @staticmethod
    def _wanted(topic: str) -> bool:
        return topic == CLOUD or bool(CAMERA.fullmatch(topic) or EVENT.fullmatch(topic))

    def _camera_names(self) -> list[str]:
        known = [name for name in CAMERA_ORDER if name in self._image_topics]
        return known + sorted(self._image_topics.keys() - set(known))

    def _reference_stamps(self) -> list[int]:
        """Return the stamps of the sweeps and, where there are none, of the camera that was answered."""
        sweeps = sorted({stamp for stamp, _ in self._messages.get(CLOUD, [])})
        answered = {*self.recording.predicted.objects, *self.recording.predicted.maps}
        pictured = [self._messages[self._image_topics[name]] for name in self.cameras]
        by_camera = [{stamp for stamp, _ in items} for items in pictured]
        pictures = max(by_camera, key=lambda stamps: len(answered.intersection(stamps)), default=set())
        patience = STALE_NS if len(sweeps) < 2 else int(SILENT_SWEEPS * np.median(np.diff(sweeps)))
        return sorted({*sweeps, *(stamp for stamp in pictures if _away(sweeps, stamp) > patience)})

    @property
    def rate_hz(self) -> float:
        """Frames per second of sensor time."""
        if len(self.stamps) < 2:
            return 1.0
        return float(1e9 / np.median(np.diff(self.stamps)))

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes that have answered."""
        return sorted({node.strip("/") for node, _ in self._latencies})

    def __len__(self) -> int:
        return len(self.stamps)

    def frames(self) -> Iterator[Frame]:
        """Yield all frames in order."""
        for stamp in self.stamps:
            yield self.frame(stamp)

    def best_stamp(self) -> int:
        """Return the stamp at which most detections are sure: a moment worth a picture."""
        found = self.recording.predicted.objects or {
            stamp: _known(truth) for stamp, truth in self.recording.truth.objects.items()
        }
        later = [stamp for stamp in self.stamps if stamp in found][len(found) // 4 :]
        if not later:
            return self.stamps[len(self.stamps) // 2]
        return max(later, key=lambda stamp: int((found[stamp].score > 0.3).sum()))

    def cameras_at(self, stamp: int) -> tuple[str, ...]:
        """Return the names of the cameras that have sent something near ``stamp``."""
        return tuple(name for name in self.cameras if abs(self._nearest(name, stamp)[0] - stamp) <= STALE_NS)

    def frame(self, stamp: int) -> Frame:
        """Return what there is at ``stamp``."""
        points, classes = self._points(stamp)
        cameras = tuple(view for name in self.cameras if (view := self._view(name, stamp)) is not None)
        truth, events = self.recording.truth.objects.get(stamp), self.recording.truth.events
        truth_events = sorted((picture.stamp_ns, event) for picture, event in events.items())
        return Frame(
            stamp_ns=stamp,
            seconds=(stamp - self.stamps[0]) / 1e9,
            points=points,
            classes=classes,
            cameras=cameras,
            objects=_finite(self.recording.predicted.objects.get(stamp)),
            truth=_finite(None if truth is None else _known(truth)),
            bev_map=self.recording.predicted.maps.get(stamp),
            truth_event=_newest(truth_events, stamp),
            latencies_ms=self._newest_latencies(stamp),
        )

    def _points(self, stamp: int) -> tuple[Float32Array | None, UInt8Array | None]:
        """Return the finite points (N, 4) of the sweep, and their classes (N,) where there are any."""
        message = _newest(self._messages.get(CLOUD, []), stamp)
        if message is None:
            return None, None
        try:
            decoded = self._read_sweep(message)
            base_from_lidar = self._transforms.mount(decoded.cloud.frame_id, decoded.cloud.stamp_ns)
        except KestrelError:  # what a sensor delivered broken, or from nobody knows where, cannot be shown
            return None, None
        kept = ~self._own_vehicle.holds(decoded.cloud, base_from_lidar)
        cloud = decoded.cloud.chosen(kept).moved(base_from_lidar, BASE_FRAME)
        classes = self.recording.predicted.points.get(stamp)
        known = classes is not None and len(classes) == decoded.total
        return cloud.points, classes[decoded.kept][kept] if classes is not None and known else None

    def _view(self, name: str, stamp: int) -> CameraView | None:
        time, message = self._nearest(name, stamp)
        taken = time - self._rig.ahead_ns(name)
        if abs(taken - stamp) > STALE_NS:
            return None
        try:
            decoded = message.decode()
            image = read_image(decoded)
        except KestrelError:  # what a sensor delivered broken cannot be shown
            return None
        encoded = bytes(decoded.data) if hasattr(decoded, "format") else None
        calibration = self._calibration(name, taken, stamp)
        if calibration is not None and (calibration.height, calibration.width) != image.data.shape[:2]:
            calibration = None  # of another picture: boxes would be drawn where they are not
        return CameraView(name, time, image.data, encoded, calibration, self._event(name, time))

    def _nearest(self, name: str, stamp: int) -> tuple[int, BagMessage]:
        wanted = stamp + self._rig.ahead_ns(name)
        return min(self._messages[self._image_topics[name]], key=lambda item: abs(item[0] - wanted))

    def _calibration(self, name: str, taken_ns: int, stamp: int) -> Calibration | None:
        """Return how a picture that was taken at one stamp shows what is around the vehicle at another."""
        told_ns = taken_ns + self._rig.ahead_ns(name)
        message = _newest(self._messages.get(f"/camera/{name}/camera_info", []), told_ns, stale_ns=None)
        if message is None:
            return None
        decoded = message.decode()
        try:
            base_from_camera = self._transforms.mount(decoded.header.frame_id, taken_ns)
            pose = self._transforms.motion(stamp, taken_ns) @ base_from_camera
            return read_camera_info(name, decoded, rectified=self._rig.rectified).calibration(pose)
        except KestrelError:  # of an unknown model or place: the picture is shown without boxes
            return None

    def _event(self, name: str, stamp: int) -> tuple[str, float] | None:
        for topic, items in self._messages.items():
            match = EVENT.fullmatch(topic)
            if match is not None and match["name"] == name:
                message = _newest(items, stamp)
                return None if message is None else best_class(message.decode())
        return None

    def _newest_latencies(self, stamp: int) -> dict[str, float]:
        result: dict[str, float] = {}
        for (node, _), values in self._latencies.items():
            latency = _newest(values, stamp)
            if latency is not None:
                result[node.strip("/")] = max(latency, result.get(node.strip("/"), 0.0))
        return result


def _known(truth: Boxes3D) -> Boxes3D:
    """Return the truth without the regions of which it knows nothing."""
    if DONT_CARE not in truth.class_names:
        return truth
    return truth.chosen(truth.label != truth.class_names.index(DONT_CARE))


def _finite(boxes: Boxes3D | None) -> Boxes3D | None:
    """Return the boxes that have a place, a size and a course."""
    if boxes is None:
        return None
    numbers = np.concatenate((boxes.center, boxes.size, boxes.yaw[:, None]), 1)
    return boxes.chosen(np.logical_and.reduce(np.isfinite(numbers), axis=1))


def _away(stamps: list[int], stamp: int) -> float:
    """Return how far the nearest of the sorted ``stamps`` is from ``stamp``, inf if there are none."""
    index = bisect_right(stamps, stamp)
    return min((abs(near - stamp) for near in stamps[max(index - 1, 0) : index + 1]), default=np.inf)


def _newest(items: Sequence[tuple[int, T]], stamp: int, stale_ns: int | None = STALE_NS) -> T | None:
    """Return the value with the newest stamp up to ``stamp``, None if there is none that is fresh."""
    index = bisect_right(items, stamp, key=lambda item: item[0]) - 1
    if index < 0 or (stale_ns is not None and stamp - items[index][0] > stale_ns):
        return None
    return items[index][1]
