# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Kestrel-Fusion: boxes and map from any set of cameras and LiDAR, small enough for two CPU cores.

The plan is BEVFusion's (Liu et al., ICRA 2023): a camera branch lifted with predicted depth (LSS, Philion and
Fidler, ECCV 2020), a LiDAR branch, a convolutional fuser, a SECOND decoder, a centre head (Yin et al., CVPR
2021) and a map head. Sensors that are absent are left out of the pool; two indicator channels tell the
fuser which cells any camera sees and whether there is LiDAR. Calibration enters only as rays.

The camera branch sees a stream: its blocks mix in channels that they kept of the picture one hop earlier
(online TSM, Lin et al. 2019, section 4.2). What moves in a picture moves across the line of sight, so two
more channels tell the fuser in which direction from the vehicle each cell lies.

Boxes that are found are looked at once more for their motion (kestrel_fusion_motion), the map beside what
earlier frames said of its cells (kestrel_fusion_map).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kestrel.models.kestrel_fusion_camera import CameraEncoder, ViewTransform
from kestrel.models.kestrel_fusion_heads import BoxRegression, MapHead
from kestrel.models.kestrel_fusion_map import MapRefiner
from kestrel.models.kestrel_fusion_motion import BoxMotion
from kestrel.models.kestrel_fusion_types import FusionConfig, FusionInput, FusionOutput
from kestrel.models.mobilenetv2 import State
from kestrel.nn.conv import conv_block
from kestrel.nn.pillar_encoder import PillarEncoder
from kestrel.ops.frustum import LiftSplatIndex
from kestrel.ops.pillars import PillarGrid


