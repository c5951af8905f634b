# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Frames of the fusion benchmarks are made as the fusion node makes them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from kestrel.bench.fusion_drive import FrameMessages, FrameReader, RecordedDrive
from kestrel.data.bag import deserialize, serialize
from kestrel.data.cloud_reader import read_cloud
from kestrel.data.sensor_messages import cloud_message
from kestrel.data.trajectory import Trajectory
from kestrel.data.transform_buffer import TransformBuffer
from kestrel.errors import CalibrationError
from kestrel.pipelines.fusion_engine import run_stage
from kestrel.types import Float64Array, PointCloud

START_NS = 1_700_000_000_000_000_000
STEP_S = 0.05
SPEED, TURN = 15.0, 0.6
"""m/s and rad/s: a fast curve, in which a point 40 m away is 1.5 m off after 0.05 s."""

MOUNT = np.eye(4)
MOUNT[:3, :3] = Rotation.from_euler("z", 0.5).as_matrix()
MOUNT[:3, 3] = (0.9, 0.1, 1.8)


def vehicle(time_s: float) -> Float64Array:
    """Return odom_from_base on a circle."""
    angle = TURN * time_s
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("z", angle).as_matrix()
    pose[:2, 3] = SPEED / TURN * np.array([np.sin(angle), 1 - np.cos(angle)])
    return pose


def world(number: int) -> Float64Array:
    """Return what stands around, (N, 4) homogeneous, of which every sweep sees other points."""
    points = np.random.default_rng(number).uniform((-40, -40, -2, 1), (40, 40, 4, 1), (500, 4))
    points[:, 3] = 1
    return points


def sweep(number: int) -> PointCloud:
    """Return what a LiDAR measures of the world, one point after the other."""
    at_s, times = STEP_S * number, np.linspace(0, STEP_S, 500)
    seen = [
        np.linalg.inv(vehicle(at_s + time) @ MOUNT) @ point
        for time, point in zip(times, world(number), strict=True)
    ]
    points = np.stack(seen).astype(np.float32)
    points[:, 3] = 0.5
    ring, stamp = np.zeros(500, np.uint16), START_NS + round(at_s * 1e9)
    return PointCloud(points, stamp, "lidar", ring, times.astype(np.float32))


def drive(sweeps: int, odometry: int) -> RecordedDrive:
    frames = tuple(
        FrameMessages(START_NS + round(STEP_S * number * 1e9), serialize(cloud_message(sweep(number))), {})
        for number in range(sweeps)
    )
    stamps = {START_NS + round(0.02 * number * 1e9): vehicle(0.02 * number) for number in range(odometry)}
    return RecordedDrive(frames, {}, MOUNT, Trajectory(stamps))


def reader(found: RecordedDrive) -> FrameReader:
    detector: Any = SimpleNamespace(sweeps=1, sweep_s=0.0)
    return FrameReader(found, detector)


def test_points_of_all_sweeps_are_where_they_are_from_the_vehicle_at_the_stamp_of_the_frame() -> None:
    frame = reader(drive(3, 20)).read(2, run_stage)
    assert frame.cloud is not None
    assert len(frame.sweeps) == 1
    base_from_odom = np.linalg.inv(vehicle(2 * STEP_S))
    for number, cloud in ((2, frame.cloud), (1, *frame.sweeps)):
        expected = (world(number) @ base_from_odom.T)[:, :3]
        assert cloud.frame_id == "base_link"
        assert np.linalg.norm(cloud.points[:, :3] - expected, axis=1).max() < 0.02
        assert (cloud.points[:, 3] == 0.5).all()


def test_the_motion_within_a_sweep_is_undone_as_in_the_node() -> None:
    nodes = pytest.importorskip("kestrel_nodes.deskew")
    found = drive(2, 20)
    buffer = TransformBuffer()
    rotation = Rotation.from_matrix(MOUNT[:3, :3]).as_quat().tolist()
    buffer.add("base_link", "lidar", 0, tuple(MOUNT[:3, 3].tolist()), tuple(rotation), static=True)
    for number in range(20):
        pose = vehicle(0.02 * number)
        turn, place = Rotation.from_matrix(pose[:3, :3]).as_quat().tolist(), pose[:3, 3].tolist()
        buffer.add("odom", "base_link", START_NS + round(0.02 * number * 1e9), tuple(place), tuple(turn))
    message = deserialize(found.frames[1].cloud, "sensor_msgs/msg/PointCloud2")
    expected, told = nodes.Deskewer(buffer, "odom")(read_cloud(message).cloud)
    assert told.outcome == "on"
    np.testing.assert_allclose(reader(found)._decoded[1].points, expected.points, atol=1e-4)


def test_a_drive_whose_odometry_ends_too_early_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"odometry at \d+ ns: expected one, found none"):
        reader(drive(2, 3))
