# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""KITTI as bags: a raw recording (camera and LiDAR), a tracking sequence (LiDAR, boxes, poses).

Geiger et al., Vision meets Robotics: The KITTI Dataset, IJRR 2013. The LiDAR frame has x ahead, y to the
left and z up already; ``base_link`` is the ground below it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from kestrel.classes import DETECTION_CLASSES
from kestrel.data import messages
from kestrel.data.perception_messages import DONT_CARE, objects_message
from kestrel.data.sensor_messages import camera_info_message, cloud_message, stored_image
from kestrel.errors import InputError, describe
from kestrel.types import Boxes3D, Calibration, Float64Array, PointCloud

LIDAR_HEIGHT_M: Final = 1.73
PERIOD_NS: Final = 100_000_000
START_NS: Final = 1_317_000_000 * 10**9
"""A moment on the day of the recordings; their own stamps are not part of the data read here."""
CAMERA_FRAME: Final = "camera_front_optical"
UNITS_M: Final = 0.005
CLASSES: Final = {
    "Car": "car",
    "Van": "car",
    "Truck": "truck",
    "Cyclist": "bicycle",
    "Pedestrian": "pedestrian",
}
"""What has another name in KITTI has no counterpart here: it becomes a region of which nothing is known."""
FAR_M: Final = 200.0

Timed = tuple[int, str, Any]
"""Log time in nanoseconds, topic, message."""


@dataclass(frozen=True)
class Calibrations:
    """One KITTI calibration: of the camera of image_02, and of camera 0 after rectification."""

    camera_matrix: Float64Array
    base_from_camera: Float64Array
    base_from_rectified: Float64Array


def read_calibration(path: Path) -> Calibrations:
    """Read a KITTI calibration file (P2, R0_rect, Tr_velo_to_cam).

    Raises:
        InputError: it is not there or lacks one of them.
    """
    _expect(path)
    lines = (line.partition(":") for line in path.read_text().splitlines() if ":" in line)
    values = {name.strip(): np.array(rest.split(), float) for name, _, rest in lines}
    missing = [name for name in ("P2", "R0_rect", "Tr_velo_to_cam") if name not in values]
    if missing:
        raise InputError(
            describe(f"calibration {path}", expected="P2, R0_rect, Tr_velo_to_cam", found=sorted(values))
        )
    rectified_from_lidar, projection = np.eye(4), values["P2"].reshape(3, 4)
    rectified_from_lidar[:3] = values["R0_rect"].reshape(3, 3) @ values["Tr_velo_to_cam"].reshape(3, 4)
    camera_from_rectified, base_from_lidar = np.eye(4), np.eye(4)
    camera_from_rectified[:3, 3] = np.linalg.solve(projection[:, :3], projection[:, 3])
    base_from_lidar[2, 3] = LIDAR_HEIGHT_M
    base_from_rectified = base_from_lidar @ np.linalg.inv(rectified_from_lidar)
    base_from_camera = base_from_rectified @ np.linalg.inv(camera_from_rectified)
    return Calibrations(projection[:, :3], base_from_camera, base_from_rectified)


def read_sweep(path: Path, stamp_ns: int) -> PointCloud:
    """Read one sweep (xyz_5mm int16, intensity uint8) in frame ``lidar``."""
    with np.load(path) as stored:
        points = np.empty((len(stored["xyz_5mm"]), 4), np.float32)
        points[:, :3] = stored["xyz_5mm"] * np.float32(UNITS_M)
        points[:, 3] = stored["intensity"] / np.float32(255)
    return PointCloud(points, stamp_ns, "lidar")


def raw_messages(folder: Path) -> Iterator[Timed]:
    """Yield the messages of a raw recording: images and sweeps with one stamp each, no poses.

    Raises:
        InputError: part of the recording is missing.
    """
    calibrations = read_calibration(_only(folder, "calib_*.txt"))
    sweeps = _numbered(folder / "velodyne", "npz")
    yield START_NS, "/tf_static", _mounts(calibrations, camera=True)
    for number, sweep in sweeps:
        stamp = START_NS + number * PERIOD_NS
        picture = folder / "image_02" / f"{sweep.stem}.jpg"
        _expect(picture)
        data = picture.read_bytes()
        size = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        if size is None:
            raise InputError(describe(f"picture {picture}", expected="a JPEG", found=f"{len(data)} bytes"))
        calibration = Calibration(
            calibrations.camera_matrix, size.shape[1], size.shape[0], calibrations.base_from_camera
        )
        yield stamp, "/lidar/points", cloud_message(read_sweep(sweep, stamp))
        yield stamp, "/camera/front/camera_info", camera_info_message(calibration, stamp, CAMERA_FRAME)
        yield stamp, "/camera/front/image/compressed", stored_image(data, stamp, CAMERA_FRAME)


def tracking_messages(folder: Path) -> Iterator[Timed]:
    """Yield the messages of a tracking sequence: sweeps, poses as odom -> base_link, boxes as truth.

    Raises:
        InputError: part of the sequence is missing.
    """
    calibrations = read_calibration(_only(folder, "calib_*.txt"))
    labels = _read_labels(_only(folder, "label_02_*.txt"))
    poses = _odom_from_base(folder / "CameraTrajectory.txt", calibrations)
    yield START_NS, "/tf_static", _mounts(calibrations, camera=False)
    for number, path in _numbered(folder / "velodyne", "npz"):
        stamp = START_NS + number * PERIOD_NS
        cloud = read_sweep(path, stamp)
        if number < len(poses):
            transform = messages.transform_message(poses[number], "odom", "base_link", stamp)
            yield stamp, "/tf", messages.tf_message([transform])
            yield stamp, "/odometry", messages.odometry_message(poses[number], stamp)
        yield stamp, "/lidar/points", cloud_message(cloud)
        truth = _boxes(labels.get(number, []), calibrations, cloud)
        yield stamp, "/truth/objects", objects_message(truth)


