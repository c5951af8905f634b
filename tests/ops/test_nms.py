# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from kestrel.errors import InputError
from kestrel.ops import circle_nms, rotated_iou, rotated_nms
from kestrel.ops.nms import circle_nms_reference, rotated_nms_reference
from tests.ops.test_rotated_iou import random_boxes


def test_circle_nms_compares_squared_distances_and_respects_the_limit() -> None:
    centers = torch.tensor([[0.0, 0], [1.9, 0], [2.1, 0], [9, 0]])
    scores = torch.tensor([0.5, 0.9, 0.4, 0.1])
    assert circle_nms(centers, scores, 4.0, 10).tolist() == [1, 3]
    assert circle_nms(centers, scores, 0.01, 10).tolist() == [1, 0, 2, 3]
    assert circle_nms(centers, scores, 0.01, 2).tolist() == [1, 0]
    assert circle_nms(centers[:0], scores[:0], 1.0, 10).tolist() == []


def test_the_distance_of_the_kept_box_counts() -> None:
    centers, scores = torch.tensor([[0.0, 0], [1, 0], [9, 0], [10, 0]]), torch.tensor([4.0, 3, 2, 1])
    assert circle_nms(centers, scores, torch.tensor([2.0, 0, 0, 2])).tolist() == [0, 2, 3]


def test_boxes_of_other_labels_do_not_compete() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 2, 0]]).repeat(3, 1)
    scores, labels = torch.tensor([1.0, 3, 2]), torch.tensor([7, 7, 2])
    assert rotated_nms(boxes, scores, 0.5, labels=labels).tolist() == [1, 2]
    assert circle_nms(boxes[:, :2], scores, 1.0, labels=labels).tolist() == [1, 2]
    assert rotated_nms(boxes, scores, 0.5).tolist() == circle_nms(boxes[:, :2], scores, 1.0).tolist() == [1]


def test_what_rotated_nms_keeps_overlaps_little_and_what_it_drops_overlaps_a_better_one() -> None:
    boxes, scores = random_boxes(120, extent=20), torch.rand(120, generator=torch.Generator().manual_seed(3))
    kept = rotated_nms(boxes, scores, 0.3)
    assert 20 < len(kept) < 100
    assert torch.equal(scores[kept], scores[kept].sort(descending=True).values)
    overlap = rotated_iou(boxes, boxes[kept]) > 0.3
    dropped = torch.ones(120, dtype=torch.bool).index_fill_(0, kept, False)
    assert int(overlap[kept].sum()) == len(kept)
    assert bool((overlap & (scores[kept] > scores[:, None]))[dropped].any(1).all())


def test_a_box_turned_away_from_its_neighbour_stays() -> None:
    along = torch.tensor([[0.0, 0, 5, 0.5, 0.8], [1.5, 0, 5, 0.5, 0.8]])
    assert rotated_nms(along, torch.tensor([2.0, 1]), 0.1).tolist() == [0, 1]
    across = torch.tensor([[0.0, 0, 5, 0.5, 0.0], [1.5, 0, 5, 0.5, 0.0]])
    assert rotated_nms(across, torch.tensor([2.0, 1]), 0.1).tolist() == [0]


@pytest.mark.parametrize("limit", [0, 3, 200])
def test_the_compiled_code_equals_the_reference(limit: int) -> None:
    boxes, labels = random_boxes(200, extent=25), torch.arange(200) % 3
    arguments = boxes, labels, 0.2, limit
    assert torch.equal(torch.ops.kestrel.rotated_nms(*arguments), rotated_nms_reference(*arguments))
    near = boxes[:, :2], labels, torch.linspace(0, 4, 200, dtype=torch.float64), limit
    assert torch.equal(torch.ops.kestrel.circle_nms(*near), circle_nms_reference(*near))


def test_numbers_of_boxes_and_scores_that_differ_are_refused() -> None:
    boxes, scores = random_boxes(3), torch.ones(2)
    with pytest.raises(InputError, match="boxes, scores and labels"):
        rotated_nms(boxes, scores, 0.5)
    with pytest.raises(InputError, match="boxes, scores and labels"):
        circle_nms(boxes[:, :2], torch.ones(3), 0.5, labels=torch.zeros(2, dtype=torch.int64))


def test_a_score_that_is_no_number_comes_last() -> None:
    centers = torch.tensor([[0.0, 0], [9, 0], [18, 0], [18.1, 0]])
    scores = torch.tensor([torch.nan, 0.1, torch.inf, torch.nan])
    assert circle_nms(centers, scores, 4.0).tolist() == [2, 1, 0]
    boxes = torch.nn.functional.pad(centers, (0, 3), value=1.0)
    assert rotated_nms(boxes, scores, 0.1).tolist() == [2, 1, 0]
    assert rotated_nms(boxes, torch.tensor([1, 4, 3, 2]), 0.1).tolist() == [1, 2, 0]


def test_boxes_of_whole_numbers_are_compared_by_their_whole_overlap() -> None:
    boxes = torch.tensor([[0, 0, 4, 2, 0], [1, 0, 4, 2, 0], [9, 9, 4, 2, 0]])  # of the first two 0.6
    labels = torch.zeros(3, dtype=torch.int64)
    for keep in (torch.ops.kestrel.rotated_nms, rotated_nms_reference):
        assert keep(boxes, labels, 0.5, 3).tolist() == [0, 2]


def test_limits_and_distances_that_mean_nothing_are_refused() -> None:
    boxes, scores = random_boxes(3), torch.ones(3)
    with pytest.raises(InputError, match="limit: expected at least 0, found -1"):
        rotated_nms(boxes, scores, 0.5, limit=-1)
    with pytest.raises(InputError, match="limit: expected at least 0, found -1"):
        circle_nms(boxes[:, :2], scores, 0.5, -1)
    with pytest.raises(InputError, match="min_distance_squared"):
        circle_nms(boxes[:, :2], scores, torch.ones(2))
