# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""One nuScenes scene as a bag, from the data set as it is distributed.

Caesar et al., nuScenes: A multimodal dataset for autonomous driving, CVPR 2020. Beside the key frames (2 Hz)
come all sweeps (20 Hz) and pictures (12 Hz) between them. The stamp of a sweep is the end of its turn, that
of a picture its exposure: both are logged then. ``odom`` is where the vehicle was at the first sweep.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.spatial.transform import Rotation

from kestrel.classes import ATTRIBUTES, DETECTION_CLASSES, NO_ATTRIBUTE
from kestrel.data import messages
from kestrel.data.nuscenes import (
    NUSCENES_FROM_LIDAR,
    camera_name,
    picture_messages,
    read_picture,
    read_sweep,
)
from kestrel.data.nuscenes_tables import LIDAR, Annotation, Measurement, SceneRecord, read_scene, reference
from kestrel.data.perception_messages import objects_message
from kestrel.data.sensor_messages import cloud_message
from kestrel.errors import InputError, describe
from kestrel.types import Boxes3D, Calibration, Float64Array

CLASSES: Final = {
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}
"""Which categories the detection benchmark asks for, and as what; it leaves out all others."""

STEP_S: Final = 1.5
"""Samples of one box that are farther apart do not tell its velocity."""

Timed = tuple[int, str, Any]
"""Log time in nanoseconds, topic, message."""


def scene_messages(root: Path, *, version: str, scene: str | None) -> Iterator[Timed]:
    """Yield the messages of a scene in the order of their log times.

    Args:
        root: folder that holds ``samples``, ``sweeps`` and the folder of the tables.
        version: name of that, such as v1.0-mini.
        scene: name such as scene-0061, or None for the first one.

    Raises:
        InputError: a table or a file is missing or damaged, or there is no such scene.
    """
    record = read_scene(root, version, scene)
    moments: list[tuple[int, int, Iterator[tuple[str, Any]]]] = []
    for item in record.measurements:
        make = _sweep if item.channel == LIDAR else _picture
        moments.append((item.stamp_ns, 2 if item.channel == LIDAR else 0, make(record, item)))
    moments += [(stamp, 1, made) for stamp, made in _odometry(record)]
    moments.sort(key=lambda moment: moment[:2])
    yield moments[0][0], "/tf_static", _mounts(record, moments[0][0])
    for stamp, _, made in moments:
        for topic, message in made:
            yield stamp, topic, message


def annotated_boxes(record: SceneRecord, item: Measurement) -> Boxes3D:
    """Return the boxes of the detection classes at the key frame ``item`` of the LiDAR, in base_link."""
    base_from_global = np.linalg.inv(record.poses[item.pose].global_from_base)
    chosen = [
        annotation
        for annotation in record.annotations.values()
        if annotation.sample == item.key and annotation.category in CLASSES
    ]
    instances = dict.fromkeys(each.instance for each in record.annotations.values())
    tracks = {name: number for number, name in enumerate(instances)}
    pose = np.array([base_from_global @ each.global_from_box for each in chosen]).reshape(-1, 4, 4)
    velocity = np.array([_velocity(record, each) for each in chosen]).reshape(-1, 3)
    velocity = velocity @ base_from_global[:3, :3].T
    return Boxes3D(
        center=pose[:, :3, 3].astype(np.float32),
        size=np.array([each.size for each in chosen], np.float32).reshape(-1, 3),
        yaw=np.arctan2(pose[:, 1, 0], pose[:, 0, 0]).astype(np.float32),
        velocity=velocity[:, :2].astype(np.float32),
        label=np.array([DETECTION_CLASSES.index(CLASSES[each.category]) for each in chosen], np.int64),
        score=np.ones(len(chosen), np.float32),
        class_names=DETECTION_CLASSES,
        frame_id="base_link",
        stamp_ns=item.stamp_ns,
        track_id=np.array([tracks[each.instance] for each in chosen], np.int64),
        num_points=np.array([each.num_points for each in chosen], np.int64),
        attribute=np.array([_attribute(each) for each in chosen], np.int64),
    )


