# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Detection and map heads: what a peak decodes to, suppression, ranges, grids."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kestrel.nn.bev_segmentation_head import BEVGridTransform, BEVSegmentationHead
from kestrel.nn.boxes import standard_boxes
from kestrel.nn.center_head import CenterHead
from kestrel.nn.transfusion_head import TransFusionHead

TASKS = (("car",), ("truck", "bus"))


def center_head(**changes: object) -> CenterHead:
    torch.manual_seed(0)
    arguments = {"max_num": 20, "min_radius": (1.0, 1.0), **changes}
    return CenterHead(8, TASKS, (-4.0, -6.0), (0.5, 0.5), **arguments).eval()  # type: ignore[arg-type]


def prediction(classes: int, peaks: dict[tuple[int, int, int], float]) -> dict[str, Tensor]:
    """Maps of 16 x 24 cells with logits at (class, row, column) and the same box everywhere."""
    maps = {
        "heatmap": torch.full((1, classes, 16, 24), -9.0),
        "reg": torch.full((1, 2, 16, 24), 0.5),
        "height": torch.full((1, 1, 16, 24), 1.0),
        "dim": torch.tensor([2.0, 4.0, 1.6]).log().view(1, 3, 1, 1).expand(1, 3, 16, 24),
        "rot": torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 16, 24),
        "vel": torch.tensor([3.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 16, 24),
    }
    for (label, row, column), logit in peaks.items():
        maps["heatmap"][0, label, row, column] = logit
    return maps


