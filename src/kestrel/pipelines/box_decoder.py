# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""From a centre heatmap to boxes (CenterPoint, Yin et al., CVPR 2021, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kestrel.classes import DETECTION_CLASSES
from kestrel.models.kestrel_fusion import KestrelFusion
from kestrel.models.kestrel_fusion_types import FusionOutput
from kestrel.ops import circle_nms

CANDIDATES = 300
"""Peaks of the heatmap that are looked at."""

MIN_DISTANCE_M = {
    "car": 2.0,
    "truck": 3.0,
    "construction_vehicle": 3.0,
    "bus": 4.0,
    "trailer": 4.0,
    "barrier": 0.9,
    "motorcycle": 0.9,
    "bicycle": 0.9,
    "pedestrian": 0.5,
    "traffic_cone": 0.4,
}
"""Of two boxes of a class that are closer than this, the better one stays (circle NMS)."""

_SQUARED_DISTANCE = torch.tensor([MIN_DISTANCE_M[name] ** 2 for name in DETECTION_CLASSES])


@dataclass(frozen=True)
class DecodedBoxes:
    """values: (N, 9) x, y, z, length, width, height, yaw, vx, vy. label: (N,) int64. score: (N,) float32."""

    values: Tensor
    label: Tensor
    score: Tensor


def decode_boxes(output: FusionOutput, network: KestrelFusion, score_threshold: float) -> DecodedBoxes:
    """Return the boxes of the first frame of ``output``, best first."""
    config = network.config
    heat = output.heatmap[0].sigmoid().contiguous()
    peaks = torch.where(highest_around(heat) == heat, heat, 0)
    score, flat = peaks.flatten().topk(min(CANDIDATES, peaks.numel()))
    kept = score >= max(score_threshold, 1e-6)
    score, flat = score[kept], flat[kept]
    _, rows, columns = heat.shape
    label = flat.div(rows * columns, rounding_mode="floor")
    cell = torch.stack((flat % (rows * columns) // columns, flat % columns), 1)
    raw = network.regression(output.features, torch.zeros_like(label), cell, label).float()
    values = boxes_from_regression(raw, cell, config.cell_size, config.extent)
    chosen = without_neighbours(values, label, score)
    return DecodedBoxes(values[chosen], label[chosen], score[chosen])


def highest_around(heat: Tensor) -> Tensor:
    """Return the maximum of each cell (..., X, Y), none below zero, and its eight neighbours.

    Torch's max_pool2d gives the same and takes several times as long: it also finds where the maximum is.
    """
    around = F.pad(heat, (1, 1, 1, 1))
    around = torch.maximum(torch.maximum(around[..., :-2, :], around[..., 1:-1, :]), around[..., 2:, :])
    return torch.maximum(torch.maximum(around[..., :-2], around[..., 1:-1]), around[..., 2:])


def boxes_from_regression(raw: Tensor, cell: Tensor, cell_size: float, extent: float) -> Tensor:
    """Turn the regression at cells (N, 2) into (N, 9) boxes; BoxRegression says what is where in it.

    The yaw lies along the axis, in the sense that the yaw's own sine and cosine tell.
    """
    place = (cell + 0.5 + raw[:, :2]) * cell_size - extent
    size = raw[:, 3:6].clamp(-3, 4).exp()
    axis = torch.atan2(raw[:, 8], raw[:, 9]) / 2
    sense = torch.where(axis.sin() * raw[:, 6] + axis.cos() * raw[:, 7] < 0, -1.0, 1.0)
    yaw = torch.atan2(sense * axis.sin(), sense * axis.cos())
    return torch.cat((place, raw[:, 2:3], size, yaw[:, None], raw[:, 10:12]), 1)


def without_neighbours(values: Tensor, label: Tensor, score: Tensor) -> Tensor:
    """Return which boxes stay, best first: none has a better one of its class within MIN_DISTANCE_M."""
    return circle_nms(values[:, :2], score, _SQUARED_DISTANCE.to(values.device)[label], labels=label)
