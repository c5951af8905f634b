# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What the fusion benchmarks look at: serialized messages of a simulated drive of the nuScenes rig."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from kestrel.bench.timing import THREADS
from kestrel.data.bag import BagReader, deserialize
from kestrel.data.camera_info import read_camera_info
from kestrel.data.cloud_reader import read_cloud
from kestrel.data.deskew import deskewed
from kestrel.data.messages import stamp_of, transform_from_message
from kestrel.data.picture_reader import read_image
from kestrel.data.trajectory import Trajectory, moved
from kestrel.errors import CalibrationError, describe
from kestrel.pipelines.detector import Detector, chosen_sweeps
from kestrel.pipelines.fusion_engine import Stage
from kestrel.sim.record import write_drive
from kestrel.sim.rig import load_rig
from kestrel.sim.workers import Plan, Workers
from kestrel.sim.world import build_world
from kestrel.types import Calibration, Float64Array, Image, PointCloud, SensorFrame

IMAGE: Final = "sensor_msgs/msg/CompressedImage"
CLOUD: Final = "sensor_msgs/msg/PointCloud2"
BASE: Final = "base_link"


@dataclass(frozen=True)
class FrameMessages:
    """The CDR bytes of a sweep and of the picture of every camera that is nearest to it."""

    stamp_ns: int
    cloud: bytes
    images: Mapping[str, bytes]


@dataclass(frozen=True)
class RecordedDrive:
    """Messages in the order of the sweeps, and what does not change from frame to frame.

    calibrations: by camera, on the vehicle. base_from_lidar: (4, 4). trajectory: of the vehicle.
    """

    frames: tuple[FrameMessages, ...]
    calibrations: Mapping[str, Calibration]
    base_from_lidar: Float64Array
    trajectory: Trajectory


def recorded_drive(
    sweeps: int, image_size: tuple[int, int] = (704, 256), camera_hz: float = 12.0
) -> RecordedDrive:
    """Simulate and record so many sweeps, each with six pictures.

    Args:
        sweeps: how many.
        image_size: (width, height) of the pictures.
        camera_hz: pictures per second.
    """
    rig = load_rig("nuscenes")
    cameras = tuple(replace(camera, hz=camera_hz) for camera in rig.cameras)
    rig = replace(rig, cameras=cameras, odometry_hz=rig.lidar.hz)
    seconds = (sweeps + 0.5) / rig.lidar.hz
    world = build_world("urban", "elm", 7, seconds + 1, "day")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drive"
        with Workers() as workers:
            write_drive(workers.drive(Plan(world, rig, seconds, image_size)), path, rig=rig)
        return _read(path, sweeps)


def _read(path: Path, sweeps: int) -> RecordedDrive:
    mounts: dict[str, Float64Array] = {}
    odometry: dict[int, Float64Array] = {}
    infos: dict[str, Any] = {}
    clouds: dict[int, bytes] = {}
    images: dict[str, dict[int, bytes]] = defaultdict(dict)
    for message in BagReader(path).messages():
        if message.topic in ("/tf", "/tf_static"):
            for transform in message.decode().transforms:
                matrix = transform_from_message(transform.transform)
                if transform.child_frame_id == BASE:
                    odometry[stamp_of(transform)] = matrix
                else:
                    mounts[transform.child_frame_id] = matrix
        elif message.topic == "/lidar/points":
            clouds[stamp_of(message.decode())] = message.raw
        elif message.topic.startswith("/camera/"):
            camera = message.topic.split("/")[2]
            if message.msgtype == IMAGE:
                images[camera][stamp_of(message.decode())] = message.raw
            else:
                infos[camera] = message.decode()
    frames = [
        FrameMessages(
            stamp,
            cloud,
            {name: taken[min(taken, key=lambda at: abs(at - stamp))] for name, taken in images.items()},
        )
        for stamp, cloud in sorted(clouds.items())[:sweeps]
    ]
    calibrations = {
        name: read_camera_info(name, info).calibration(mounts[f"camera_{name}_optical"])
        for name, info in infos.items()
    }
    return RecordedDrive(tuple(frames), calibrations, mounts["lidar"], Trajectory(odometry))


