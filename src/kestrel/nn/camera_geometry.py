# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Where the pixels of every camera look, for networks that lift image features into space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CameraGeometry:
    """The calibration of B samples of N cameras, and the augmentations of their data.

    reference_from_camera: (B, N, 4, 4) optical camera frame into the frame of the map (metres).
    intrinsics: (B, N, 4, 4) or (B, N, 3, 3) camera matrix in pixels of the original picture.
    image_from_reference: (B, N, 4, 4) projection into the original picture: intrinsics @
        camera_from_reference.
    image_augmentation: (B, N, 4, 4) pixel of the original picture to pixel of the network input (resize,
        crop, ...).
    cloud_augmentation: (B, 4, 4) applied to the point cloud (and so to the map): rotation * scale and
        translation.
    present: (B, N) bool, False for a camera that took no part; None if all did.
    """

    reference_from_camera: Tensor
    intrinsics: Tensor
    image_from_reference: Tensor
    image_augmentation: Tensor
    cloud_augmentation: Tensor
    present: Tensor | None = None

    @classmethod
    def from_calibration(
        cls,
        reference_from_camera: Tensor,
        intrinsics: Tensor,
        image_augmentation: Tensor | None = None,
        cloud_augmentation: Tensor | None = None,
        present: Tensor | None = None,
    ) -> CameraGeometry:
        """Derive the projection; an augmentation that is not given is the identity."""
        identity = torch.eye(4, dtype=intrinsics.dtype, device=intrinsics.device)
        camera_matrix = identity.expand_as(reference_from_camera).clone()
        camera_matrix[..., :3, :3] = intrinsics[..., :3, :3]
        if image_augmentation is None:
            image_augmentation = identity.expand_as(reference_from_camera)
        if cloud_augmentation is None:
            cloud_augmentation = identity.expand(len(intrinsics), 4, 4)
        projection = camera_matrix @ torch.linalg.inv(reference_from_camera)
        return cls(
            reference_from_camera, intrinsics, projection, image_augmentation, cloud_augmentation, present
        )

    def to(self, device: torch.device) -> CameraGeometry:
        """Return the same on a device."""
        return CameraGeometry(
            self.reference_from_camera.to(device),
            self.intrinsics.to(device),
            self.image_from_reference.to(device),
            self.image_augmentation.to(device),
            self.cloud_augmentation.to(device),
            None if self.present is None else self.present.to(device),
        )


def frustum_points(frustum: Tensor, cameras: CameraGeometry) -> Tensor:
    """Place the frustum of every camera in the (augmented) reference frame (Philion and Fidler 2020, 3.1).

    Args:
        frustum: (D, H, W, 3) pixel column, pixel row of the network input and depth along the optical axis,
            metres.
        cameras: of B samples with N cameras.

    Returns:
        (B, N, D, H, W, 3) metres.
    """
    undo = torch.linalg.inv(cameras.image_augmentation[..., :3, :3])
    shift = cameras.image_augmentation[..., :3, 3]
    points = _rotate(undo, frustum - _per_point(shift))
    depth = points[..., 2:]
    rays = torch.cat((points[..., :2] * depth, depth), dim=-1)
    pose = cameras.reference_from_camera
    unproject = pose[..., :3, :3] @ torch.linalg.inv(cameras.intrinsics[..., :3, :3])
    placed = _rotate(unproject, rays) + _per_point(pose[..., :3, 3])
    augment = cameras.cloud_augmentation[:, None]
    return _rotate(augment[..., :3, :3], placed) + _per_point(augment[..., :3, 3])


def frustum_rays(frustum: Tensor, cameras: CameraGeometry) -> tuple[Tensor, Tensor]:
    """Return the same points as rays: each is at origin + ray * depth.

    The augmentation of pictures changes columns and rows alone, so that a pixel has one ray at all depths.

    Args:
        frustum: (D, H, W, 3) as of ``frustum_points``; all depths have the same pixels.
        cameras: of B samples with N cameras.

    Returns:
        (B, N, H, W, 3) metres per metre of depth and (B, N, 3) metres.
    """
    turn, shift = cameras.image_augmentation[..., :2, :2], cameras.image_augmentation[..., :2, 3]
    pixels = frustum[0, ..., :2] - shift[:, :, None, None, :]
    plane = torch.einsum("bnij,bnhwj->bnhwi", torch.linalg.inv(turn), pixels)
    optical = torch.cat((plane, torch.ones_like(plane[..., :1])), -1)
    pose, augment = cameras.reference_from_camera, cameras.cloud_augmentation[:, None]
    unproject = pose[..., :3, :3] @ torch.linalg.inv(cameras.intrinsics[..., :3, :3])
    rays = torch.einsum("bnij,bnhwj->bnhwi", augment[..., :3, :3] @ unproject, optical)
    origins = (augment[..., :3, :3] @ pose[..., :3, 3:])[..., 0] + augment[..., :3, 3]
    return rays, origins


def _rotate(matrix: Tensor, points: Tensor) -> Tensor:
    """Apply (B, N, 3, 3) to (B, N, D, H, W, 3)."""
    return torch.einsum("bnij,bndhwj->bndhwi", matrix.expand(*points.shape[:2], 3, 3), points)


def _per_point(vector: Tensor) -> Tensor:
    return vector[:, :, None, None, None, :]


def depth_images(clouds: Sequence[Tensor], cameras: CameraGeometry, image_size: tuple[int, int]) -> Tensor:
    """Project point clouds into the network's pictures (BEVDepth / BEVFusion "depth-aware" input).

    Pixels without a point are 0. Like the released code this keeps the sign of the depth and clamps it for
    the division only; where several points fall into a pixel the nearest one wins.

    Args:
        clouds: per sample (P, >= 3) points in the (augmented) reference frame, metres.
        cameras: of B samples with N cameras.
        image_size: (H, W) of the network input.

    Returns:
        (B, N, 1, H, W) depth along the optical axis of the original camera, metres.
    """
    height, width = image_size
    batch, count = cameras.intrinsics.shape[:2]
    images = cameras.intrinsics.new_full((batch, count, height * width), torch.inf)
    for sample, cloud in enumerate(clouds):
        augment = cameras.cloud_augmentation[sample]
        points = (cloud[:, :3] - augment[:3, 3]) @ torch.linalg.inv(augment[:3, :3]).T
        project, resize = cameras.image_from_reference[sample], cameras.image_augmentation[sample]
        # All points along one row: products of three columns take torch many times as long.
        camera = project[:, :3, :3] @ points.T + project[:, :3, 3:]
        depth = camera[:, 2]
        away = depth.clamp(1e-5, 1e5)
        x, y = camera[:, 0] / away, camera[:, 1] / away
        shift = resize[:, :2, 2] + resize[:, :2, 3]
        column, row = (
            x * resize[:, axis, 0, None] + y * resize[:, axis, 1, None] + shift[:, axis, None]
            for axis in range(2)
        )
        seen = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        target = torch.where(seen, row.long() * width + column.long(), 0)
        value = torch.where(seen, depth, torch.inf)
        images[sample].scatter_reduce_(1, target, value, "amin")
    images = images.masked_fill(images.isinf(), 0)
    return images.view(batch, count, 1, height, width)
