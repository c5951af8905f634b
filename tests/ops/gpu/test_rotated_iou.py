# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from kestrel.ops.rotated_iou import rotated_iou_reference
from tests.ops.test_rotated_iou import random_boxes


def test_overlaps_equal_the_reference(device: str) -> None:
    from kestrel.ops.gpu import rotated_iou as gpu

    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        boxes = random_boxes(30).to(device, dtype)
        others = random_boxes(70, seed=1).to(device, dtype)
        others[4] = boxes[7]
        others[5, 2:4] = 0
        found = gpu.rotated_iou(boxes, others)
        assert found.dtype == dtype
        torch.testing.assert_close(found, rotated_iou_reference(boxes, others), atol=1e-7, rtol=1e-6)
    assert gpu.rotated_iou(boxes[:0], others).shape == (0, 70)
