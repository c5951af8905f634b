# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""How fast the boxes of Kestrel-Fusion are and where they head, from the points around them.

A pedestrian walks half a metre in the time that the sweeps span: less than a cell of the bird's-eye view, in
which the first estimate of a velocity is made. The points of a box know it to a few centimetres, and tell
front from rear by what no cell is fine enough for. As in the second stage of CenterPoint (Yin et al., CVPR
2021, section 4.2) boxes are looked at once more, one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.ops.box_points import box_points

MARGIN_M = 0.5
"""How far from a box its points may be, ahead and aside."""

GROUND_M = 0.15
"""What is not higher above the bottom of a box may be ground."""

ABOVE_M = 0.3
"""How far above a box its points may be."""

POINT_SCALE = (0.5, 1.0, 0.7, 2.0, 2.5)
"""Brings along, across, height, intensity and age of a point to about one."""

SIZE_SCALE = (0.3, 0.6, 0.6)


class BoxMotion(nn.Module):
    """Corrects velocity and sense of boxes by the points that are around them, now and before.

    The points of each sweep are encoded on their own (PointNet, Qi et al., CVPR 2017), in axes of the box and
    moved as far as it moved since by the first estimate: what is left to see is the error of that.
    """

    POINTS = 64
    """Points of a sweep that are looked at, for each box."""

    UNIT_MPS = 5.0
    """Metres per second of what the last layer calls 1."""

    def __init__(self, config: FusionConfig, channels: int = 64, hidden: int = 128) -> None:
        super().__init__()
        self.slots = config.sweeps + 1
        self.sweep_s = config.sweep_s
        self.num_classes = config.num_classes
        points, sizes = len(POINT_SCALE), len(SIZE_SCALE)
        self.encoder = nn.Sequential(
            nn.Linear(points + sizes, channels // 2), nn.ReLU(), nn.Linear(channels // 2, channels), nn.ReLU()
        )
        known = self.slots * (channels + 1) + sizes + 2 + config.num_classes
        self.correction = nn.Sequential(
            nn.Linear(known, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 3)
        )
        # Untrained it leaves boxes as they are.
        for parameter in self.correction[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, points: Tensor, boxes: Tensor, label: Tensor) -> Tensor:
        """Return the boxes (K, 9) with velocities corrected; those that head the other way are turned around.

        Args:
            points: (P, 5) float32 x, y, z [m], intensity, age [s] of one frame.
            boxes: (K, 9) float32 x, y, z, length, width, height, yaw and the velocity [m/s] as estimated so
                far. It stays where a box has no point now or had none before, its yaw where it has none now.
            label: (K,) int64 class of each.
        """
        around, there, count = self.points_of(points, boxes)
        yaw = boxes[:, 6]
        told = turned(boxes[:, 7:9], -yaw)
        velocity, reverse = self.corrected(around, there, count, boxes[:, 3:6], told, label)
        velocity = torch.where(self.is_told(count)[:, None], turned(velocity, yaw), boxes[:, 7:9])
        opposite = torch.where(yaw > 0, yaw - torch.pi, yaw + torch.pi)
        yaw = torch.where((count[:, 0] > 0) & (reverse > 0), opposite, yaw)
        return torch.cat((boxes[:, :6], yaw[:, None], velocity), 1)

    def corrected(
        self, around: Tensor, there: Tensor, count: Tensor, size: Tensor, told: Tensor, label: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return (K, 2) velocities in m/s along and across the boxes, (K,) logits that they head backwards.

        Args:
            around: as points_of returns it, as are ``there`` and ``count``.
            there: which of the points there are.
            count: how many there were to choose from.
            size: (K, 3) length, width, height, metres.
            told: (K, 2) velocity along and across as estimated so far.
            label: (K,) int64 class.
        """
        sizes = size * size.new_tensor(SIZE_SCALE)
        scaled = around * around.new_tensor(POINT_SCALE)
        inputs = torch.cat((scaled, sizes[:, None, None].expand(*around.shape[:3], -1)), -1)
        # Nothing is below zero behind the last ReLU, so that absent points do not show in the maximum.
        now, *before = self.encoder(inputs).masked_fill(~there[..., None], 0).amax(2).unbind(1)
        known = (
            *(now, *(each - now for each in before)),
            *(sizes, count.log1p() / 3, told / self.UNIT_MPS),
            F.one_hot(label, self.num_classes).float(),
        )
        answer = self.correction(torch.cat(known, 1))
        return told + self.UNIT_MPS * answer[:, :2], answer[:, 2]

    @staticmethod
    def is_told(count: Tensor) -> Tensor:
        """Return (K,) whether the points of a box, (K, slots) of each sweep, tell a velocity."""
        return (count[:, 0] > 0) & (count[:, 1:] > 0).any(1)

    def points_of(self, points: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the points around boxes as they would lie now if the boxes' velocities were right.

        Returns:
            around: (K, slots, POINTS, 5) along and across the box from its middle, height above its bottom
                [m], intensity, age [s]. there: (K, slots, POINTS) which of them there are. count: (K, slots)
                float32 how many there were to choose from.
        """
        rows, count = box_points(
            points, self.regions(boxes), slots=self.slots, slot_s=self.sweep_s, limit=self.POINTS
        )
        if len(points) == 0:
            return boxes.new_zeros(*rows.shape, 5), rows >= 0, count.float()
        chosen = points[rows.clamp(min=0)]
        age = chosen[..., 4:]
        offset = chosen[..., :2] + boxes[:, None, None, 7:9] * age - boxes[:, None, None, :2]
        along = turned(offset, -boxes[:, 6, None, None].expand(rows.shape))
        heights = chosen[..., 2:3] - _bottom(boxes)[:, None, None, None]
        return torch.cat((along, heights, chosen[..., 3:]), -1), rows >= 0, count.float()

    @staticmethod
    def regions(boxes: Tensor) -> Tensor:
        """Return where points of boxes (K, 9) may be, as kestrel.ops.box_points takes it.

        How wrong a first estimate may be grows with the length of a box; what is short may move across it,
        since its yaw is often wrong.
        """
        length, width, height, yaw = boxes[:, 3:7].unbind(1)
        bottom = _bottom(boxes)
        columns = (
            *(boxes[:, 0], boxes[:, 1], yaw.cos(), yaw.sin()),
            *(length / 2 + MARGIN_M, width / 2 + MARGIN_M),
            *(bottom + GROUND_M, bottom + height + ABOVE_M),
            *(4 + 0.5 * length, (5 - length).clamp(min=2)),
            *(boxes[:, 7], boxes[:, 8]),
        )
        return torch.stack(columns, 1)


def _bottom(boxes: Tensor) -> Tensor:
    return boxes[:, 2] - boxes[:, 5] / 2


def turned(vectors: Tensor, angle: Tensor) -> Tensor:
    """Return vectors (..., 2) turned counter-clockwise by angles (...)."""
    x, y = vectors.unbind(-1)
    cosine, sine = angle.cos(), angle.sin()
    return torch.stack((x * cosine - y * sine, x * sine + y * cosine), -1)
