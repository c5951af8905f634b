# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""KITTI as bags: a raw recording (camera, LiDAR, poses), a tracking sequence (boxes as truth besides)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from kestrel.classes import DETECTION_CLASSES
from kestrel.data import messages
from kestrel.data.kitti_files import Moment, expect, read_sweep
from kestrel.data.kitti_recordings import (
    LIDAR_HEIGHT_M,
    Calibrations,
    Frame,
    Recording,
    base_from_lidar,
    raw_recording,
    tracking_recording,
)
from kestrel.data.perception_messages import DONT_CARE, objects_message
from kestrel.data.sensor_messages import camera_info_message, cloud_message, stored_image
from kestrel.errors import InputError, describe
from kestrel.types import Boxes3D, Calibration, PointCloud

CAMERA_FRAME: Final = "camera_front_optical"
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


def raw_messages(folder: Path) -> Iterator[Timed]:
    """Yield the messages of a raw recording: images, sweeps, poses where it has them. See raw_recording."""
    yield from _messages(raw_recording(folder))


def tracking_messages(folder: Path, sequence: str = "0000") -> Iterator[Timed]:
    """Yield the messages of a tracking sequence: sweeps, images where it has them, poses, boxes as truth.

    See tracking_recording.
    """
    yield from _messages(tracking_recording(folder, sequence))


def _messages(recording: Recording) -> Iterator[Timed]:
    frames, calibrations = recording.frames, recording.calibrations
    waiting = sorted(recording.odometry.items())
    has_pictures = any(frame.picture is not None for frame in frames)
    begin = min([frame.stamp_ns for frame in frames] + [stamp for stamp, _ in waiting[:1]])
    if has_pictures:
        begin = min(begin, frames[0].picture_ns)
    yield begin, "/tf_static", _mounts(calibrations, begin, camera=has_pictures)
    for frame in frames:
        # In the order of their stamps; poses beyond the last sweep are of use to nobody.
        timed = list(_sensed(frame, recording))
        last = max(stamp for stamp, _, _ in timed)
        count = sum(stamp <= last for stamp, _ in waiting)
        moved = [item for stamp, moment in waiting[:count] for item in _moved(stamp, moment)]
        del waiting[:count]
        yield from sorted((*moved, *timed), key=lambda item: item[0])


def _moved(stamp: int, moment: Moment) -> Iterator[Timed]:
    transform = messages.transform_message(moment.pose, "odom", "base_link", stamp)
    yield stamp, "/tf", messages.tf_message([transform])
    speeds = {"linear": moment.linear, "angular": moment.angular}
    yield stamp, "/odometry", messages.odometry_message(moment.pose, stamp, **speeds)


def _sensed(frame: Frame, recording: Recording) -> Iterator[Timed]:
    cloud = read_sweep(frame.sweep, frame.stamp_ns)
    yield frame.stamp_ns, "/lidar/points", cloud_message(cloud)
    if frame.picture is not None:
        yield from _pictured(frame.picture, frame.picture_ns, recording.calibrations)
    if recording.labels is not None:
        truth = _boxes(recording.labels.get(frame.number, []), recording.calibrations, cloud)
        yield frame.stamp_ns, "/truth/objects", objects_message(truth)


def _pictured(path: Path, stamp: int, calibrations: Calibrations) -> Iterator[Timed]:
    data = expect(path).read_bytes()
    size = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if size is None:
        raise InputError(describe(f"picture {path}", expected="a JPEG or PNG", found=f"{len(data)} bytes"))
    height, width = size.shape
    calibration = Calibration(calibrations.camera_matrix, width, height, calibrations.base_from_camera)
    yield stamp, "/camera/front/camera_info", camera_info_message(calibration, stamp, CAMERA_FRAME)
    yield stamp, "/camera/front/image/compressed", stored_image(data, stamp, CAMERA_FRAME)


def _mounts(calibrations: Calibrations, stamp: int, *, camera: bool) -> Any:
    transforms = [messages.transform_message(base_from_lidar(), "base_link", "lidar", stamp)]
    if camera:
        mount = calibrations.base_from_camera
        transforms.append(messages.transform_message(mount, "base_link", CAMERA_FRAME, stamp))
    return messages.tf_message(transforms)


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
