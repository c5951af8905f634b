# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Suppression of turned boxes, at the size of a detector's candidates, against OpenCV and the reference."""

from __future__ import annotations

from typing import Final

import cv2
import torch
from torch import Tensor

from kestrel.bench.timing import medians, timed
from kestrel.ops import rotated_iou, rotated_nms
from kestrel.ops.nms import rotated_nms_reference
from kestrel.ops.rotated_iou import rotated_iou_reference
from kestrel.report import Figure

THRESHOLD: Final = 0.2
_TORCH: Final = "torch reference"


def candidates(objects: int = 200, each: int = 5) -> tuple[Tensor, Tensor]:
    """Return boxes (K, 5) and scores (K,): every object of a 100 m square found ``each`` times, shaken."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([100.0, 100, 3, 1, 6.28])
    true = torch.rand(objects, 5, generator=generator) * spread + torch.tensor([0, 0, 3, 1.6, 0])
    shaken = torch.randn(objects * each, 5, generator=generator) * torch.tensor([0.4, 0.4, 0.2, 0.1, 0.1])
    return true.repeat(each, 1) + shaken, torch.rand(objects * each, generator=generator)


def suppression() -> dict[str, Figure]:
    """Suppress 1000 boxes; the table of all overlaps between them."""
    boxes, scores = candidates()
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    turned = [((x, y), (length, width), yaw) for x, y, length, width, yaw in _degrees(boxes).tolist()]
    given = scores.tolist()
    kept = rotated_nms(boxes, scores, THRESHOLD)
    theirs = cv2.dnn.NMSBoxesRotated(turned, given, 0.0, THRESHOLD)
    ranked = boxes[scores.argsort(descending=True)]
    ms = medians(
        {
            "nms": timed(lambda: rotated_nms(boxes, scores, THRESHOLD)),
            "opencv": timed(lambda: cv2.dnn.NMSBoxesRotated(turned, given, 0.0, THRESHOLD)),
            "reference": timed(lambda: rotated_nms_reference(ranked, labels, THRESHOLD, len(ranked))),
            "overlaps": timed(lambda: rotated_iou(boxes, boxes)),
            "overlaps in torch": timed(lambda: rotated_iou_reference(boxes, boxes)),
        },
        repeats=5,
    )
    return {
        "boxes": Figure(len(boxes), "boxes"),
        "kept": Figure(len(kept), "boxes"),
        "kept by one alone": Figure(len({*kept.tolist()} ^ {*map(int, theirs)}), "boxes", None, "OpenCV"),
        "rotated NMS": Figure(ms["nms"], "ms", ms["opencv"] / ms["nms"], "OpenCV NMSBoxesRotated"),
        "rotated NMS in torch": Figure(ms["nms"], "ms", ms["reference"] / ms["nms"], _TORCH),
        "overlaps": Figure(ms["overlaps"], "ms", ms["overlaps in torch"] / ms["overlaps"], _TORCH),
    }


def _degrees(boxes: Tensor) -> Tensor:
    return torch.cat((boxes[:, :4], boxes[:, 4:].rad2deg()), 1)
