# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Camera branch of Kestrel-Fusion: what the pictures show, how far away it is, and in which cell that is."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kestrel.models.kestrel_fusion_types import EarlierPictures, FusionConfig, FusionInput
from kestrel.models.mobilenetv2 import STAGES, MobileNetV2, OnlineTSMMobileNetV2, State
from kestrel.nn.conv import conv_block
from kestrel.ops.bev_pool import lift_splat
from kestrel.ops.frustum import BevGrid, FrustumRays, LiftSplatIndex

TRUNK = STAGES[:-1]
"""All but the last, whose channels are of use to a classifier alone."""
LEVELS = (2, 4, 5)
"""Stages of TRUNK that go on: 1/8, 1/16 and 1/32 of the picture."""


class CameraEncoder(nn.Module):
    """Picture features at an eighth of the size, split into depth logits and context."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.bins = config.depth[2]
        self.image_size = config.image_size
        trunk = OnlineTSMMobileNetV2 if config.hop_s else MobileNetV2
        self.trunk = trunk(0, width_multiplier=config.trunk_width, stages=TRUNK, last_channels=0)
        width = 64
        channels = self.trunk.stage_channels()
        self.lateral = nn.ModuleList(conv_block(channels[level], width, 1) for level in LEVELS)
        self.smooth = conv_block(width, width)
        self.depthnet = nn.Conv2d(width, self.bins + config.camera_channels, 1)

    def forward(self, images: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Return depth logits (M, D, h, w), context (M, C, h, w), and the state for the pictures that follow.

        Args:
            images: (M, 3, H, W), 0..1.
            past: state of the pictures before them; no_past(M), or nothing, where there were none.
        """
        stages, state = self._walk(images, past)
        levels = [conv(stages[level]) for conv, level in zip(self.lateral, LEVELS, strict=True)]
        merged = levels[-1]
        for level in reversed(levels[:-1]):
            merged = level + F.interpolate(merged, size=level.shape[-2:], mode="nearest")
        answer = self.depthnet(self.smooth(merged)).float()
        return answer[:, : self.bins], answer[:, self.bins :], *state

    def _walk(self, images: Tensor, past: State) -> tuple[list[Tensor], State]:
        pictures = (images - 0.45) / 0.25
        if isinstance(self.trunk, OnlineTSMMobileNetV2):
            return self.trunk.step_features(pictures, past or None)
        return self.trunk.forward_features(pictures), ()

    def no_past(self, count: int) -> State:
        """Return the state of so many pictures before which there was none; () if none is ever kept."""
        if isinstance(self.trunk, OnlineTSMMobileNetV2):
            return self.trunk.initial_state(count, *self.image_size)
        return ()

    @torch.no_grad()
    def remember(self, earlier: EarlierPictures) -> State:
        """Return the state after earlier pictures, zeros where there are none; without gradients."""
        state = self.no_past(earlier.known.shape[1])
        if not state:
            return state
        for images, known in zip(earlier.images, earlier.known, strict=True):
            rows = known.nonzero().flatten()
            if len(rows):
                shown = images[rows].contiguous(memory_format=torch.channels_last)
                _, kept = self._walk(shown, tuple(each[rows] for each in state))
                state = tuple(
                    torch.zeros_like(before).index_copy(0, rows, after.to(before))
                    for before, after in zip(state, kept, strict=True)
                )
        return state


class ViewTransform(nn.Module):
    """Lift, splat: depth-weighted context of all pictures summed into the cells that their rays pass."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        first, step, count = config.depth
        self.depths: Tensor
        self.register_buffer("depths", first + step * torch.arange(count), persistent=False)
        self.reduce = conv_block(config.camera_channels, config.camera_channels)

    @property
    def grid(self) -> BevGrid:
        """The cells of the map, all heights in one."""
        config = self.config
        side, size = config.pillars // 2, config.cell_size
        low, high = config.height_range
        return BevGrid((-config.extent, -config.extent, low), (size, size, high - low), (side, side, 1))

    def frustum(self, inputs: FusionInput) -> FrustumRays:
        """Return where the points of all pictures are."""
        return FrustumRays(inputs.rays, inputs.origins, self.depths, inputs.image_batch)

    def index(self, inputs: FusionInput) -> LiftSplatIndex:
        """Sort the frustum points by cell; it stays valid for as long as the calibrations do."""
        return LiftSplatIndex.along(self.frustum(inputs), self.grid, len(inputs.has_lidar))

    def forward(self, depth: Tensor, context: Tensor, index: LiftSplatIndex) -> tuple[Tensor, Tensor]:
        """Return pooled features (B, C, X, Y) and which cells any camera sees, (B, 1, X, Y)."""
        pooled = lift_splat(depth.softmax(1), context, index)
        side = self.config.pillars // 2
        seen = (index.row_start[1:] > index.row_start[:-1]).view(index.batch, 1, side, side)
        return pooled, seen.to(pooled.dtype)