def _mounts(calibrations: Calibrations, *, camera: bool) -> Any:
    base_from_lidar = np.eye(4)
    base_from_lidar[2, 3] = LIDAR_HEIGHT_M
    transforms = [messages.transform_message(base_from_lidar, "base_link", "lidar", START_NS)]
    if camera:
        mount = calibrations.base_from_camera
        transforms.append(messages.transform_message(mount, "base_link", CAMERA_FRAME, START_NS))
    return messages.tf_message(transforms)


def _odom_from_base(path: Path, calibrations: Calibrations) -> list[Float64Array]:
    """Return the poses of base_link in the first one's frame, from those of the camera (3x4, row-major)."""
    _expect(path)
    rows = np.loadtxt(path, ndmin=2)
    if rows.shape[1] != 12:
        raise InputError(describe(f"poses {path}", expected="12 numbers a line", found=rows.shape[1]))
    base_from_camera = calibrations.base_from_rectified
    camera_from_base = np.linalg.inv(base_from_camera)
    poses = []
    for row in rows:
        world_from_camera = np.vstack([row.reshape(3, 4), (0, 0, 0, 1)])
        poses.append(base_from_camera @ world_from_camera @ camera_from_base)
    return poses


def _read_labels(path: Path) -> dict[int, list[list[str]]]:
    labels: dict[int, list[list[str]]] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        parts = line.split()
        if len(parts) != 17:
            raise InputError(describe(f"line {number} of {path}", expected="17 columns", found=len(parts)))
        labels.setdefault(int(parts[0]), []).append(parts[1:])
    return labels


def _boxes(labels: list[list[str]], calibrations: Calibrations, cloud: PointCloud) -> Boxes3D:
    """Return the boxes of one frame in base_link, and the regions of which the labels say nothing."""
    rows, tracks, names = _unseen(calibrations), [-1, -1, -1], [DONT_CARE] * 3
    for track, name, *numbers in labels:
        values = [float(number) for number in numbers]
        known = name in CLASSES
        rows.append(_placed(values, calibrations) if name != "DontCare" else _region(values, calibrations))
        tracks.append(int(track) if known else -1)
        names.append(CLASSES.get(name, DONT_CARE))
    table = np.array(rows, np.float32)
    class_names = (*DETECTION_CLASSES, DONT_CARE)
    placed = cloud.points[:, :3] + np.array([0, 0, LIDAR_HEIGHT_M], np.float32)
    boxes = Boxes3D(
        center=table[:, :3],
        size=table[:, 3:6],
        yaw=table[:, 6],
        velocity=np.full((len(table), 2), np.nan, np.float32),
        label=np.array([class_names.index(name) for name in names], np.int64),
        score=np.ones(len(table), np.float32),
        class_names=class_names,
        frame_id="base_link",
        stamp_ns=cloud.stamp_ns,
        track_id=np.array(tracks, np.int64),
    )
    return replace(boxes, num_points=boxes.contain(placed).sum(1))


def _placed(values: list[float], calibrations: Calibrations) -> list[float]:
    """Return x, y, z, length, width, height, yaw; KITTI gives the bottom's middle, in the camera."""
    height, width, length, x, y, z, turn = values[7:14]
    center = calibrations.base_from_rectified @ (x, y - height / 2, z, 1.0)
    return [*center[:3], length, width, height, -turn - np.pi / 2]


def _region(values: list[float], calibrations: Calibrations) -> list[float]:
    """Return a box over everything in the directions of a part of the picture."""
    left, right = (
        np.arctan2(calibrations.camera_matrix[0, 2] - column, calibrations.camera_matrix[0, 0])
        for column in (values[3], values[5])
    )
    bearing, half = (left + right) / 2, abs(left - right) / 2
    middle = FAR_M / 2
    width = 2 * middle * np.tan(half) + 1
    return [middle * np.cos(bearing), middle * np.sin(bearing), 0.0, FAR_M, width, 10.0, bearing]


def _unseen(calibrations: Calibrations) -> list[list[float]]:
    """Return boxes over all that the camera cannot see: labels exist inside its view only."""
    edge = float(np.arctan2(calibrations.camera_matrix[0, 2], calibrations.camera_matrix[0, 0]))
    out, across = FAR_M / 2 * np.sin(edge), FAR_M / 2 * np.cos(edge)
    aside = [[-out, side * across, 0.0, 2 * FAR_M, FAR_M, 10.0, side * edge] for side in (1, -1)]
    return [[-FAR_M / 2, 0.0, 0.0, FAR_M, 2 * FAR_M, 10.0, 0.0], *aside]


def _expect(path: Path) -> None:
    if not path.exists():
        raise InputError(describe("KITTI recording", expected=path, found="no such file"))


def _only(folder: Path, pattern: str) -> Path:
    return next(iter(sorted(folder.glob(pattern))), folder / pattern)


def _numbered(folder: Path, suffix: str) -> list[tuple[int, Path]]:
    """Return the files by the number of their frame; some recordings lack sweeps (tracking 0001: four)."""
    _expect(folder)
    found = sorted(folder.glob(f"*.{suffix}"))
    if not found:
        raise InputError(describe(f"sweeps in {folder}", expected=f"*.{suffix}", found="none"))
    unnumbered = [path.name for path in found if not path.stem.isdecimal()]
    if unnumbered:
        raise InputError(
            describe(
                f"sweeps in {folder}", expected="the number of the frame as their name", found=unnumbered[0]
            )
        )
    return [(int(path.stem), path) for path in found]