def test_center_head_decodes_a_peak_to_the_box_at_its_cell() -> None:
    empty = prediction(1, {})
    (found,) = center_head().decode([empty, prediction(2, {(1, 10, 4): 2.0})])
    assert found.labels.tolist() == [2]
    assert found.scores[0] == pytest.approx(1 / (1 + math.exp(-2)))
    expected = [10.5 * 0.5 - 4, 4.5 * 0.5 - 6, 1.0 - 0.8, 2.0, 4.0, 1.6, math.pi / 2, 3.0, -1.0]
    assert found.boxes[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert center_head().class_names == ("car", "truck", "bus")


def test_center_head_drops_the_weaker_of_two_close_boxes() -> None:
    peaks = {(0, 5, 5): 2.0, (0, 5, 6): 1.0, (0, 5, 12): 0.5}
    (found,) = center_head().decode([prediction(1, peaks), prediction(2, {})])
    assert found.boxes[:, 1].tolist() == pytest.approx([5.5 * 0.5 - 6, 12.5 * 0.5 - 6])


def test_center_head_drops_boxes_out_of_range() -> None:
    head = center_head(post_center_range=(-4, -6, -5, 0, 6, 5))
    (found,) = head.decode([prediction(1, {(0, 2, 3): 2.0, (0, 15, 3): 2.0}), prediction(2, {})])
    assert len(found.boxes) == 1
    assert found.boxes[0, 0] < 0


def test_center_head_finds_nothing_in_an_empty_map() -> None:
    (found,) = center_head().decode([prediction(1, {}), prediction(2, {})])
    assert found.boxes.shape == (0, 9)
    assert found.labels.shape == (0,)


def transfusion_head(**changes: object) -> TransFusionHead:
    torch.manual_seed(0)
    arguments = {
        "num_proposals": 6,
        "hidden_channels": 16,
        "num_heads": 2,
        "ffn_channels": 32,
        "single_cell_classes": (2,),
        **changes,
    }
    return TransFusionHead(8, 3, (-4.0, -6.0), (0.5, 0.5), **arguments).eval()  # type: ignore[arg-type]


def test_transfusion_peaks_are_local_maxima_away_from_the_border() -> None:
    heat = torch.zeros(1, 3, 6, 6)
    heat[0, 0, 2, 2], heat[0, 0, 2, 3], heat[0, 0, 0, 5] = 0.9, 0.8, 0.7
    heat[0, 2, 2, 2], heat[0, 2, 2, 3], heat[0, 2, 0, 5] = 0.6, 0.5, 0.4
    peaks = transfusion_head()._peaks(heat)
    assert peaks[0, 0].nonzero().tolist() == [[2, 2]]
    assert peaks[0, 2].nonzero().tolist() == [[0, 5], [2, 2], [2, 3]]


def test_transfusion_answers_have_one_proposal_per_peak() -> None:
    head = transfusion_head(num_decoder_layers=2)
    with torch.no_grad():
        proposals = head(torch.randn(2, 8, 10, 12))
        boxes = head.decode(proposals)
    assert proposals["center"].shape == (2, 2, 12)
    assert proposals["dense_heatmap"].shape == (2, 3, 10, 12)
    assert proposals["query_labels"].shape == (2, 6)
    assert [found.boxes.shape for found in boxes] == [(6, 9), (6, 9)]
    assert all((found.scores >= 0).all() and (found.scores <= 1).all() for found in boxes)


def test_transfusion_threshold_keeps_better_boxes_only() -> None:
    x = torch.randn(1, 8, 10, 12)
    with torch.no_grad():
        everything = transfusion_head()
        proposals = everything(x)
        (all_boxes,) = everything.decode(proposals)
        limit = float(all_boxes.scores.sort().values[3])
        (kept,) = transfusion_head(score_threshold=limit).decode(proposals)
    assert len(kept.scores) == 2
    assert (kept.scores > limit).all()


def test_transfusion_gradients_reach_every_parameter() -> None:
    head = transfusion_head().train()
    proposals = head(torch.randn(2, 8, 10, 12))
    names = ("center", "height", "dim", "rot", "vel", "heatmap", "dense_heatmap")
    sum(proposals[name].square().sum() for name in names).backward()
    assert [name for name, value in head.named_parameters() if value.grad is None] == []


def test_released_boxes_become_length_width_height_and_standard_yaw() -> None:
    boxes = torch.tensor([[1.0, 2, -1, 1.8, 4.5, 1.6, -math.pi / 2, 3, 4]])
    standard = standard_boxes(boxes, released=True)
    np.testing.assert_allclose(standard.center, [[1, 2, -0.2]], atol=1e-6)
    np.testing.assert_allclose(standard.size, [[4.5, 1.8, 1.6]])
    np.testing.assert_allclose(np.cos(standard.yaw), [1], atol=1e-6)
    np.testing.assert_allclose(standard.velocity, [[3, 4]])


def test_own_boxes_keep_their_order_and_yaw_within_half_turns() -> None:
    boxes = torch.tensor([[0.0, 0, 0, 4.5, 1.8, 1.6, 4.0, 0, 0]])
    standard = standard_boxes(boxes, released=False)
    np.testing.assert_allclose(standard.size, [[4.5, 1.8, 1.6]])
    np.testing.assert_allclose(standard.yaw, [4.0 - 2 * np.pi], rtol=1e-5)


def test_grid_transform_samples_cell_centres() -> None:
    scope = [(-4.0, 4.0, 1.0), (-8.0, 8.0, 1.0)]
    finer = [(-4.0, 4.0, 0.5), (-2.0, 2.0, 0.5)]
    x = (torch.arange(8.0) - 3.5).view(1, 1, 8, 1).expand(1, 1, 8, 16)
    y = (torch.arange(16.0) - 7.5).view(1, 1, 1, 16).expand(1, 1, 8, 16)
    sampled = BEVGridTransform(scope, finer)(torch.cat((x, y), dim=1))
    assert sampled.shape == (1, 2, 16, 8)
    torch.testing.assert_close(sampled[0, 0, 1:-1, 0], torch.arange(-3.25, 3.5, 0.5))
    torch.testing.assert_close(sampled[0, 1, 5], torch.arange(-1.75, 2.0, 0.5))


def test_segmentation_head_answers_on_the_output_grid() -> None:
    head = BEVSegmentationHead(8, 6, [(-4.0, 4.0, 1.0)] * 2, [(-3.0, 3.0, 0.5)] * 2, hidden_channels=4)
    logits = head(torch.randn(2, 8, 8, 8))
    assert logits.shape == (2, 6, *head.output_shape) == (2, 6, 12, 12)
    logits.sum().backward()
    assert all(value.grad is not None for value in head.parameters())
