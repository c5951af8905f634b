# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Frames of nuScenes in the frame of its LiDAR, in which the released networks were trained and are scored.

That LiDAR leans ahead, one by 1.4 degrees: forty metres ahead that is a metre of height. The pipeline of a
released network takes it for upright, since that of a robot is mounted in another way. Where the LiDAR is
that of nuScenes it need not.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kestrel.data.nuscenes import NUSCENES_FROM_LIDAR
from kestrel.pipelines.bevfusion_frame import BASE_FROM_NETWORK
from kestrel.types import Boxes3D, Calibration, Float64Array, PointCloud, SensorFrame


def leaning_from_base(base_from_lidar: Float64Array) -> Float64Array:
    """Return the (4, 4) transform into a base_link that leans as the LiDAR does.

    In it the network sees the data as of the LiDAR.

    Args:
        base_from_lidar: (4, 4) of the LiDAR of nuScenes with x ahead, as its recordings have it.
    """
    return np.asarray(BASE_FROM_NETWORK @ NUSCENES_FROM_LIDAR @ np.linalg.inv(base_from_lidar), np.float64)


def moved_frame(frame: SensorFrame, to_from_frame: Float64Array) -> SensorFrame:
    """Return a frame with everything in it where another (4, 4) reference frame sees it, of the same name."""

    def cloud(old: PointCloud) -> PointCloud:
        return old.moved(to_from_frame, old.frame_id)

    def camera(old: Calibration) -> Calibration:
        return replace(old, reference_from_camera=to_from_frame @ old.reference_from_camera)

    pose = frame.fixed_from_reference
    return replace(
        frame,
        cloud=None if frame.cloud is None else cloud(frame.cloud),
        sweeps=tuple(cloud(sweep) for sweep in frame.sweeps),
        calibrations={name: camera(old) for name, old in frame.calibrations.items()},
        fixed_from_reference=None if pose is None else pose @ np.linalg.inv(to_from_frame),
    )


def moved_boxes(boxes: Boxes3D, to_from_boxes: Float64Array) -> Boxes3D:
    """Return boxes as of another (4, 4) reference frame, of the same name, whose z is nearly up, too."""
    turn = to_from_boxes[:3, :3]
    ahead = np.stack((np.cos(boxes.yaw), np.sin(boxes.yaw), np.zeros_like(boxes.yaw)), 1) @ turn.T
    velocity = np.pad(boxes.velocity, ((0, 0), (0, 1))) @ turn.T
    return replace(
        boxes,
        center=(boxes.center @ turn.T + to_from_boxes[:3, 3]).astype(np.float32),
        yaw=np.arctan2(ahead[:, 1], ahead[:, 0]).astype(np.float32),
        velocity=velocity[:, :2].astype(np.float32),
    )
