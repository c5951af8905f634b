# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What a BEVFusion network sees of a frame: nuScenes as the released checkpoints were trained with it.

Their frame is that of the nuScenes LiDAR: x to the right, y ahead, the origin on the roof. Here it sits where
that LiDAR sits, however the vehicle's own is mounted, so that heights above the ground are those of the
training.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from kestrel.data.undistorter import Undistorter
from kestrel.nn.camera_geometry import CameraGeometry
from kestrel.nn.image_augmentation import ImageAugmentation
from kestrel.pipelines.fusion_frame import lidar_takes_part
from kestrel.types import Calibration, Float32Array, Float64Array, PointCloud, SensorFrame, UInt8Array

BASE_FROM_NETWORK: Final = np.array(
    [[0.0, 1.0, 0.0, 0.944], [-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.840], [0.0, 0.0, 0.0, 1.0]]
)
"""(4, 4) the nuScenes LiDAR on its vehicle, without the 1.4 degrees by which one of them leans ahead."""

SWEEPS: Final = 9
"""Earlier sweeps that the released networks were trained with."""

CLOSE_M: Final = 1.0
"""Points of earlier sweeps within this distance of their sensor, along both axes, are of the vehicle."""

INTENSITY: Final = 255.0
WIDENED: Final = 12 / 11
"""Width of the resized picture over that of the network: 1600 pixels become 768, of which 704 stay."""

_MEAN: Final = torch.tensor([0.485, 0.456, 0.406])
_DEVIATION: Final = torch.tensor([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class BEVFusionInput:
    """One frame; arguments of kestrel.models.bevfusion.BEVFusion.forward.

    images, cameras: None where no camera took part. clouds: None where no LiDAR did.
    """

    images: Tensor | None
    cameras: CameraGeometry | None
    clouds: list[Tensor] | None

    def to(self, device: torch.device) -> BEVFusionInput:
        """Return the same on a device."""
        return BEVFusionInput(
            None if self.images is None else self.images.to(device),
            None if self.cameras is None else self.cameras.to(device),
            None if self.clouds is None else [cloud.to(device) for cloud in self.clouds],
        )


def read_frame(
    frame: SensorFrame, config: Mapping[str, Any], undistort: Undistorter | None = None
) -> BEVFusionInput:
    """Return the input of a network.

    Args:
        frame: its pictures may be those of lenses that distort: the network has learned from pinholes.
        config: of the network (kestrel.models.bevfusion_config).
        undistort: keeps the tables that make pinholes of lenses from frame to frame.
    """
    encoders = config["encoders"]
    images = cameras = clouds = None
    if "camera" in encoders and frame.images:
        size: tuple[int, int] = tuple(encoders["camera"]["vtransform"]["image_size"])
        images, cameras = _cameras(frame, size, undistort or Undistorter())
    # A network of the LiDAR alone answers an empty sweep, whatever pictures come with it.
    if "lidar" in encoders and frame.cloud is not None and (lidar_takes_part(frame) or images is None):
        clouds = [_points(frame, encoders["lidar"]["voxelize"]["point_cloud_range"])]
    return BEVFusionInput(images, cameras, clouds)


def picture_augmentation(image_size: tuple[int, int], size: tuple[int, int]) -> ImageAugmentation:
    """Return how a camera's picture comes to the size of the network.

    As in the training the sky is cut off and a little of both sides. A picture that has the network's size
    already, as that of a driver which does the same, stays as it is.

    Args:
        image_size: (H, W) of the camera.
        size: (H, W) of the network.
    """
    if image_size == size:
        return ImageAugmentation(1.0, (0, 0), size)
    resize = max(WIDENED * size[1] / image_size[1], size[0] / image_size[0])
    return ImageAugmentation.evaluation(image_size, size, resize)


def _cameras(
    frame: SensorFrame, size: tuple[int, int], undistort: Undistorter
) -> tuple[Tensor, CameraGeometry]:
    network_from_base = np.linalg.inv(BASE_FROM_NETWORK)
    augmentations = [picture_augmentation(image.data.shape[:2], size) for image in frame.images.values()]
    shown = [undistort(name, image.data, frame.calibrations[name]) for name, image in frame.images.items()]
    pictures = torch.empty(len(shown), *size, 3)
    # Pillow and numpy let go of the interpreter while they work.
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(_show, augmentations, shown, pictures))
    poses, matrices = [], []
    for name in frame.images:
        calibration: Calibration = frame.calibrations[name]
        poses.append(network_from_base @ calibration.reference_from_camera)
        matrix = np.eye(4)
        matrix[:3, :3] = calibration.camera_matrix
        matrices.append(matrix)
    moved = _batch([augmentation.matrix() for augmentation in augmentations])
    geometry = CameraGeometry.from_calibration(_batch(poses), _batch(matrices), moved)
    return pictures.permute(0, 3, 1, 2)[None], geometry


def _show(augmentation: ImageAugmentation, image: UInt8Array, out: Tensor) -> None:
    """Bring a picture to the size of ``out`` (H, W, 3), the mean 0 and the deviation 1 of ImageNet."""
    shown = augmentation.apply(image)
    # Row by row, since along three channels it is slow.
    scale, shift = (1 / (255 * _DEVIATION)).repeat(out.shape[1]), (_MEAN / _DEVIATION).repeat(out.shape[1])
    rows: Float32Array = out.numpy().reshape(len(shown), -1)
    np.multiply(shown.reshape(rows.shape), scale.numpy(), out=rows)
    rows -= shift.numpy()


def _batch(matrices: list[Any]) -> Tensor:
    return torch.from_numpy(np.stack(matrices).astype(np.float32))[None]


def _points(frame: SensorFrame, point_cloud_range: list[float]) -> Tensor:
    """Return all points in range, (P, 5), the newest sweep first.

    Where there is no earlier sweep the newest one takes their places, as the released code has it.
    """
    assert frame.cloud is not None
    network_from_base = np.linalg.inv(BASE_FROM_NETWORK)
    parts = [_sweep(frame.cloud, frame.stamp_ns, network_from_base)]
    if frame.sweeps:
        parts += [_sweep(sweep, frame.stamp_ns, network_from_base) for sweep in frame.sweeps[:SWEEPS]]
    else:
        near = (np.abs(parts[0][:, :2]) < CLOSE_M).all(1)
        parts += SWEEPS * [parts[0][~near]]
    points = np.concatenate(parts)
    low, high = np.array(point_cloud_range, np.float32).reshape(2, 3)
    inside = np.ones(len(points), np.bool_)
    for axis in range(3):  # numpy is slow along three columns
        inside &= (points[:, axis] > low[axis]) & (points[:, axis] < high[axis])
    return torch.from_numpy(points.take(np.flatnonzero(inside), 0))


def _sweep(cloud: PointCloud, stamp_ns: int, network_from_base: Float64Array) -> Float32Array:
    points = np.empty((len(cloud), 5), np.float32)
    x, y, z, intensity = cloud.points.T
    # A product would wake numpy's own threads, which then delay torch's.
    for axis, (along_x, along_y, along_z, shift) in enumerate(network_from_base[:3].astype(np.float32)):
        points[:, axis] = along_x * x + along_y * y + along_z * z + shift
    points[:, 3] = intensity * INTENSITY
    points[:, 4] = (stamp_ns - cloud.stamp_ns) * 1e-9
    return points
