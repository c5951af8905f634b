# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Of what the truth does not say nothing is learned, and of all else as much as ever."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kestrel.eval.labelled import judged, outside
from kestrel.models.kestrel_fusion import KestrelFusion
from kestrel.models.kestrel_fusion_types import FusionConfig, FusionOutput
from kestrel.train import cache
from kestrel.train.fusion_augmentation import augment_view
from kestrel.train.fusion_cut import cut_out
from kestrel.train.fusion_data import FrameSource
from kestrel.train.fusion_loss import (
    MAP_WEIGHT,
    cell_middles,
    center_targets,
    focal_loss,
    fusion_loss,
    map_loss,
    velocity_loss,
)
from kestrel.train.fusion_sample import FusionSample, collate

CONFIG = FusionConfig()
CAR = 0


@pytest.fixture
def sample(data: Path) -> FusionSample:
    """A frame of a simulated drive: a car with points at (10, 3), a pedestrian without any."""
    return FrameSource(cache.frame_files(data / "train"), CONFIG, with_cameras=False)[0]


def region(x: float, y: float, length: float, width: float, yaw: float = 0.0) -> Tensor:
    return torch.tensor([[x, y, 0.0, length, width, 2.0, yaw]])


@dataclass
class Answer:
    """What a network might answer to frames, and the gradient of the loss by it."""

    heatmap: Tensor
    map_logits: Tensor
    parts: dict[str, Tensor]

    @classmethod
    def to(cls, *samples: FusionSample) -> Answer:
        torch.manual_seed(0)
        network, frames, side = KestrelFusion(CONFIG), len(samples), CONFIG.pillars // 2
        heatmap = torch.randn(frames, CONFIG.num_classes, side, side).requires_grad_()
        map_logits = torch.randn(frames, CONFIG.num_layers, 200, 200).requires_grad_()
        features = torch.randn(frames, CONFIG.bev_channels, side, side)
        output = FusionOutput(heatmap, features, map_logits, None, ())
        parts = fusion_loss(output, collate(list(samples)), network)
        torch.stack(list(parts.values())).sum().backward()
        return cls(heatmap, map_logits, parts)

    def gradient(self, frame: int = 0) -> Tensor:
        assert self.heatmap.grad is not None
        return self.heatmap.grad[frame]

    def map_gradient(self, frame: int) -> Tensor:
        assert self.map_logits.grad is not None
        return self.map_logits.grad[frame]


def test_a_place_is_inside_of_a_turned_box_as_seen_from_above() -> None:
    places = torch.tensor([[0.0, 0, 50], [3, 3, 0], [3, -3, 0], [4.5, 4.5, 0]])
    turned = region(0, 0, 12, 2, torch.pi / 4)
    assert outside(places, turned).tolist() == [False, False, True, True]
    assert outside(places, torch.cat((turned, region(3, -3, 1, 1)))).tolist() == [False, False, False, True]
    assert outside(places, torch.zeros(0, 7)).all()


def test_boxes_are_judged_where_and_of_what_there_are_labels() -> None:
    places = torch.tensor([[5.0, 0, 0], [20, 0, 0], [29, 0, 0], [5, 0, 0]])
    label, classes = torch.tensor([CAR, CAR, CAR, 8]), torch.arange(CONFIG.num_classes) == CAR
    truth = torch.tensor([[30.0, 0, 0]])
    given = label, truth, region(25, 0, 20, 20), classes
    assert judged(places, *given).tolist() == [True, False, True, False]
    everything = torch.zeros(0, 7), torch.ones(CONFIG.num_classes, dtype=torch.bool)
    assert judged(places, label, truth[:0], *everything).all()


def test_a_simulated_frame_is_learned_from_whole(sample: FusionSample) -> None:
    answer = Answer.to(sample)
    assert (answer.gradient()[CAR] != 0).float().mean() > 0.99
    target = center_targets(sample, CONFIG)
    alone = focal_loss(answer.heatmap, target.heatmap[None], target.weight[None, None])
    assert torch.equal(answer.parts["heatmap"], alone)
    ground = map_loss(answer.map_logits, sample.map_truth[None])
    assert torch.equal(answer.parts["map"], MAP_WEIGHT * ground)
    assert "velocity" in answer.parts


