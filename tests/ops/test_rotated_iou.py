# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import cv2
import pytest
import torch
from torch import Tensor

from kestrel.errors import InputError
from kestrel.ops import rotated_iou
from kestrel.ops.rotated_iou import rotated_iou_reference

QUARTER = math.pi / 2


def random_boxes(count: int, *, extent: float = 10.0, seed: int = 0) -> Tensor:
    """Turned rectangles of 0.5 to 5.5 m in a square; near others where the square is small."""
    values = torch.rand(count, 5, generator=torch.Generator().manual_seed(seed))
    return values * torch.tensor([extent, extent, 5, 3, 6.3]) + torch.tensor([0, 0, 0.5, 0.5, 0])


def clipped(one: Tensor, other: Tensor) -> float:
    """Return the overlap by clipping polygons."""
    shapes = [
        ((x, y), (length, width), math.degrees(yaw))
        for x, y, length, width, yaw in (one.tolist(), other.tolist())
    ]
    corners = cv2.rotatedRectangleIntersection(*shapes)[1]
    area = 0.0 if corners is None or len(corners) < 3 else cv2.contourArea(cv2.convexHull(corners))
    return area / (float(one[2] * one[3] + other[2] * other[3]) - area)


def test_overlap_is_what_clipping_polygons_gives() -> None:
    boxes, others = random_boxes(25), random_boxes(30, seed=1)
    found = rotated_iou(boxes, others)
    expected = torch.tensor([[clipped(one, other) for other in others] for one in boxes])
    assert 0.1 < float((found > 0).float().mean()) < 0.9
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "other",
    [
        ([0.0, 0, 4, 2, 0], 1.0),  # itself
        ([0.0, 0, 4, 2, 2 * QUARTER], 1.0),  # half a turn
        ([0.0, 0, 2, 4, QUARTER], 1.0),  # a quarter, sides swapped
        ([0.0, 0, 4, 2, QUARTER], 4 / 12),  # a cross
        ([4.0, 0, 4, 2, 0], 0.0),  # an edge in common
        ([2.0, 0, 4, 2, 0], 4 / 12),  # two edges on one line
        ([0.0, 0, 2, 1, 0.3], 2 / 8),  # inside
        ([0.0, 0, 8, 6, 1.0], 8 / 48),  # around
        ([0.0, 0, 0, 0, 0], 0.0),  # no area
        ([1e4, 1e4, 4, 2, 0], 0.0),
    ],
)
def test_cases_that_touch_contain_or_miss_each_other(other: tuple[list[float], float]) -> None:
    box = torch.tensor([[0.0, 0, 4, 2, 0]])
    for turn in (0.0, 0.7, -2.0):
        spun = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
        spun[:, :2] = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        pair = []
        for values in (box, torch.tensor([other[0]])):
            turned = values.clone()
            turned[:, :2] = values[:, :2] @ spun[:, :2].T + 3
            turned[:, 4] += turn
            pair.append(turned)
        assert float(rotated_iou(*pair)) == pytest.approx(other[1], abs=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_compiled_code_equals_the_reference(dtype: torch.dtype) -> None:
    boxes, others = random_boxes(40).to(dtype), random_boxes(33, seed=1).to(dtype)
    others[3] = boxes[5]
    found = rotated_iou(boxes, others)
    assert found.dtype == dtype
    torch.testing.assert_close(found, rotated_iou_reference(boxes, others), atol=1e-7, rtol=1e-6)


def test_gradients_are_those_of_finite_differences() -> None:
    boxes, others = random_boxes(4, extent=3).double(), random_boxes(3, extent=3, seed=1).double()
    assert torch.autograd.gradcheck(rotated_iou, (boxes.requires_grad_(), others.requires_grad_()))


@pytest.mark.parametrize("yaw", [0.0, 0.3, 1.1, -2.0])
@pytest.mark.parametrize("quarters", range(4))
def test_gradients_of_boxes_that_are_parallel_or_perpendicular(yaw: float, quarters: int) -> None:
    # Around each other, within each other and across each other's borders.
    places = [(0.713, 0.437, 3, 1.5), (1.521, -0.313, 6, 5), (-1.937, 2.191, 2, 6), (0.217, 0.143, 1, 0.5)]
    box = torch.tensor([[0.1, 0.2, 4, 2, yaw]], dtype=torch.float64)
    others = torch.tensor([[*place, yaw + quarters * QUARTER] for place in places], dtype=torch.float64)
    assert torch.autograd.gradcheck(rotated_iou, (box.requires_grad_(), others.requires_grad_()))


def test_empty_sets_give_empty_tables_and_other_shapes_are_refused() -> None:
    boxes = random_boxes(3)
    assert rotated_iou(boxes[:0], boxes).shape == (0, 3)
    assert rotated_iou(boxes, boxes[:0]).shape == (3, 0)
    with pytest.raises(InputError, match="rectangles"):
        rotated_iou(boxes, boxes[:, :4])
