# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The bag that tests of `kestrel replay` play."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kestrel.data import messages, sensor_messages
from kestrel.data.bag import BagWriter
from kestrel.types import PointCloud

EPOCH = 1_700_000_000 * 10**9


def drive(path: Path, sweeps: int, points: int = 20000) -> Path:
    """Write a bag with 10 sweeps per second, ten IMU messages per sweep, latched TF and truth."""
    random = np.random.default_rng(0)
    with BagWriter(path) as bag:
        bag.write("/tf_static", messages.tf_message([]), EPOCH)
        for sweep in range(sweeps):
            stamp = EPOCH + sweep * 10**8
            cloud = PointCloud(random.random((points, 4), np.float32), stamp, "lidar")
            bag.write("/lidar/points", sensor_messages.cloud_message(cloud), stamp)
            truth = messages.classification_message({"clear": 1.0}, stamp, "camera_front_optical")
            bag.write("/truth/event", truth, stamp)
            for step in range(10):
                at = stamp + step * 10**7
                imu = messages.imu_message(at, angular_velocity=(0, 0, 0), linear_acceleration=(0, 0, 9.8))
                bag.write("/imu", imu, at)
    return path