def test_the_gradient_is_zero_where_the_labels_say_nothing(sample: FusionSample) -> None:
    unlabelled = region(-20, 0, 40, 60, 0.4)
    answer = Answer.to(replace(sample, unlabelled=unlabelled))
    there = ~outside(cell_middles(CONFIG), unlabelled)
    assert there.sum() > 2000
    assert (answer.gradient()[:, there] == 0).all()
    whole = Answer.to(sample)
    assert torch.equal(answer.gradient()[:, ~there], whole.gradient()[:, ~there])
    assert (whole.gradient()[CAR, there] != 0).float().mean() > 0.99


def test_objects_are_learned_that_are_labelled_all_the_same(sample: FusionSample) -> None:
    unlabelled = region(10, 0, 40, 60)
    answer = Answer.to(replace(sample, unlabelled=unlabelled))
    x, y = ((sample.boxes[0, :2] + CONFIG.extent) / CONFIG.cell_size).long().tolist()
    assert answer.gradient()[CAR, x, y] < 0
    assert answer.gradient()[CAR, x + 1, y] > 0
    assert answer.gradient()[CAR, x + 5, y] == 0
    assert "boxes" in answer.parts


def test_the_gradient_is_zero_for_classes_that_nobody_labelled(sample: FusionSample) -> None:
    cars = torch.arange(CONFIG.num_classes) == CAR
    answer, whole = Answer.to(replace(sample, labelled_classes=cars)), Answer.to(sample)
    assert (answer.gradient()[~cars] == 0).all()
    assert torch.equal(answer.gradient()[CAR], whole.gradient()[CAR])


def test_without_a_map_there_is_no_loss_of_maps_and_others_lose_as_much(sample: FusionSample) -> None:
    unknown = replace(sample, map_truth=torch.full_like(sample.map_truth, torch.nan))
    alone = Answer.to(unknown)
    assert "map" not in alone.parts
    assert alone.map_logits.grad is None
    both = Answer.to(sample, unknown)
    assert (both.map_gradient(1) == 0).all()
    assert (both.map_gradient(0) != 0).all()
    ground = MAP_WEIGHT * map_loss(both.map_logits[:1], sample.map_truth[None])
    torch.testing.assert_close(both.parts["map"], ground)


def test_velocities_are_learned_of_boxes_that_have_one(sample: FusionSample) -> None:
    torch.manual_seed(0)
    network, side = KestrelFusion(CONFIG), CONFIG.pillars // 2
    features = torch.randn(1, CONFIG.bev_channels, side, side)
    nothing = torch.zeros(0)
    output = FusionOutput(nothing, features, nothing, None, ())
    boxes = sample.boxes[:1].repeat(2, 1)
    boxes[1, :2] = torch.tensor([-15.0, -15])
    boxes[1, 7:9] = torch.nan
    two = replace(sample, boxes=boxes, box_label=torch.zeros(2, dtype=torch.int64), box_points=torch.ones(2))
    one = replace(two, boxes=boxes[:1], box_label=two.box_label[:1], box_points=two.box_points[:1])
    known = velocity_loss(output, collate([one]), network)
    found = velocity_loss(output, collate([two]), network)
    assert known is not None
    assert found is not None
    assert torch.equal(found, known)
    found.backward()
    gradients = [part.grad for part in network.parameters() if part.grad is not None]
    assert gradients
    assert all(each.isfinite().all() for each in gradients)
    none = replace(one, boxes=boxes[1:])
    assert velocity_loss(output, collate([none]), network) is None
    assert "velocity" not in Answer.to(none).parts


def test_places_without_labels_turn_and_move_with_all_else(sample: FusionSample) -> None:
    box = sample.boxes[0]
    around = torch.cat((box[:3], box[3:6] * 0.5, box[6:7]))[None]
    corner = box[:3].clone()
    corner[0] += 0.2 * box[3] * box[6].cos()
    corner[1] += 0.2 * box[3] * box[6].sin()
    points = torch.cat((corner, torch.zeros(2)))[None]
    marked = replace(sample, unlabelled=around, points=points)
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        turned = augment_view(marked, CONFIG, generator)
        torch.testing.assert_close(turned.unlabelled[:, :3], turned.boxes[:1, :3])
        assert not outside(turned.points, turned.unlabelled).any()
        shorter = turned.unlabelled.clone()
        shorter[:, 3] *= 0.7
        assert outside(turned.points, shorter).all()
        cut = cut_out(turned, CONFIG, generator)
        torch.testing.assert_close(cut.unlabelled[:, :3], cut.boxes[:1, :3])
    assert torch.equal(marked.unlabelled, around)