class KestrelFusion(nn.Module):
    """The whole network; see the module's docstring."""

    def __init__(self, config: FusionConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FusionConfig()
        pillar, bev = config.pillar_channels, config.bev_channels
        grid = PillarGrid(config.extent, config.pillar_size, config.height_range)
        self.pillars = PillarEncoder(grid, pillar)
        self.lidar_stem = conv_block(pillar, pillar)
        self.lidar_down = nn.Sequential(conv_block(pillar, bev, stride=2), conv_block(bev, bev))
        self.camera = CameraEncoder(config)
        self.view = ViewTransform(config)
        self.bearing: Tensor
        self.register_buffer("bearing", _bearing(config, torch.zeros(1, 2)), persistent=False)
        self.fuser = conv_block(bev + config.camera_channels + 4, bev)
        self.decoder = nn.ModuleList(
            [
                nn.Sequential(*(conv_block(bev, bev) for _ in range(3))),
                nn.Sequential(
                    conv_block(bev, 2 * bev, stride=2),
                    *(conv_block(2 * bev, 2 * bev) for _ in range(4)),
                ),
            ]
        )
        self.up = nn.Sequential(
            nn.ConvTranspose2d(2 * bev, bev, 2, stride=2, bias=False), nn.BatchNorm2d(bev), nn.ReLU()
        )
        self.shared = conv_block(2 * bev, bev)
        self.heatmap = nn.Sequential(conv_block(bev, bev), nn.Conv2d(bev, config.num_classes, 1))
        nn.init.constant_(self.heatmap[1].bias, -4.0)  # type: ignore[arg-type]
        self.regression = BoxRegression(bev, config.num_classes)
        self.motion = BoxMotion(config)
        self.map_head = MapHead(config)
        self.map_refiner = MapRefiner(config)

    def forward(self, inputs: FusionInput) -> FusionOutput:
        """Run the network on a batch of frames; every frame may have other sensors."""
        index = self.view.index(inputs) if len(inputs.images) else None
        bearing = None if inputs.vehicle is None else _bearing(self.config, inputs.vehicle)
        pillars = partial(self.pillars, vehicle=inputs.vehicle)
        return self.run(inputs, index, pillars, self.camera, self.view, partial(self.bird, bearing=bearing))

    def run(
        self,
        inputs: FusionInput,
        index: LiftSplatIndex | None,
        pillars: Callable[[Tensor, Tensor, int], Tensor],
        camera: Callable[..., tuple[Tensor, ...]],
        view: Callable[[Tensor, Tensor, LiftSplatIndex], tuple[Tensor, Tensor]],
        bird: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]],
    ) -> FusionOutput:
        """Do what forward does with other implementations of the parts.

        Args:
            inputs: a batch of frames.
            index: ``view.index(inputs)``; None without pictures.
            pillars: stands for the module of that name.
            camera: stands for the module of that name.
            view: stands for the module of that name.
            bird: stands for the method of that name.
        """
        frames, side = len(inputs.has_lidar), self.config.pillars // 2
        canvas = pillars(inputs.points, inputs.point_batch, frames)
        depth: Tensor | None = None
        state: State = ()
        if index is None:
            nothing = canvas.new_zeros(frames, self.config.camera_channels + 1, side, side)
            pooled, seen = nothing[:, :-1], nothing[:, -1:]
        else:
            images = inputs.images.contiguous(memory_format=torch.channels_last)
            depth, context, *kept = camera(images, *(inputs.past or self.camera.no_past(len(images))))
            state = tuple(kept)
            pooled, seen = view(depth, context, index)
        there = inputs.has_lidar.view(-1, 1, 1, 1).to(canvas.dtype)
        heatmap, features, map_logits = bird(canvas, pooled, seen, there)
        return FusionOutput(heatmap.float(), features, map_logits.float(), depth, state)

    def bird(
        self, canvas: Tensor, pooled: Tensor, seen: Tensor, there: Tensor, bearing: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Do all that happens in bird's-eye view.

        Args:
            canvas: (B, C, 2X, 2Y) of the pillars.
            pooled: features that the view transform returns.
            seen: cells that it says a camera sees.
            there: (B, 1, 1, 1) whether a frame has LiDAR, 0 or 1.
            bearing: (B, 2, X, Y) unit vectors from the vehicle to each cell; None: it is in the middle.

        Returns:
            heatmap, features and map_logits of FusionOutput.
        """
        fine = self.lidar_stem(canvas.contiguous(memory_format=torch.channels_last))
        # Engines may compute in a narrower type than that of the inputs, and stay in it.
        there, seen = there.to(fine), seen.to(fine)
        fine = fine * there
        lidar = self.lidar_down(fine) * there
        # A frame without pictures looks like cells that no camera sees, whatever else is in its batch.
        camera = self.view.reduce(pooled)
        # Of single channels torch cannot tell the layout; it would then join all of them element by element.
        directions = (self.bearing if bearing is None else bearing).to(fine).expand(len(seen), -1, -1, -1)
        known = torch.cat((seen, there.expand_as(seen), directions), 1)
        known = known.contiguous(memory_format=torch.channels_last)
        bev = self.fuser(torch.cat((lidar, camera.to(lidar), known), 1))
        near = self.decoder[0](bev)
        far = self.up(self.decoder[1](near))
        features = self.shared(torch.cat((near, far), 1))
        return self.heatmap(features), features, self.map_head(features, fine)


def _bearing(config: FusionConfig, vehicle: Tensor) -> Tensor:
    """Return the unit vectors from vehicles at (B, 2) to each cell, (B, 2, X, Y)."""
    side = config.pillars // 2
    middle = (torch.arange(side) + 0.5) * config.cell_size - config.extent
    cells = torch.stack(torch.meshgrid(middle, middle, indexing="ij"))
    return F.normalize(cells - vehicle[:, :, None, None], dim=1)


class BirdView(nn.Module):
    """What KestrelFusion.bird does, as a module of its own with the same parameters."""

    def __init__(self, network: KestrelFusion) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Arguments and results are those of KestrelFusion.bird."""
        return self.network.bird(*inputs)
