# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Sensor data that needs no simulator."""

from __future__ import annotations

import numpy as np
import pytest

from kestrel.types import Calibration, Image, PointCloud, SensorFrame

SIZE = (704, 256)


def make_cloud(count: int = 4000, seed: int = 0, stamp_ns: int = 0) -> PointCloud:
    random = np.random.default_rng(seed)
    points = random.normal(0, (15, 15, 0.7, 0.2), (count, 4)).astype(np.float32)
    points[:, 3] = np.abs(points[:, 3]).clip(0, 1)
    return PointCloud(points, stamp_ns, "base_link")


def make_image(seed: int = 0, stamp_ns: int = 0, frame_id: str = "camera_front_optical") -> Image:
    random = np.random.default_rng(seed)
    return Image(random.integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8), stamp_ns, frame_id)


def make_calibration(yaw: float = 0.0) -> Calibration:
    reference_from_camera = np.eye(4)
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    reference_from_camera[:3, :3] = turn @ np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    reference_from_camera[:3, 3] = (1.5, 0, 1.6)
    matrix = np.array([[560.0, 0, 352], [0, 560, 128], [0, 0, 1]])
    return Calibration(matrix, *SIZE, reference_from_camera)


def make_frame(*, lidar: bool = True, cameras: int = 2) -> SensorFrame:
    names = [f"camera{number}" for number in range(cameras)]
    return SensorFrame(
        stamp_ns=200_000_000,
        frame_id="base_link",
        cloud=make_cloud(stamp_ns=200_000_000) if lidar else None,
        images={name: make_image(number) for number, name in enumerate(names)},
        calibrations={name: make_calibration(1.0 * number) for number, name in enumerate(names)},
        sweeps=(make_cloud(seed=1, stamp_ns=100_000_000),) if lidar else (),
    )


@pytest.fixture
def cloud() -> PointCloud:
    return make_cloud()
