# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What Kestrel-Fusion sees of a frame: pictures of its size, sweeps with their ages, where pixels look."""

from __future__ import annotations

import cv2
import numpy as np

from kestrel.errors import InputError, describe
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.types import Calibration, Float32Array, Image, SensorFrame


def check_size(name: str, image: Image, calibration: Calibration) -> None:
    """Raise InputError unless the picture has the size that its calibration is for."""
    height, width = image.data.shape[:2]
    if (width, height) != (calibration.width, calibration.height):
        expected = f"{calibration.width}x{calibration.height} as calibrated"
        raise InputError(describe(f"picture of camera {name}", expected=expected, found=f"{width}x{height}"))


def lidar_takes_part(frame: SensorFrame) -> bool:
    """Return whether the LiDAR of a frame tells the network anything.

    A sweep without points says that nothing is anywhere, which outvotes what the pictures show: with pictures
    it counts as none.
    """
    return frame.cloud is not None and (len(frame.cloud) > 0 or not frame.images)


def stack_sweeps(frame: SensorFrame, sweeps: int) -> Float32Array:
    """Return the points of the current and the earlier sweeps, (P, 5) [x, y, z, intensity, age in s]."""
    if frame.cloud is None or not lidar_takes_part(frame):
        return np.zeros((0, 5), np.float32)
    clouds = frame.cloud, *frame.sweeps[:sweeps]
    stacked = np.empty((sum(len(cloud) for cloud in clouds), 5), np.float32)
    first = 0
    for cloud in clouds:
        rows = stacked[first : first + len(cloud)]
        rows[:, :4], rows[:, 4] = cloud.points, (frame.stamp_ns - cloud.stamp_ns) * 1e-9
        first += len(cloud)
    return stacked


def distance_scale(calibration: Calibration, config: FusionConfig) -> float:
    """Return how much farther away things are than they look to the network in a picture of this camera.

    Through a lens of twice the focal length they look half as far away, which no picture tells.
    """
    focal_px = calibration.camera_matrix[0, 0] * config.image_size[1] / calibration.width
    return float(focal_px / config.focal_px)


def camera_rays(calibration: Calibration, config: FusionConfig) -> tuple[Float32Array, Float32Array]:
    """Return where the feature cells of a picture look.

    Lens distortion is undone for the rays alone; the picture itself stays as it is.

    Args:
        calibration: of the part that the network sees, see kestrel.road_view.
        config: of the network.

    Returns:
        (h, w, 3) float32 displacement in the reference frame per metre of optical depth, as it looks to the
        network, at the middle of each cell, and the (3,) float32 position of the camera.
    """
    h, w = config.feature_size
    column = (np.arange(w) + 0.5) * calibration.width / w - 0.5
    row = (np.arange(h) + 0.5) * calibration.height / h - 0.5
    pixels = np.stack(np.meshgrid(column, row), -1).reshape(-1, 1, 2)
    if calibration.distortion_model == "equidistant":
        plane = cv2.fisheye.undistortPoints(pixels, calibration.camera_matrix, calibration.distortion)
    else:
        plane = cv2.undistortPoints(pixels, calibration.camera_matrix, calibration.distortion)
    optical = np.concatenate((plane.reshape(h, w, 2), np.ones((h, w, 1))), -1)
    rotation, origin = calibration.reference_from_camera[:3, :3], calibration.reference_from_camera[:3, 3]
    optical = optical * distance_scale(calibration, config)
    return (optical @ rotation.T).astype(np.float32), origin.astype(np.float32)
