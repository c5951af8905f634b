# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A frame with nothing to see, so that the first real one does not pay for the start of the network."""

from __future__ import annotations

import numpy as np

from kestrel.types import Calibration, Image, PointCloud, SensorFrame

WIDTH, HEIGHT = 704, 256


def warm_up_frame(cameras: tuple[str, ...], *, use_lidar: bool) -> SensorFrame:
    """Return a frame of every sensor: black pictures all around, flat ground below."""
    images, calibrations = {}, {}
    for index, name in enumerate(cameras):
        yaw = 2 * np.pi * index / len(cameras)
        forward = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
        pose = np.eye(4)
        pose[:3, :3] = np.stack((right, (0.0, 0.0, -1.0), forward), axis=1)
        pose[:3, 3] = (0.0, 0.0, 1.6)
        focal = 0.8 * WIDTH
        matrix = np.array([[focal, 0, WIDTH / 2], [0, focal, HEIGHT / 2], [0, 0, 1]])
        images[name] = Image(np.zeros((HEIGHT, WIDTH, 3), np.uint8), 1, f"camera_{name}_optical")
        calibrations[name] = Calibration(matrix, WIDTH, HEIGHT, pose)
    cloud = None
    if use_lidar:
        x, y = np.meshgrid(np.linspace(-40, 40, 100), np.linspace(-40, 40, 100))
        ground = np.stack((x.ravel(), y.ravel(), np.zeros(x.size), np.full(x.size, 0.2)), axis=1)
        cloud = PointCloud(ground.astype(np.float32), 1, "base_link")
    return SensorFrame(1, "base_link", cloud, images, calibrations)
