# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""KITTI as bags: a raw recording (camera, LiDAR, poses), a tracking sequence (boxes as truth besides)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
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
ENDS_M: Final = (0.0, *np.geomspace(1.0, FAR_M, 25).tolist())
"""How far from the camera the boxes of a region end, and the next begin: each a quarter farther."""

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
    calibrations = recording.calibrations
    cloud = read_sweep(frame.sweep, frame.stamp_ns)
    yield frame.stamp_ns, "/lidar/points", cloud_message(cloud)
    # Without a picture as wide as its middle is known: those of KITTI have some columns more on the right.
    width = 2 * calibrations.camera_matrix[0, 2]
    if frame.picture is not None:
        data = expect(frame.picture).read_bytes()
        camera = _camera(frame.picture, data, calibrations)
        yield from _pictured(camera, data, frame.picture_ns)
        width = camera.width
    if recording.labels is not None:
        truth = _boxes(recording.labels.get(frame.number, []), calibrations, width, cloud)
        yield frame.stamp_ns, "/truth/objects", objects_message(truth)


def _camera(path: Path, data: bytes, calibrations: Calibrations) -> Calibration:
    """Return the calibration of the camera that has taken a picture."""
    size = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if size is None:
        raise InputError(describe(f"picture {path}", expected="a JPEG or PNG", found=f"{len(data)} bytes"))
    height, width = size.shape
    return Calibration(calibrations.camera_matrix, width, height, calibrations.base_from_camera)


def _pictured(camera: Calibration, data: bytes, stamp: int) -> Iterator[Timed]:
    yield stamp, "/camera/front/camera_info", camera_info_message(camera, stamp, CAMERA_FRAME)
    yield stamp, "/camera/front/image/compressed", stored_image(data, stamp, CAMERA_FRAME)


def _mounts(calibrations: Calibrations, stamp: int, *, camera: bool) -> Any:
    transforms = [messages.transform_message(base_from_lidar(), "base_link", "lidar", stamp)]
    if camera:
        mount = calibrations.base_from_camera
        transforms.append(messages.transform_message(mount, "base_link", CAMERA_FRAME, stamp))
    return messages.tf_message(transforms)


def _boxes(labels: list[list[str]], calibrations: Calibrations, width: float, cloud: PointCloud) -> Boxes3D:
    """Return the boxes of one frame in base_link, and the regions of which the labels say nothing.

    Points are counted of the former alone.
    """
    rows = _unseen(calibrations, width)
    tracks, names = [-1] * len(rows), [DONT_CARE] * len(rows)
    for track, name, *numbers in labels:
        values = [float(number) for number in numbers]
        own = [_placed(values, calibrations)] if name != "DontCare" else _region(values, calibrations)
        rows += own
        tracks += [int(track) if name in CLASSES else -1] * len(own)
        names += [CLASSES.get(name, DONT_CARE)] * len(own)
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
    objects, num_points = boxes.label < len(DETECTION_CLASSES), np.full(len(boxes), -1, np.int64)
    num_points[objects] = boxes.chosen(objects).contain(placed).sum(1)
    return replace(boxes, num_points=num_points)


def _placed(values: list[float], calibrations: Calibrations) -> list[float]:
    """Return x, y, z, length, width, height, yaw; KITTI gives the bottom's middle, in the camera."""
    height, width, length, x, y, z, turn = values[7:14]
    center = calibrations.base_from_rectified @ (x, y - height / 2, z, 1.0)
    return [*center[:3], length, width, height, -turn - np.pi / 2]


def _region(values: list[float], calibrations: Calibrations) -> list[list[float]]:
    """Return boxes over everything in the directions of a part of the picture.

    Seen from above these directions are a wedge with its tip at the camera: what stands nearer than objects
    that nobody labelled is as unknown. The boxes follow each other from the tip on, each as wide as the wedge
    is at its middle. So their area is that of the wedge, and no edge is off by more than a 16th of its width.

    The devkit of KITTI tracking forgives a detection of which more than half is in the region, as the picture
    shows it. Who asks where the middle of a detection is asks much the same, and needs no further margin.
    """
    left, top, right, bottom = values[3:7]
    edges = [_bearing(column, (top + bottom) / 2, calibrations) for column in (left, right)]
    yaw, spread = sum(edges) / 2, 2 * np.tan((edges[0] - edges[1]) / 2)
    if not spread > 0:  # or what no number stands for
        return []
    ranges = [((near + far) / 2, far - near) for near, far in pairwise(ENDS_M)]
    return [_place(calibrations, away, yaw, length, spread * away, yaw) for away, length in ranges]


def _unseen(calibrations: Calibrations, width: float) -> list[list[float]]:
    """Return boxes over all that the camera cannot see, left and right: labels exist inside its view only."""
    row = calibrations.camera_matrix[1, 2]
    left, right = (_bearing(column, row, calibrations) for column in (0.0, width - 1))
    return [
        _place(calibrations, FAR_M / 2, yaw + turn, 2 * FAR_M, FAR_M, yaw)
        for yaw, turn in ((left, np.pi / 2), (right, -np.pi / 2))
    ]


def _bearing(column: float, row: float, calibrations: Calibrations) -> float:
    """Return the direction of what a pixel shows, in base_link as seen from above."""
    ray = np.linalg.solve(calibrations.camera_matrix, (column, row, 1.0))
    ahead, aside, _ = calibrations.base_from_camera[:3, :3] @ ray
    return float(np.arctan2(aside, ahead))


def _place(
    calibrations: Calibrations, away: float, bearing: float, length: float, width: float, yaw: float
) -> list[float]:
    """Return the box whose middle is so far away from the camera in a direction; it is 10 m high."""
    x, y = calibrations.base_from_camera[:2, 3]
    return [x + away * np.cos(bearing), y + away * np.sin(bearing), 0.0, length, width, 10.0, yaw]
