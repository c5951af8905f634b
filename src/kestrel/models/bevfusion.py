# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""BEVFusion (Liu et al. 2022): cameras and LiDAR meet in one bird's-eye-view map, any heads answer from it.

The tree of modules is that of the released checkpoints: ``encoders.{camera,lidar}``, ``fuser``, ``decoder``,
``heads.{object,map}``. A network without one of the sensors has no encoder for it and no fuser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kestrel.errors import InputError, ModelError, describe
from kestrel.models.sparse_encoder import SparseEncoder
from kestrel.nn.bev_decoder import ConvFuser
from kestrel.nn.bev_segmentation_head import BEVSegmentationHead
from kestrel.nn.boxes import DecodedBoxes
from kestrel.nn.camera_geometry import CameraGeometry
from kestrel.nn.center_head import CenterHead
from kestrel.nn.lss_fpn import GeneralizedLSSFPN
from kestrel.nn.transfusion_head import TransFusionHead
from kestrel.nn.view_transform import LSSTransform
from kestrel.ops import voxelize
from kestrel.ops.frustum import LiftSplatIndex


class CameraEncoder(nn.Module):
    """Pictures of all cameras to one map."""

    def __init__(self, backbone: nn.Module, neck: GeneralizedLSSFPN, vtransform: LSSTransform) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.vtransform = vtransform

    def features(self, images: Tensor) -> Tensor:
        """(B, N, 3, H, W) normalised pictures to the finest level of the neck, (B, N, C, H / 8, W / 8)."""
        finest: Tensor = self.neck(self.backbone(images.flatten(0, 1)))[0]
        return finest.view(*images.shape[:2], *finest.shape[1:])

    def forward(
        self,
        images: Tensor,
        cameras: CameraGeometry,
        clouds: Sequence[Tensor] | None = None,
        index: LiftSplatIndex | None = None,
    ) -> Tensor:
        """Return the map (B, C, X, Y); arguments as in kestrel.nn.view_transform.LSSTransform."""
        bev: Tensor = self.vtransform(self.features(images), cameras, clouds, index)
        return bev


@dataclass(frozen=True)
class Voxelization:
    """How points become voxels.

    voxel_size, point_cloud_range: metres. max_points: per voxel. max_voxels: (in training, in evaluation).
    """

    voxel_size: tuple[float, float, float]
    point_cloud_range: tuple[float, float, float, float, float, float]
    max_points: int
    max_voxels: tuple[int, int]


class LidarEncoder(nn.Module):
    """Point clouds to one map: mean of the points per voxel, sparse convolutions."""

    def __init__(self, voxelization: Voxelization, backbone: SparseEncoder) -> None:
        super().__init__()
        self.voxelization = voxelization
        self.backbone = backbone

    def voxels(self, clouds: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the features (M, 5) and the cells (M, 4) batch, x, y, z of all occupied voxels."""
        how = self.voxelization
        features, indices = [], []
        for sample, cloud in enumerate(clouds):
            voxels = voxelize(
                cloud,
                how.voxel_size,
                how.point_cloud_range,
                max_points=how.max_points,
                max_voxels=how.max_voxels[0 if self.training else 1],
            )
            features.append(voxels.features)
            indices.append(nn.functional.pad(voxels.indices, (1, 0), value=sample))
        return torch.cat(features), torch.cat(indices)

    def forward(self, clouds: Sequence[Tensor]) -> Tensor:
        """Per sample (P, 5) x, y, z, intensity 0..255, age in seconds to (B, C, X, Y)."""
        bev: Tensor = self.backbone(*self.voxels(clouds), len(clouds))
        return bev


class BEVDecoder(nn.Module):
    """Convolutions on the fused map: a backbone with several resolutions and the neck that joins them."""

    def __init__(self, backbone: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck

    def forward(self, bev: Tensor) -> Tensor:
        """(B, C, X, Y) to (B, C', X', Y')."""
        out: Tensor = self.neck(self.backbone(bev))
        return out


class BEVFusion(nn.Module):
    """The network; kestrel.models.bevfusion_config builds it.

    Args:
        camera, lidar: encoders; at least one.
        fuser: joins the maps of both; None with one encoder.
        decoder: of the fused map.
        heads: ``object`` (CenterHead or TransFusionHead) and ``map`` (BEVSegmentationHead), at least one.
    """

    def __init__(
        self,
        camera: CameraEncoder | None,
        lidar: LidarEncoder | None,
        fuser: ConvFuser | None,
        decoder: BEVDecoder,
        heads: Mapping[str, TransFusionHead | CenterHead | BEVSegmentationHead],
    ) -> None:
        super().__init__()
        encoders = {"camera": camera, "lidar": lidar}
        self.encoders = nn.ModuleDict({name: part for name, part in encoders.items() if part is not None})
        self.fuser = fuser
        self.decoder = decoder
        self.heads = nn.ModuleDict(dict(heads))

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Take weights over.

        Raises:
            ModelError: floats where the network has integers, which would be cut off, or constants of another
                configuration than that of the network (kestrel.nn.view_transform).
        """
        floats = [
            f"{key} {state_dict[key].dtype} instead of {own.dtype}"
            for key, own in self.state_dict().items()
            if key in state_dict and not own.is_floating_point() and state_dict[key].is_floating_point()
        ]
        if floats:
            expected = "integers where the network has integers"
            raise ModelError(describe("weights of a BEVFusion", expected=expected, found=floats))
        return super().load_state_dict(state_dict, strict, assign)

    def encode(
        self,
        images: Tensor | None,
        cameras: CameraGeometry | None,
        clouds: Sequence[Tensor] | None,
        index: LiftSplatIndex | None = None,
    ) -> list[Tensor]:
        """Return one map per encoder, camera first; arguments as in forward.

        Raises:
            InputError: the data of an encoder is missing.
        """
        maps = []
        for name, encoder in self.encoders.items():
            if name == "camera":
                if images is None or cameras is None:
                    raise InputError(describe("input of the camera encoder", expected="images", found="none"))
                maps.append(encoder(images, cameras, clouds, index))
            else:
                if clouds is None:
                    raise InputError(describe("input of the LiDAR encoder", expected="clouds", found="none"))
                maps.append(encoder(clouds))
        return maps

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        """Join the maps of the encoders."""
        if self.fuser is None:
            return maps[0]
        fused: Tensor = self.fuser(maps)
        return fused

    def forward(
        self,
        images: Tensor | None = None,
        cameras: CameraGeometry | None = None,
        clouds: Sequence[Tensor] | None = None,
        index: LiftSplatIndex | None = None,
    ) -> dict[str, object]:
        """Return the raw answer of every head.

        Args:
            images: (B, N, 3, H, W) normalised pictures.
            cameras: their calibration.
            clouds: per sample (P, 5) x, y, z, intensity 0..255, age in seconds; in the reference frame of
                ``cameras``.
            index: of the calibration, see LSSTransform.index; computed if not given.

        Returns:
            ``object``: what the detection head returns; ``map``: (B, layers, X, Y) logits.
        """
        bev = self.decoder(self.fuse(self.encode(images, cameras, clouds, index)))
        return {name: head(bev) for name, head in self.heads.items()}

    def decode(self, answers: Mapping[str, object]) -> list[DecodedBoxes]:
        """Return the boxes of every sample from what forward returned."""
        head = self.heads["object"]
        assert isinstance(head, TransFusionHead | CenterHead)
        return head.decode(answers["object"])  # type: ignore[arg-type]
