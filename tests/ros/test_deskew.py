# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Motion within a sweep, undone: against a sweep that was measured point by point on a moving vehicle."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from kestrel.data.transform_buffer import TransformBuffer
from kestrel.types import Float64Array, PointCloud
from kestrel_nodes.deskew import Deskewed, Deskewer
from kestrel_nodes.health import Concern

START_NS = 1_700_000_000_000_000_000
SPEED, TURN = 15.0, 0.6
"""m/s and rad/s: a fast curve, in which a point 40 m away is 3 m off after 0.1 s."""


def pose(time_s: float) -> Float64Array:
    """Return odom_from_lidar on a circle."""
    angle = TURN * time_s
    transform = np.eye(4)
    transform[:3, :3] = Rotation.from_euler("z", angle).as_matrix()
    transform[:2, 3] = SPEED / TURN * np.array([np.sin(angle), 1 - np.cos(angle)])
    return transform


def odometry(*times_s: float) -> TransformBuffer:
    buffer = TransformBuffer()
    for time_s in times_s:
        x, y, z, w = Rotation.from_matrix(pose(time_s)[:3, :3]).as_quat().tolist()
        place = tuple(pose(time_s)[:3, 3].tolist())
        buffer.add("odom", "lidar", START_NS + round(time_s * 1e9), place, (x, y, z, w))
    return buffer


def moving_sweep(at_s: float, times_s: Float64Array) -> tuple[PointCloud, Float64Array]:
    """Return a sweep of a world that stands still, and where its points are from the pose at the stamp."""
    world = np.random.default_rng(0).uniform((-40, -40, -2, 1), (40, 40, 4, 1), (len(times_s), 4))
    world[:, 3] = 1
    measured = np.stack(
        [np.linalg.inv(pose(at_s + t)) @ p for t, p in zip(times_s, world, strict=True)]
    ).astype(np.float32)
    measured[:, 3] = 0.5
    stamp = START_NS + round(at_s * 1e9)
    cloud = PointCloud(measured, stamp, "lidar", None, times_s.astype(np.float32))
    return cloud, (world @ np.linalg.inv(pose(at_s)).T)[:, :3]


@pytest.mark.parametrize(("first", "last"), [(0.0, 0.1), (-0.1, 0.0), (-0.05, 0.05)])
def test_points_go_where_they_are_from_the_pose_at_the_stamp(first: float, last: float) -> None:
    cloud, expected = moving_sweep(0.5, np.random.default_rng(1).uniform(first, last, 400))
    assert np.linalg.norm(cloud.points[:, :3] - expected, axis=1).max() > 1.0
    corrected, _ = Deskewer(odometry(*np.arange(0, 1, 0.02)), "odom")(cloud)
    assert np.linalg.norm(corrected.points[:, :3] - expected, axis=1).max() < 0.01
    assert (corrected.points[:, 3] == 0.5).all()


def test_end_of_the_sweep_before_its_odometry_is_expected_from_the_motion_so_far() -> None:
    cloud, expected = moving_sweep(0.5, np.linspace(0, 0.1, 200))
    corrected, _ = Deskewer(odometry(*np.arange(0, 0.501, 0.02)), "odom")(cloud)
    assert np.linalg.norm(corrected.points[:, :3] - expected, axis=1).max() < 0.05


def test_without_odometry_the_sweep_stays_as_it_is_and_that_is_said() -> None:
    cloud, _ = moving_sweep(0.5, np.linspace(0, 0.1, 10))
    concern = Concern("calibration")
    same, deskewed = Deskewer(TransformBuffer(), "odom")(cloud)
    assert same is cloud
    deskewed.report(concern)
    status = concern.publish()
    assert status.level == 1
    assert "odom <- lidar" in status.message


def test_sweep_without_times_and_switched_off_correction_are_no_faults() -> None:
    cloud, _ = moving_sweep(0.5, np.linspace(0, 0.1, 10))
    timeless = PointCloud(cloud.points, cloud.stamp_ns, "lidar")
    on, off = Deskewer(TransformBuffer(), "odom"), Deskewer(TransformBuffer(), "odom", enabled=False)
    assert on(timeless) == (timeless, Deskewed("no time per point"))
    assert off(cloud) == (cloud, Deskewed("off"))
