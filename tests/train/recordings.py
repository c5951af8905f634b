# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Small made-up recordings of a vehicle that drives past things that stand, with true boxes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS
from kestrel.data import messages
from kestrel.data.bag import BagWriter
from kestrel.data.perception_messages import DONT_CARE, map_messages, objects_message
from kestrel.data.sensor_messages import camera_info_message, cloud_message, compressed_image
from kestrel.types import BevMap, Boxes3D, Calibration, Float64Array, PointCloud, UInt8Array

START: Final = 10**9
STEP: Final = 100_000_000
SIZE: Final = (256, 704)
MATRIX: Final = np.array([[560.0, 0, 350], [0, 560, 120], [0, 0, 1]])

LANDMARKS: Final = np.array([[20.0, 3, 1], [24, -4, 2], [15, 6, 0.5], [30, 0, 3], [22.5, 1, 1]])
"""Where things stand in odom, metres; the last one is in the car."""


def odom_from_base(stamp_ns: float) -> Float64Array:
    """Return the pose of a vehicle that drives at 8 m/s and turns at 0.2 rad/s."""
    seconds = (stamp_ns - START) * 1e-9
    turn, pose = 0.2 * seconds, np.eye(4)
    pose[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    pose[:2, 3] = 8 * seconds, 0.4 * seconds
    return pose


def base_from_lidar() -> Float64Array:
    mount = np.eye(4)
    mount[:3, 3] = 0.9, 0.1, 1.8
    return mount


def base_from_camera() -> Float64Array:
    mount = np.eye(4)
    mount[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    mount[:3, 3] = 1.5, 0, 1.6
    return mount


def landmarks_in(fixed_from_frame: Float64Array) -> Float64Array:
    """Return LANDMARKS in another frame."""
    inverse = np.linalg.inv(fixed_from_frame)
    return np.asarray(LANDMARKS @ inverse[:3, :3].T + inverse[:3, 3])


@dataclass(frozen=True)
class Drive:
    """A recording to be made.

    sweeps: how many, 10 a second. velocity, length_m: of the car, metres a second and metres. cameras: by
    name, how long after a sweep each takes its picture, nanoseconds. lost: pictures that are missing, camera
    and number of the sweep. class_names: of the two boxes. measured_s: how long a sweep takes. labelled:
    every so many-th sweep has true boxes. maps: of how many cells a side, in the sweeps of these numbers.
    unknown: whether a cell of these is. without: how topics begin that are left out.
    """

    sweeps: int = 12
    velocity: tuple[float, float] = (np.nan, np.nan)
    length_m: float = 4.0
    cameras: dict[str, int] = field(default_factory=dict)
    lost: frozenset[tuple[str, int]] = frozenset()
    class_names: tuple[str, str] = ("car", DONT_CARE)
    measured_s: float = 0.0
    labelled: int = 1
    maps: dict[int, int] = field(default_factory=dict)
    unknown: bool = False
    without: tuple[str, ...] = ()

    def write(self, path: Path) -> Path:
        """Write the recording; return its path."""
        entries = [(START - STEP, "/tf_static", self._mounts())]
        for number in range(-2, 2 * self.sweeps + 4):
            entries += _pose(START + number * STEP // 2)
        for number in range(self.sweeps):
            stamp = START + number * STEP
            entries.append((stamp, "/lidar/points", cloud_message(self._cloud(stamp))))
            if number % self.labelled == 0:
                entries.append((stamp, "/truth/objects", objects_message(self.truth(stamp))))
            entries += self._map(stamp, self.maps.get(number, 0))
            for name, after in self.cameras.items():
                if (name, number) not in self.lost:
                    entries += _picture(name, stamp + after)
        with BagWriter(path) as bag:
            for stamp, topic, message in sorted(entries, key=lambda entry: entry[0]):
                if not topic.startswith(self.without):
                    bag.write(topic, message, stamp)
        return path

    def truth(self, stamp: int) -> Boxes3D:
        """Return the true boxes in base_link."""
        names = tuple(dict.fromkeys((*DETECTION_CLASSES, *self.class_names)))
        (*_, car) = landmarks_in(odom_from_base(stamp))
        return Boxes3D(
            center=np.array([car, [0, -30, 0]], np.float32),
            size=np.array([[self.length_m, 2, 2], [60, 20, 10]], np.float32),
            yaw=np.array([0.3, 0.0], np.float32),
            velocity=np.array([self.velocity, (np.nan, np.nan)], np.float32),
            label=np.array([names.index(name) for name in self.class_names], np.int64),
            score=np.ones(2, np.float32),
            class_names=names,
            frame_id="base_link",
            stamp_ns=stamp,
        )

    def _map(self, stamp: int, cells: int) -> list[tuple[int, str, Any]]:
        """Return the grids of a map in which each layer is a stripe of its own."""
        if not cells:
            return []
        layers = np.zeros((len(MAP_LAYERS), cells, cells), np.float32)
        for number, layer in enumerate(layers):
            layer[10 * number : 10 * number + 5] = 1
        grids = map_messages(BevMap(layers, MAP_LAYERS, (-50.0, -50.0), 0.5, "base_link", stamp))
        if self.unknown:
            grids[MAP_LAYERS[0]].data[7] = -1
        return [(stamp, f"/truth/map/{name}", grid) for name, grid in grids.items()]

    def _cloud(self, stamp: int) -> PointCloud:
        times = np.linspace(0, self.measured_s, len(LANDMARKS))
        places = [
            landmarks_in(odom_from_base(stamp + 1e9 * time) @ base_from_lidar())[row]
            for row, time in enumerate(times)
        ]
        points = np.concatenate((places, np.full((len(places), 1), 0.5)), 1).astype(np.float32)
        return PointCloud(points, stamp, "lidar", None, times.astype(np.float32) if self.measured_s else None)

    def _mounts(self) -> Any:
        """Return where sensors are; the LiDAR is on a roof that is on the vehicle."""
        half = np.eye(4)
        half[:3, 3] = base_from_lidar()[:3, 3] / 2
        mounts = {("base_link", "roof"): half, ("roof", "lidar"): half}
        mounts |= {("base_link", f"camera_{name}_optical"): base_from_camera() for name in self.cameras}
        return messages.tf_message(
            [messages.transform_message(mount, *frames, START) for frames, mount in mounts.items()]
        )


def _pose(stamp: int) -> list[tuple[int, str, Any]]:
    pose = odom_from_base(stamp)
    transform = messages.transform_message(pose, "odom", "base_link", stamp)
    return [
        (stamp, "/tf", messages.tf_message([transform])),
        (stamp, "/odometry", messages.odometry_message(pose, stamp)),
    ]


def _picture(name: str, stamp: int) -> list[tuple[int, str, Any]]:
    optical = f"camera_{name}_optical"
    calibration = Calibration(MATRIX, SIZE[1], SIZE[0], base_from_camera())
    return [
        (stamp, f"/camera/{name}/camera_info", camera_info_message(calibration, stamp, optical)),
        (
            stamp,
            f"/camera/{name}/image/compressed",
            compressed_image(seen(stamp), stamp, optical, jpeg_quality=95),
        ),
    ]


def seen(stamp: int) -> UInt8Array:
    """Return the picture of a camera: black, with a white spot where each landmark is."""
    picture = np.zeros((*SIZE, 3), np.uint8)
    rays = landmarks_in(odom_from_base(stamp) @ base_from_camera()) @ MATRIX.T
    for column, row in np.round(rays[:, :2] / rays[:, 2:]).astype(int):
        picture[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3] = 255
    return picture