def _mounts(record: SceneRecord, stamp_ns: int) -> Any:
    mounts = {
        f"camera_{camera_name(channel)}_optical": mount.base_from_sensor
        for channel, mount in record.mounts.items()
        if channel != LIDAR
    }
    mounts = {"lidar": record.mounts[LIDAR].base_from_sensor @ NUSCENES_FROM_LIDAR, **mounts}
    return messages.tf_message(
        [messages.transform_message(mount, "base_link", child, stamp_ns) for child, mount in mounts.items()]
    )


def _sweep(record: SceneRecord, item: Measurement) -> Iterator[tuple[str, Any]]:
    """Yield a sweep and, where it is annotated, the truth: no boxes at all are known of the test part."""
    yield "/lidar/points", cloud_message(read_sweep(item.path, item.stamp_ns))
    if item.key is not None and record.annotations:
        yield "/truth/objects", objects_message(annotated_boxes(record, item))


def _picture(record: SceneRecord, item: Measurement) -> Iterator[tuple[str, Any]]:
    data, width, height = read_picture(item.path)
    if (width, height) != item.size:
        expected = f"{item.size[0]}x{item.size[1]} as in {record.folder / 'sample_data.json'}"
        raise InputError(describe(f"picture {item.path}", expected=expected, found=f"{width}x{height}"))
    mount = record.mounts[item.channel]
    assert mount.camera_matrix is not None
    calibration = Calibration(mount.camera_matrix, *item.size, mount.base_from_sensor)
    yield from picture_messages(data, calibration, camera_name(item.channel), item.stamp_ns)


def _odometry(record: SceneRecord) -> Iterator[tuple[int, Iterator[tuple[str, Any]]]]:
    """Yield stamp and messages of each pose of a sweep; velocities are centred differences of the poses."""
    poses = sorted({pose.stamp_ns: pose.global_from_base for pose in record.poses.values()}.items())
    odom_from_global = np.linalg.inv(poses[0][1])
    for index, (stamp, pose) in enumerate(poses):
        (start, before), (end, after) = poses[max(index - 1, 0)], poses[min(index + 1, len(poses) - 1)]
        linear = angular = np.full(3, np.nan)
        if end > start:
            seconds = (end - start) * 1e-9
            linear = pose[:3, :3].T @ (after[:3, 3] - before[:3, 3]) / seconds
            angular = Rotation.from_matrix(before[:3, :3].T @ after[:3, :3]).as_rotvec() / seconds
        yield stamp, _pose_messages(odom_from_global @ pose, stamp, linear, angular)


def _pose_messages(
    odom_from_base: Float64Array, stamp_ns: int, linear: Float64Array, angular: Float64Array
) -> Iterator[tuple[str, Any]]:
    transform = messages.transform_message(odom_from_base, "odom", "base_link", stamp_ns)
    yield "/tf", messages.tf_message([transform])
    yield "/odometry", messages.odometry_message(odom_from_base, stamp_ns, linear=linear, angular=angular)


def _velocity(record: SceneRecord, box: Annotation) -> Float64Array:
    """Return metres a second on the map, (3,), by the samples around that of the box; NaN where unknown."""
    around = [
        reference(record.annotations, token, record.folder, "sample_annotation") if token else box
        for token in (box.previous, box.next)
    ]
    steps = sum(other is not box for other in around)
    first, last = around
    seconds = (record.samples[last.sample] - record.samples[first.sample]) * 1e-9
    if not 0 < seconds <= steps * STEP_S:
        return np.full(3, np.nan)
    velocity: Float64Array = (last.global_from_box[:3, 3] - first.global_from_box[:3, 3]) / seconds
    return velocity


def _attribute(annotation: Annotation) -> int:
    known = (ATTRIBUTES.index(name) for name in annotation.attributes if name in ATTRIBUTES)
    return next(known, NO_ATTRIBUTE)