class FrameReader:
    """Makes a SensorFrame of every message set, as the fusion node does; a sweep is decoded once.

    Args:
        drive: whose frames are read, in their order; after the last comes the first again.
        detector: says which earlier sweeps belong into a frame.

    Attributes:
        numbers: of the frames with all earlier sweeps.
    """

    def __init__(self, drive: RecordedDrive, detector: Detector) -> None:
        self.drive = drive
        self._stamps = [frame.stamp_ns for frame in drive.frames]
        self._earlier = [
            self._before(number, detector.sweeps, detector.sweep_s) for number in range(len(drive.frames))
        ]
        self.numbers = [
            number for number, earlier in enumerate(self._earlier) if len(earlier) == detector.sweeps
        ]
        self._decoded = [self._decode(messages) for messages in drive.frames]

    def _before(self, number: int, sweeps: int, sweep_s: float) -> list[int]:
        chosen = chosen_sweeps(self._stamps[number], self._stamps[:number][::-1], sweeps, sweep_s)
        return [number - 1 - back for back in chosen]

    def read(self, number: int, stage: Stage) -> SensorFrame:
        """Return frame ``number`` with the earlier sweeps that there are."""
        messages = self.drive.frames[number]
        images = stage("decode pictures", lambda: self._pictures(messages))
        cloud, *earlier = stage("decode and move sweeps", lambda: self._sweeps(number))
        return SensorFrame(
            messages.stamp_ns,
            BASE,
            cloud,
            images,
            self._calibrations(images, messages.stamp_ns),
            tuple(earlier),
            self.drive.trajectory.at(messages.stamp_ns),
        )

    def _calibrations(self, images: Mapping[str, Image], now_ns: int) -> dict[str, Calibration]:
        """Return how each picture shows what is around the vehicle by now."""
        placed = {}
        for name, calibration in self.drive.calibrations.items():
            motion = self.drive.trajectory.motion(now_ns, images[name].stamp_ns)
            pose = motion @ calibration.reference_from_camera
            placed[name] = replace(calibration, reference_from_camera=pose)
        return placed

    def _pictures(self, messages: FrameMessages) -> dict[str, Image]:
        # OpenCV lets go of the interpreter while it decodes.
        with ThreadPoolExecutor(THREADS) as threads:
            pictures = threads.map(_picture, messages.images.values())
            return dict(zip(messages.images, pictures, strict=True))

    def _sweeps(self, number: int) -> list[PointCloud]:
        # Earlier ones were decoded when they were the newest.
        clouds = [self._decode(self.drive.frames[number])]
        clouds += [self._decoded[index] for index in self._earlier[number]]
        now = self._stamps[number]
        return [
            _moved(cloud, self.drive.trajectory.motion(now, cloud.stamp_ns) @ self.drive.base_from_lidar)
            for cloud in clouds
        ]

    def _decode(self, messages: FrameMessages) -> PointCloud:
        """Return a sweep in the frame of its LiDAR, without the motion within it."""
        return deskewed(read_cloud(deserialize(messages.cloud, CLOUD)).cloud, self._lidar_at)

    def _lidar_at(self, stamp_ns: int) -> Float64Array:
        pose = self.drive.trajectory.at(stamp_ns)
        if pose is None:
            raise CalibrationError(describe(f"odometry at {stamp_ns} ns", expected="one", found="none"))
        return pose @ self.drive.base_from_lidar


def _picture(raw: bytes) -> Image:
    return read_image(deserialize(raw, IMAGE))


def _moved(cloud: PointCloud, base_from_lidar: Float64Array) -> PointCloud:
    return replace(cloud, points=moved(cloud.points, base_from_lidar), frame_id=BASE)
