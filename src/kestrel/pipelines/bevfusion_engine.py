# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs BEVFusion with its dense parts in engines and what depends on the calibration kept.

With bfloat16 some parts stay in float32, as in the training: what takes in metres or cells (voxels, depth
pictures, places on the map), the heat whose peaks are sought, what is regressed, and the distribution over
the depths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from kestrel.engine import Engine, EngineName, make_engine
from kestrel.engine.folded import FoldedEngine
from kestrel.models.bevfusion import BEVFusion, CameraEncoder, LidarEncoder
from kestrel.nn.camera_geometry import CameraGeometry
from kestrel.nn.sparse import use_int8
from kestrel.nn.view_transform import DepthLSSTransform, LSSTransform
from kestrel.ops.frustum import LiftSplatIndex
from kestrel.pipelines.bevfusion_frame import BEVFusionInput
from kestrel.pipelines.fusion_engine import Stage, run_stage
from kestrel.pipelines.runtime import has_fast_bfloat16

_Key = tuple[Tensor, Tensor, Tensor]


class CameraBranch(nn.Module):
    """Pictures to logits of the depths and context of every feature cell: all that is dense and narrow."""

    def __init__(self, encoder: CameraEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor, depth: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) pictures and, where the network wants them, the features of their depth pictures."""
        features = self.encoder.neck(self.encoder.backbone(images))[0]
        return self.encoder.vtransform.predict(features, depth)


class BirdBranch(nn.Module):
    """The maps of the sensors to the decoded map."""

    def __init__(self, network: BEVFusion) -> None:
        super().__init__()
        encoders = network.encoders
        self.downsample = (
            cast(CameraEncoder, encoders["camera"]).vtransform.downsample if "camera" in encoders else None
        )
        self.fuser = network.fuser
        self.decoder = network.decoder

    def forward(self, *maps: Tensor) -> Tensor:
        """One (B, C, X, Y) per encoder, camera first and as it was pooled."""
        joined = list(maps)
        if self.downsample is not None:
            joined[0] = self.downsample(joined[0])
        decoded: Tensor = self.decoder(joined[0] if self.fuser is None else self.fuser(joined))
        return decoded


class BEVFusionEngine:
    """Stands for the network at inference, one frame at a time; gives the same answers.

    A sensor that took no part leaves its map empty.

    Args:
        network: in evaluation mode.
        engine: how the camera branch and the bird's-eye view run; the heads run folded except with "eager".
        bfloat16: whether they, and sparse convolutions, may use bfloat16.
        dynamic_int8: whether sparse convolutions and the 3x3 ones of decoder and heads may multiply bytes;
            the camera branch then is in bfloat16 where the CPU has it.
    """

    def __init__(
        self,
        network: BEVFusion,
        engine: EngineName = "auto",
        *,
        bfloat16: bool = False,
        dynamic_int8: bool = False,
    ) -> None:
        self.network = network
        self.engine_name: EngineName = engine
        self.bfloat16, self.dynamic_int8 = bfloat16, dynamic_int8
        self.camera_bfloat16 = bfloat16 or (dynamic_int8 and has_fast_bfloat16())
        self.device = next(network.parameters()).device
        use_int8(network, dynamic_int8)
        self._depth: nn.Module | None = None
        self._camera: Engine | None = None
        self._bird: Engine | None = None
        self._heads: Mapping[str, nn.Module] = (
            dict(network.heads.items())
            if engine == "eager"
            else {
                name: FoldedEngine(head, bfloat16=bfloat16, dynamic_int8=("",) if dynamic_int8 else ()).module
                for name, head in network.heads.items()
            }
        )
        self._index: tuple[_Key, LiftSplatIndex] | None = None

    def __call__(self, inputs: BEVFusionInput, stage: Stage = run_stage) -> dict[str, Any]:
        """Return the raw answer of every head."""
        with torch.autocast(self.device.type, enabled=False):
            maps = []
            if "camera" in self.network.encoders:
                maps.append(self._pooled(inputs, stage))
            if "lidar" in self.network.encoders:
                maps.append(self._lidar_map(inputs, stage))
            bev = stage("bird's-eye view", lambda: self._run_bird(*maps))
            return stage("heads", lambda: self._run_heads(bev))

    @property
    def parts(self) -> dict[str, Engine]:
        """The engine of each part, as far as that is decided."""
        made = {"camera": self._camera, "bird's-eye view": self._bird}
        return {part: engine for part, engine in made.items() if engine is not None}

    def _pooled(self, inputs: BEVFusionInput, stage: Stage) -> Tensor:
        view = cast(CameraEncoder, self.network.encoders["camera"]).vtransform
        images, cameras = inputs.images, inputs.cameras
        if images is None or cameras is None:
            nx, ny, nz = view.grid_shape
            return torch.zeros(1, nz * view.out_channels, nx, ny, device=self.device)
        index = stage("index", lambda: self._lift_splat_index(view.index, cameras))
        pictures = stage("depth pictures", lambda: view.depth_images(images, cameras, inputs.clouds))
        given = [images.flatten(0, 1).contiguous(memory_format=torch.channels_last)]
        if pictures is not None:
            given.append(stage("depth features", lambda: self._depth_features(view, pictures)))
        logits, context = stage("camera", lambda: self._run_camera(*given))
        return stage("view transform", lambda: view.splat(view.distribution(logits), context.float(), index))

    def _depth_features(self, view: LSSTransform, pictures: Tensor) -> Tensor:
        if self._depth is None:
            dense = cast(DepthLSSTransform, view).dtransform
            self._depth = dense if self.engine_name == "eager" else FoldedEngine(dense).module
        features: Tensor = self._depth(pictures)
        return features

    def _lidar_map(self, inputs: BEVFusionInput, stage: Stage) -> Tensor:
        encoder = cast(LidarEncoder, self.network.encoders["lidar"])
        # Without a point there is no voxel, and so nothing in the map either.
        clouds = [torch.zeros(0, 5, device=self.device)] if inputs.clouds is None else inputs.clouds
        voxels = stage("voxelize", lambda: encoder.voxels(clouds))
        dtype = torch.bfloat16 if self.bfloat16 else torch.float32
        bev: Tensor = stage("sparse encoder", lambda: encoder.backbone(*voxels, 1, dtype).float())
        return bev

    def _run_camera(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self._camera is None:
            branch = CameraBranch(cast(CameraEncoder, self.network.encoders["camera"])).eval()
            self._camera = make_engine(
                branch, inputs, self.engine_name, bfloat16=self.camera_bfloat16, dynamic_batch=True
            )
        return self._camera(*inputs)

    def _run_bird(self, *maps: Tensor) -> Tensor:
        if self._bird is None:
            self._bird = make_engine(
                BirdBranch(self.network).eval(),
                maps,
                self.engine_name,
                bfloat16=self.bfloat16,
                dynamic_int8=("decoder",) if self.dynamic_int8 else (),
            )
        return self._bird(*maps)[0]

    def _run_heads(self, bev: Tensor) -> dict[str, Any]:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            answers = {name: head(bev) for name, head in self._heads.items()}
        return {name: _widened(answer) for name, answer in answers.items()}

    def _lift_splat_index(
        self, build: Callable[[CameraGeometry], LiftSplatIndex], cameras: CameraGeometry
    ) -> LiftSplatIndex:
        """Return the index of these calibrations; the last one is kept."""
        key = cameras.reference_from_camera, cameras.intrinsics, cameras.image_augmentation
        if self._index is not None and all(
            torch.equal(a, b) for a, b in zip(key, self._index[0], strict=True)
        ):
            return self._index[1]
        index = build(cameras)
        self._index = key, index
        return index


def _widened(answer: Any) -> Any:
    """Return an answer with bfloat16 tensors as float32, in the same containers."""
    if isinstance(answer, Tensor):
        return answer.float() if answer.is_floating_point() else answer
    if isinstance(answer, dict):
        return {name: _widened(value) for name, value in answer.items()}
    return [_widened(value) for value in answer]
