# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Points around boxes and what they tell of their motion, at the size of three full 64-beam sweeps."""

from __future__ import annotations

from functools import partial
from typing import Final

import torch
from torch import Tensor

from kestrel.bench.scan import street_scan
from kestrel.bench.timing import medians, timed
from kestrel.models.kestrel_fusion_motion import BoxMotion
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.ops import box_points
from kestrel.ops.box_points import box_points_reference
from kestrel.report import Figure

BOXES: Final = 150


def surroundings() -> dict[str, Figure]:
    """Find the points of 150 boxes, and correct the motion of these boxes."""
    torch.manual_seed(0)
    points, boxes = _three_sweeps(), _boxes()
    motion = BoxMotion(FusionConfig()).eval().requires_grad_(False)
    label = torch.zeros(BOXES, dtype=torch.int64)
    regions = motion.regions(boxes)
    slots, slot_s, limit = motion.slots, motion.sweep_s, motion.POINTS
    ours = partial(box_points, points, regions, slots=slots, slot_s=slot_s, limit=limit)
    theirs = partial(box_points_reference, points, regions, slots, slot_s, limit)
    rows, found = ours()
    ms = medians(
        {
            "points": timed(ours),
            "reference": timed(theirs),
            "motion": timed(lambda: motion(points, boxes, label)),
        },
        repeats=5,
    )
    return {
        "points": Figure(len(points), "points"),
        "around boxes": Figure(int(found.sum()), "points"),
        "other rows than the reference": Figure(int((rows != theirs()[0]).sum()), "rows"),
        "points of 150 boxes": Figure(ms["points"], "ms", ms["reference"] / ms["points"], "torch reference"),
        "with the motion": Figure(ms["motion"], "ms"),
    }


def _three_sweeps() -> Tensor:
    scan = street_scan()
    return torch.cat([torch.nn.functional.pad(scan, (0, 1), value=age) for age in (0.0, 0.2, 0.4)])


def _boxes() -> Tensor:
    """Return (BOXES, 9) boxes of cars within 40 m that move at up to 10 m/s."""
    place = 80 * torch.rand(BOXES, 2) - 40
    size = torch.tensor([0.8, 4.5, 1.9, 1.6]).expand(BOXES, 4)
    return torch.cat((place, size, 6.28 * torch.rand(BOXES, 1), 20 * torch.rand(BOXES, 2) - 10), 1)
