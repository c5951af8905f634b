# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""One nuScenes scene as a bag, from the data set as it is distributed.

Caesar et al., nuScenes: A multimodal dataset for autonomous driving, CVPR 2020. Beside the key frames (2 Hz)
come all sweeps (20 Hz) and pictures (12 Hz) between them. The stamp of a sweep is the end of its turn, that
of a picture its exposure: both are logged then. ``odom`` is where the vehicle was at the first sweep, ``map``
the frame of the data set's maps.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
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
from kestrel.data.nuscenes_map import NuScenesMap, has_maps, map_file
from kestrel.data.nuscenes_samples import MAP_FRAME, SAMPLES_TOPIC, Rack, Sample, samples_message
from kestrel.data.nuscenes_tables import (
    LIDAR,
    Annotation,
    Measurement,
    SceneRecord,
    location,
    read_scene,
    reference,
)
from kestrel.data.perception_messages import map_messages, objects_message
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

RACK: Final = "static_object.bicycle_rack"
"""Inside of these the benchmark counts no cycle."""

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
    truth_map = _truth_map(root, record)
    moments: list[tuple[int, int, Iterator[tuple[str, Any]]]] = []
    for item in record.measurements:
        if item.channel == LIDAR:
            moments.append((item.stamp_ns, 2, _sweep(record, item, truth_map)))
        else:
            moments.append((item.stamp_ns, 0, _picture(record, item)))
    moments += [(stamp, 1, made) for stamp, made in _odometry(record)]
    moments.sort(key=lambda moment: moment[:2])
    yield moments[0][0], "/tf_static", _mounts(record, moments[0][0])
    yield moments[0][0], SAMPLES_TOPIC, samples_message(scene_samples(record))
    for stamp, _, made in moments:
        for topic, message in made:
            yield stamp, topic, message


def scene_samples(record: SceneRecord) -> Iterator[Sample]:
    """Yield what is kept of the samples of a scene, in the order of their sweeps."""
    pictures: dict[str, dict[str, int]] = {}
    for item in record.measurements:
        if item.key is not None and item.channel != LIDAR:
            pictures.setdefault(item.key, {})[camera_name(item.channel)] = item.stamp_ns
    for item in record.measurements:
        if item.key is not None and item.channel == LIDAR:
            attributes = annotated_boxes(record, item).attribute
            assert attributes is not None
            yield Sample(
                item.key,
                item.stamp_ns,
                pictures.get(item.key, {}),
                tuple("" if index == NO_ATTRIBUTE else ATTRIBUTES[index] for index in attributes.tolist()),
                tuple(_racks(record, item)),
            )


def _racks(record: SceneRecord, item: Measurement) -> Iterator[Rack]:
    base_from_global = np.linalg.inv(record.poses[item.pose].global_from_base)
    for rack in _annotated(record, item, (RACK,)):
        pose = base_from_global @ rack.global_from_box
        x, y, z = pose[:3, 3].tolist()
        length, width, height = rack.size.tolist()
        yield x, y, z, length, width, height, math.atan2(pose[1, 0], pose[0, 0])


def _annotated(record: SceneRecord, item: Measurement, categories: Collection[str]) -> list[Annotation]:
    """Return what is annotated of some categories at the key frame ``item``."""
    return [
        annotation
        for annotation in record.annotations.values()
        if annotation.sample == item.key and annotation.category in categories
    ]


def annotated_boxes(record: SceneRecord, item: Measurement) -> Boxes3D:
    """Return the boxes of the detection classes at the key frame ``item`` of the LiDAR, in base_link."""
    base_from_global = np.linalg.inv(record.poses[item.pose].global_from_base)
    chosen = _annotated(record, item, CLASSES)
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
        [
            messages.transform_message(_global_from_odom(record), MAP_FRAME, "odom", stamp_ns),
            *(messages.transform_message(at, "base_link", child, stamp_ns) for child, at in mounts.items()),
        ]
    )


def _truth_map(root: Path, record: SceneRecord) -> NuScenesMap | None:
    """Return the map of the place of a scene, None where the data set comes without its map expansion."""
    if not has_maps(root):
        return None
    return NuScenesMap(map_file(root, location(record)))


def _sweep(
    record: SceneRecord, item: Measurement, truth_map: NuScenesMap | None
) -> Iterator[tuple[str, Any]]:
    """Yield a sweep and, at a key frame, the truth: no boxes at all are known of the test part.

    The map is about base_link as that of every recording, and once more about the LiDAR, on the grid on which
    the released networks answer: one is no multiple of cells away from the other.
    """
    yield "/lidar/points", cloud_message(read_sweep(item.path, item.stamp_ns))
    if item.key is not None and record.annotations:
        yield "/truth/objects", objects_message(annotated_boxes(record, item))
    if item.key is not None and truth_map is not None:
        global_from_base = record.poses[item.pose].global_from_base
        centers = {
            "map": np.linalg.inv(NUSCENES_FROM_LIDAR),
            "lidar_map": record.mounts[LIDAR].base_from_sensor,
        }
        for kind, base_from_center in centers.items():
            bev = truth_map.around(global_from_base @ base_from_center, base_from_center, item.stamp_ns)
            for name, message in map_messages(bev).items():
                yield f"/truth/{kind}/{name}", message


def _picture(record: SceneRecord, item: Measurement) -> Iterator[tuple[str, Any]]:
    data, width, height = read_picture(item.path)
    if (width, height) != item.size:
        expected = f"{item.size[0]}x{item.size[1]} as in {record.folder / 'sample_data.json'}"
        raise InputError(describe(f"picture {item.path}", expected=expected, found=f"{width}x{height}"))
    mount = record.mounts[item.channel]
    assert mount.camera_matrix is not None
    calibration = Calibration(mount.camera_matrix, *item.size, mount.base_from_sensor)
    yield from picture_messages(data, calibration, camera_name(item.channel), item.stamp_ns)


def _global_from_odom(record: SceneRecord) -> Float64Array:
    first = next(item for item in record.measurements if item.channel == LIDAR)
    return record.poses[first.pose].global_from_base


def _odometry(record: SceneRecord) -> Iterator[tuple[int, Iterator[tuple[str, Any]]]]:
    """Yield stamp and messages of each pose of a sweep; velocities are centred differences of the poses.

    A picture that was taken before them tells by /tf alone where the vehicle was.
    """
    odom_from_global = np.linalg.inv(_global_from_odom(record))
    first = record.measurements[0]
    if first.channel != LIDAR:
        pose = odom_from_global @ record.poses[first.pose].global_from_base
        yield first.stamp_ns, iter([("/tf", _moving(pose, first.stamp_ns))])
    sweeps = [record.poses[item.pose] for item in record.measurements if item.channel == LIDAR]
    poses = sorted({pose.stamp_ns: pose.global_from_base for pose in sweeps}.items())
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
    yield "/tf", _moving(odom_from_base, stamp_ns)
    yield "/odometry", messages.odometry_message(odom_from_base, stamp_ns, linear=linear, angular=angular)


def _moving(odom_from_base: Float64Array, stamp_ns: int) -> Any:
    transform = messages.transform_message(odom_from_base, "odom", "base_link", stamp_ns)
    return messages.tf_message([transform])


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
