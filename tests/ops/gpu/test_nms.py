# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from kestrel.ops.nms import (
    circle_nms_cuda,
    circle_nms_reference,
    rotated_nms_cuda,
    rotated_nms_reference,
)
from tests.ops.test_rotated_iou import random_boxes


@pytest.mark.parametrize("limit", [0, 5, 60])
def test_what_stays_equals_the_reference(device: str, limit: int) -> None:
    boxes = random_boxes(60).to(device)
    labels = torch.arange(60, device=device) % 3
    squared = torch.linspace(0.5, 40, 60, dtype=torch.float64, device=device)
    found = circle_nms_cuda(boxes[:, :2], labels, squared, limit)
    assert found.tolist() == circle_nms_reference(boxes[:, :2], labels, squared, limit).tolist()
    assert len(found) < 60
    found = rotated_nms_cuda(boxes, labels, 0.05, limit)
    assert found.tolist() == rotated_nms_reference(boxes, labels, 0.05, limit).tolist()


def test_of_no_boxes_none_stays(device: str) -> None:
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    assert len(circle_nms_cuda(torch.zeros(0, 2, device=device), nothing, nothing.double(), 5)) == 0
