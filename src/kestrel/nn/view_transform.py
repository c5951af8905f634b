# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Camera features to a bird's-eye-view map: lift, splat, downsample.

Philion and Fidler 2020 (LSS) with the depth-aware variant of BEVFusion (Liu et al. 2022); names of
parameters and buffers are those of the released checkpoints. BEV tensors are (B, C, X, Y).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from kestrel.errors import ModelError, describe
from kestrel.nn.camera_geometry import CameraGeometry, depth_images, frustum_points, frustum_rays
from kestrel.nn.conv import conv_bn_relu
from kestrel.ops.bev_pool import lift_splat
from kestrel.ops.frustum import BevGrid, FrustumRays, LiftSplatIndex

Bound: TypeAlias = Sequence[float]
"""Lower end, upper end, step; metres. The number of cells is truncated, never rounded up."""

CONSTANTS: Final = ("dx", "bx", "nx", "frustum")
"""What checkpoints hold beside weights: size and middle of the first cell, number of cells, frustum."""

TOLERANCE: Final = 1e-3
"""By which they may differ from what the configuration says, relative to it: float16 has half of that."""


def cells_of(bound: Bound) -> int:
    """Return the number of cells of a bound."""
    lower, upper, step = bound
    return int((upper - lower) / step)


class LSSTransform(nn.Module):
    """Lift image features with a predicted depth distribution and sum them per cell.

    Args:
        in_channels: of the image features.
        out_channels: of the map.
        image_size: (H, W) of the network's pictures.
        feature_size: (H, W) of the image features.
        xbound, ybound, zbound: grid of the pooling.
        dbound: depths of the frustum; the upper end is excluded.
        downsample: stride of the convolutions after the pooling; 1 leaves them out.
    """

    dx: Tensor
    bx: Tensor
    nx: Tensor
    frustum: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        image_size: tuple[int, int],
        feature_size: tuple[int, int],
        xbound: Bound,
        ybound: Bound,
        zbound: Bound,
        dbound: Bound,
        downsample: int = 1,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.image_size = image_size
        bounds = (xbound, ybound, zbound)
        self.grid_shape = (cells_of(xbound), cells_of(ybound), cells_of(zbound))
        self.register_buffer("dx", torch.tensor([bound[2] for bound in bounds], dtype=torch.float32))
        self.register_buffer(
            "bx", torch.tensor([bound[0] + bound[2] / 2 for bound in bounds], dtype=torch.float32)
        )
        self.register_buffer("nx", torch.tensor(self.grid_shape))
        self.register_buffer("frustum", _frustum(image_size, feature_size, dbound))
        self.num_depths = len(self.frustum)
        self.depthnet: nn.Module = self._depthnet()
        self.downsample: nn.Module = nn.Identity()
        if downsample > 1:
            channels = out_channels * self.grid_shape[2]
            self.downsample = nn.Sequential(
                *conv_bn_relu(channels, out_channels, 3),
                *conv_bn_relu(out_channels, out_channels, 3, stride=downsample),
                *conv_bn_relu(out_channels, out_channels, 3),
            )

    def _depthnet(self) -> nn.Module:
        return nn.Conv2d(self.in_channels, self.num_depths + self.out_channels, 1)

    def points(self, cameras: CameraGeometry) -> Tensor:
        """Return where every point of the frustums is: (B, N, D, H, W, 3) metres."""
        with _without_rounding(self.frustum):
            return frustum_points(self.frustum, cameras)

    def index(self, cameras: CameraGeometry) -> LiftSplatIndex:
        """Assign the frustum points to cells; worth keeping for as long as the calibration stays."""
        x, y, z = (self.bx - self.dx / 2).tolist()
        grid = BevGrid((x, y, z), tuple(self.dx.tolist()), self.grid_shape, truncated=True)
        with _without_rounding(self.frustum):
            rays, origins = frustum_rays(self.frustum, cameras)
        batch, count = origins.shape[:2]
        frames = torch.arange(batch, device=rays.device)[:, None].expand(batch, count)
        if cameras.present is not None:
            frames = frames.masked_fill(~cameras.present, -1)
        depths = self.frustum[:, 0, 0, 2]
        flat = FrustumRays(rays.flatten(0, 1), origins.flatten(0, 1), depths, frames.flatten())
        return LiftSplatIndex.along(flat, grid, batch)

    def lift(
        self, features: Tensor, cameras: CameraGeometry, clouds: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predict the depth distribution and the context of every pixel.

        Args:
            features: (B, N, C, H, W) image features.
            cameras: their calibration.
            clouds: as in forward.

        Returns:
            (B * N, D, H, W) probabilities over the depths and (B * N, out_channels, H, W) context.
        """
        pictures = self.depth_images(features, cameras, clouds)
        depth = None if pictures is None else self.depth_features(pictures)
        logits, context = self.predict(features.flatten(0, 1), depth)
        return self.distribution(logits), context

    def depth_images(
        self, features: Tensor, cameras: CameraGeometry, clouds: Sequence[Tensor] | None
    ) -> Tensor | None:
        """Return the pictures that depth_features wants, (B * N, 1, H, W) metres; None: it wants none."""
        return None

    def depth_features(self, pictures: Tensor) -> Tensor | None:
        """Return what predict wants of depth pictures, (B * N, 64, h, w); None: it wants nothing."""
        return None

    def predict(self, features: Tensor, depth: Tensor | None) -> tuple[Tensor, Tensor]:
        """Do the dense part of lift, which may be in bfloat16.

        Args:
            features: (B * N, C, H, W).
            depth: what depth_features returned.

        Returns:
            (B * N, D, H, W) logits of the depths and (B * N, out_channels, H, W) context.
        """
        return self._split(self.depthnet(features))

    @staticmethod
    def distribution(logits: Tensor) -> Tensor:
        """(B * N, D, H, W) logits to probabilities, float32 at least."""
        wide = torch.promote_types(logits.dtype, torch.float32)
        return logits.to(wide).softmax(dim=1)

    def _split(self, prediction: Tensor) -> tuple[Tensor, Tensor]:
        depth, context = torch.split(prediction, [self.num_depths, self.out_channels], dim=1)
        return depth, context

    def splat(self, depth: Tensor, context: Tensor, index: LiftSplatIndex) -> Tensor:
        """Sum what lift returned over the cells: (B, nz * C, nx, ny) at full resolution."""
        return lift_splat(depth, context, index)

    def check_constants(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Look at the CONSTANTS among weights, whose names begin with ``prefix``.

        Raises:
            ModelError: one is not what the configuration says: the weights are of another grid or picture.
        """
        for name in CONSTANTS:
            given, own = state.get(prefix + name), getattr(self, name)
            if given is not None and given.shape == own.shape and not (given.is_meta or own.is_meta):
                _refuse_other(prefix + name, given, own)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        self.check_constants(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(
        self,
        features: Tensor,
        cameras: CameraGeometry,
        clouds: Sequence[Tensor] | None = None,
        index: LiftSplatIndex | None = None,
    ) -> Tensor:
        """Transform the features of all cameras into one map.

        Args:
            features: (B, N, C, H, W) image features.
            cameras: their calibration.
            clouds: per sample (P, >= 3) points in the augmented reference frame; used by the depth-aware
                variant.
            index: what ``index(cameras)`` returned; computed if not given.

        Returns:
            (B, out_channels, X, Y).
        """
        depth, context = self.lift(features, cameras, clouds)
        pooled = self.splat(depth, context, self.index(cameras) if index is None else index)
        out: Tensor = self.downsample(pooled)
        return out


class DepthLSSTransform(LSSTransform):
    """LSS that also sees the depth of the LiDAR points in each picture (one channel, metres)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        image_size: tuple[int, int],
        feature_size: tuple[int, int],
        xbound: Bound,
        ybound: Bound,
        zbound: Bound,
        dbound: Bound,
        downsample: int = 1,
    ) -> None:
        super().__init__(
            in_channels, out_channels, image_size, feature_size, xbound, ybound, zbound, dbound, downsample
        )
        quarter = image_size[0] // feature_size[0] // 4
        self.dtransform = nn.Sequential(
            *conv_bn_relu(1, 8, 1, bias=True),
            *conv_bn_relu(8, 32, 5, stride=4, bias=True),
            *conv_bn_relu(32, 64, 5, stride=quarter, bias=True),
        )

    def _depthnet(self) -> nn.Module:
        channels = self.in_channels
        return nn.Sequential(
            *conv_bn_relu(channels + 64, channels, 3, bias=True),
            *conv_bn_relu(channels, channels, 3, bias=True),
            nn.Conv2d(channels, self.num_depths + self.out_channels, 1),
        )

    def depth_images(
        self, features: Tensor, cameras: CameraGeometry, clouds: Sequence[Tensor] | None
    ) -> Tensor:
        """See LSSTransform.depth_images; without clouds the depth pictures are empty."""
        empty = self.frustum.new_zeros(0, 3)
        clouds = [empty] * len(features) if clouds is None else clouds
        with _without_rounding(features):
            return depth_images(clouds, cameras, self.image_size).flatten(0, 1)

    def depth_features(self, pictures: Tensor) -> Tensor:
        """See LSSTransform.depth_features; not in bfloat16, which has steps of 0.25 m from 32 m on."""
        with _without_rounding(pictures):
            features: Tensor = self.dtransform(pictures)
        return features

    def predict(self, features: Tensor, depth: Tensor | None) -> tuple[Tensor, Tensor]:
        """See LSSTransform.predict."""
        assert depth is not None
        return self._split(self.depthnet(torch.cat((depth.to(features.dtype), features), dim=1)))


def _without_rounding(tensor: Tensor) -> torch.autocast:
    """Return the context in which geometry is computed: autocast would round metres and pixels."""
    return torch.autocast(tensor.device.type, enabled=False)


def _frustum(image_size: tuple[int, int], feature_size: tuple[int, int], dbound: Bound) -> Tensor:
    """Return (D, H, W, 3): column, row, depth; the outer pixels lie on the border of the picture."""
    depth = torch.arange(*dbound, dtype=torch.float32)
    row = torch.linspace(0, image_size[0] - 1, feature_size[0])
    column = torch.linspace(0, image_size[1] - 1, feature_size[1])
    d, v, u = torch.meshgrid(depth, row, column, indexing="ij")
    return torch.stack((u, v, d), dim=-1)


def _refuse_other(name: str, given: Tensor, own: Tensor) -> None:
    """Raise ModelError where a constant of weights is not that of the configuration."""
    own = own.to(given.device)
    if torch.allclose(given.double(), own.double(), rtol=TOLERANCE, atol=TOLERANCE):
        return
    rows = given.reshape(-1, given.shape[-1]), own.reshape(-1, own.shape[-1])
    # Of a frustum the point that is farthest from where it should be; the others have one row.
    apart = (rows[0].double() - rows[1].double()).abs().nan_to_num(torch.inf).amax(dim=1).argmax()
    found, expected = ([round(value, 4) for value in each[apart].tolist()] for each in rows)
    at = f" at point {int(apart)}" if len(rows[0]) > 1 else ""
    raise ModelError(
        describe(f"{name}{at} of the weights", expected=f"{expected} as configured", found=found)
    )
