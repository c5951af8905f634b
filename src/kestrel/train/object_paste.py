# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Objects of one frame set into another, so that rare ones are seen often and before many backgrounds.

SECOND (Yan et al., Sensors 2018, section 3.2.1) sets them anywhere. Here they keep their place about the
sensor, and with it the pattern of their points, and come only to where such an object could stand and be
seen: on a road, a walkway or a car park of the other frame, where that has neither object nor wall. A bus
set into a house would teach that any wall may be a bus.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.ops import rotated_iou
from kestrel.train.fusion_sample import FusionSample

PASTED: Final = tuple(index for index, name in enumerate(DETECTION_CLASSES) if name not in ("car", "barrier"))
"""Cars are in every street, and barriers stand in rows, of which one alone makes no sense."""

GROUND: Final = tuple(MAP_LAYERS.index(name) for name in ("drivable_area", "walkway", "carpark_area"))
"""Map layers on which objects stand."""

MOST: Final = 8
"""Objects that come from one frame."""

LEAST_POINTS: Final = 5

CLEARANCE_M: Final = 0.3
"""Above the bottom of a box, where the ground ends."""

MARGIN_M: Final = 0.15
"""Around a box, whose points would otherwise be cut off at its surface."""


def paste_objects(
    sample: FusionSample, other: FusionSample, config: FusionConfig, generator: torch.Generator
) -> FusionSample:
    """Return ``sample`` with objects of ``other`` in it.

    ``sample`` has no pictures, which would not show them. Both have the same number of sweeps. Objects whose
    velocity is not known stay: nobody knows where their points of earlier sweeps are.
    """
    eligible = torch.isin(other.box_label, torch.tensor(PASTED)) & (other.box_points >= LEAST_POINTS)
    eligible &= other.boxes[:, 7:9].isfinite().all(1)
    order = torch.randperm(len(other.boxes), generator=generator)
    points, boxes, label, count = sample.points, sample.boxes, sample.box_label, sample.box_points
    pasted = 0
    for row in order[eligible[order]].tolist():
        box = other.boxes[row]
        if pasted == MOST:
            break
        if not _on_ground(box, sample.map_truth, config) or _overlaps(box, boxes):
            continue
        there = inside(points, box)
        if bool((there & (points[:, 2] > box[2] - box[5] / 2 + CLEARANCE_M)).any()):
            continue
        thing = other.points[inside(other.points, box)]
        points = torch.cat((points[~there], thing))
        boxes = torch.cat((boxes, box[None]))
        label = torch.cat((label, other.box_label[row, None]))
        count = torch.cat((count, other.box_points[row, None]))
        pasted += 1
    return replace(sample, points=points, boxes=boxes, box_label=label, box_points=count)


def inside(points: Tensor, box: Tensor) -> Tensor:
    """Return which points (P, 5) lie in a box (9,), or did at the time of their sweep, (P,) bool."""
    offset = points[:, :3] - box[:3]
    offset[:, :2] += points[:, 4:5] * box[7:9]
    cosine, sine = box[6].cos(), box[6].sin()
    along = offset[:, 0] * cosine + offset[:, 1] * sine
    across = offset[:, 1] * cosine - offset[:, 0] * sine
    half = box[3:6] / 2 + MARGIN_M
    return (along.abs() < half[0]) & (across.abs() < half[1]) & (offset[:, 2].abs() < half[2])


def _on_ground(box: Tensor, map_truth: Tensor, config: FusionConfig) -> bool:
    row, column = ((box[:2] + config.map_extent) / config.map_resolution).floor().long().tolist()
    side = map_truth.shape[1]
    if not (0 <= row < side and 0 <= column < side):
        return False
    return bool((map_truth[list(GROUND), row, column] > 0.5).any())


def _overlaps(box: Tensor, boxes: Tensor) -> bool:
    """Whether a box (9,) overlaps any of boxes (N, 9) from above."""
    return bool((rotated_iou(*(each[:, [0, 1, 3, 4, 6]] for each in (box[None], boxes))) > 0).any())
