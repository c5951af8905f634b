# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""From a centre heatmap to boxes (CenterPoint, Yin et al., CVPR 2021, section 4).

There the cells that are higher than their neighbours answer. Here all do, and of boxes that are too close
to each other the best stays: the network tells boxes at each cell around a middle, and two bicycles that lean
side by side have their middles in neighbouring cells, of which one is no peak.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kestrel.classes import DETECTION_CLASSES
from kestrel.models.kestrel_fusion import KestrelFusion
from kestrel.models.kestrel_fusion_types import FusionInput, FusionOutput
from kestrel.ops import circle_nms

CANDIDATES = 1000
"""Cells of the heatmap that are looked at."""

LOOKED_AT = 200
"""Boxes of which velocity and sense are corrected by their points, the best ones: it takes time."""

MIN_DISTANCE_M = {
    "car": 2.0,
    "truck": 3.0,
    "construction_vehicle": 3.0,
    "bus": 4.0,
    "trailer": 4.0,
    "barrier": 0.9,
    "motorcycle": 0.9,
    "bicycle": 0.5,
    "pedestrian": 0.6,
    "traffic_cone": 1.0,
}
"""Of two boxes of a class that are closer than this, the better one stays (circle NMS). Those of small
classes were chosen on validation drives."""

_SQUARED_DISTANCE = torch.tensor([MIN_DISTANCE_M[name] ** 2 for name in DETECTION_CLASSES])


@dataclass(frozen=True)
class DecodedBoxes:
    """values: (N, 9) x, y, z, length, width, height, yaw, vx, vy. label: (N,) int64. score: (N,) float32."""

    values: Tensor
    label: Tensor
    score: Tensor


def decode_boxes(
    output: FusionOutput, inputs: FusionInput, network: KestrelFusion, score_threshold: float
) -> DecodedBoxes:
    """Return the boxes of the first frame, best first.

    Args:
        output: what the network answered.
        inputs: to these inputs.
        network: the network.
        score_threshold: boxes below it are left out.
    """
    boxes = first_boxes(output, network, score_threshold)
    points = inputs.points if len(inputs.has_lidar) == 1 else inputs.points[inputs.point_batch == 0]
    best = network.motion(points, boxes.values[:LOOKED_AT], boxes.label[:LOOKED_AT])
    return replace(boxes, values=torch.cat((best, boxes.values[LOOKED_AT:])))


def first_boxes(output: FusionOutput, network: KestrelFusion, score_threshold: float) -> DecodedBoxes:
    """Return the boxes of the first frame, best first, with the first estimates of velocity and sense."""
    config = network.config
    heat = output.heatmap[0].sigmoid()
    rows, columns = heat.shape[1:]
    flat = (heat.flatten() >= max(score_threshold, 1e-6)).nonzero()[:, 0]
    score, best = heat.flatten()[flat].topk(min(CANDIDATES, len(flat)))
    flat = flat[best]
    label = flat.div(rows * columns, rounding_mode="floor")
    cell = torch.stack((flat % (rows * columns) // columns, flat % columns), 1)
    raw = network.regression(output.features, torch.zeros_like(label), cell, label).float()
    values = boxes_from_regression(raw, cell, config.cell_size, config.extent)
    chosen = without_neighbours(values, label, score)
    return DecodedBoxes(values[chosen], label[chosen], score[chosen])


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
