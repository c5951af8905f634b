# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Quarters of frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kestrel.models.kestrel_fusion import KestrelFusion
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.train import cache
from kestrel.train.fusion import PLANS, FusionTask
from kestrel.train.fusion_cut import BORDER_M, cut_at, cut_config, cut_out
from kestrel.train.fusion_data import FrameSource
from kestrel.train.fusion_loss import fusion_loss
from kestrel.train.fusion_sample import FusionSample, collate
from kestrel.train.loop import mean_loss
from kestrel.weights import assign, load

CONFIG = FusionConfig()
MIDDLE = torch.tensor([8.0, -16.0])
"""On a corner of cells of the map, of pillars and of what the decoder's coarse half sees."""


@pytest.fixture
def sample(data: Path) -> FusionSample:
    return FrameSource(cache.frame_files(data / "train"), CONFIG, with_cameras=True)[0]


@torch.no_grad()
def test_a_cut_is_answered_like_its_part_of_the_whole(sample: FusionSample) -> None:
    """Away from its borders; by the shipped weights, to which places, bearings and cameras matter."""
    whole = KestrelFusion(CONFIG).eval()
    part = KestrelFusion(cut_config(CONFIG)).eval()
    for network in (whole, part):
        assign(network, load("kestrel-fusion")[0], "kestrel-fusion")
    # Off the borders of cells, to either side of which rounding would put them.
    aside = torch.tensor([0.003, 0.007, 0.0])
    moved = torch.cat((sample.points[:, :3] + aside, sample.points[:, 3:]), 1)
    sample = replace(sample, points=moved, origins=sample.origins + aside)
    wanted = whole(collate([sample]).inputs)
    found = part(collate([cut_at(sample, CONFIG, MIDDLE)]).inputs)
    row, column = ((MIDDLE + 25.6) / 0.8).round().int().tolist()
    inner = slice(20, 44)
    for name in ("heatmap", "features"):
        there = getattr(wanted, name)[..., row : row + 64, column : column + 64]
        torch.testing.assert_close(
            getattr(found, name)[..., inner, inner], there[..., inner, inner], rtol=1e-3, atol=1e-4
        )
    row, column = ((MIDDLE + 25) / 0.5).round().int().tolist()
    there = wanted.map_logits[..., row : row + 100, column : column + 100]
    inner = slice(34, 66)
    torch.testing.assert_close(
        found.map_logits[..., inner, inner], there[..., inner, inner], rtol=1e-3, atol=1e-4
    )


def test_points_boxes_cameras_and_map_move_together(sample: FusionSample) -> None:
    box = sample.boxes[0]
    marked = torch.zeros(6, 200, 200)
    x, y = ((box[:2] + 50) / 0.5).floor().int().tolist()
    marked[0, x, y] = 1
    points = torch.cat((box[:3], torch.zeros(2)))[None]
    cut = cut_at(replace(sample, points=points, map_truth=marked), CONFIG, MIDDLE)
    torch.testing.assert_close(cut.points[0, :3], cut.boxes[0, :3])
    torch.testing.assert_close(cut.boxes[0, :2] - cut.vehicle, box[:2])
    torch.testing.assert_close(cut.origins - cut.boxes[0, :3], sample.origins - box[:3])
    assert cut.map_truth.shape == (6, 100, 100)
    x, y = ((cut.boxes[0, :2] + 25) / 0.5).floor().int().tolist()
    assert cut.map_truth[0, x, y] == 1


def test_cameras_that_do_not_look_into_a_cut_are_left_out(sample: FusionSample) -> None:
    """Both cameras of the frame look ahead; here one of them is turned round."""
    back = sample.rays * torch.tensor([-1.0, -1.0, 1.0])
    both = replace(sample, rays=torch.stack((sample.rays[0], back[1])))
    for ahead, kept in ((20.0, [0]), (-20.0, [1])):
        cut = cut_at(both, CONFIG, torch.tensor([ahead + 6 * ahead / 20, 0.0]))
        assert torch.equal(cut.pictures, both.pictures[kept])
        assert torch.equal(cut.rays, both.rays[kept])
        assert torch.equal(cut.depth, both.depth[kept])
        assert cut.earlier.shape[1] == len(cut.origins) == 1
    assert len(cut_at(both, CONFIG, torch.zeros(2)).pictures) == 2


def test_a_cut_of_the_cameras_alone_has_a_camera_and_else_the_lidar(data: Path) -> None:
    source = FrameSource(cache.frame_files(data / "train"), CONFIG, with_cameras=True, cuts=True)
    drawn = [source.draw(torch.Generator().manual_seed(seed)) for seed in range(80)]
    seen = {(sample.has_lidar, len(sample.pictures) > 0) for sample in drawn}
    assert seen == {(True, True), (True, False), (False, True)}
    assert all(len(sample.points) for sample in drawn if sample.has_lidar)
    assert not any(len(sample.points) for sample in drawn if not sample.has_lidar)
    assert sum(not sample.has_lidar for sample in drawn) > 24


def test_most_cuts_have_an_object_and_all_lie_within_the_frame(sample: FusionSample) -> None:
    cut = cut_config(CONFIG)
    away = sample.boxes.clone()
    away[0, :2] = torch.tensor([44.0, 40.0])
    sample = replace(sample, boxes=away)
    with_object = 0
    for seed in range(60):
        found = cut_out(sample, CONFIG, torch.Generator().manual_seed(seed))
        assert (found.vehicle.abs() <= CONFIG.map_extent - cut.map_extent).all()
        assert found.map_truth.shape[1:] == (100, 100)
        assert (found.points[:, :2].abs() < cut.extent).all()
        with_object += bool((found.boxes[0, :2].abs() < cut.extent - BORDER_M / 2).all())
    assert 35 < with_object < 60


def test_a_frame_without_objects_is_cut_too(sample: FusionSample) -> None:
    unseen = replace(sample, box_points=torch.zeros_like(sample.box_points))
    assert len(cut_out(unseen, CONFIG, torch.Generator().manual_seed(0)).map_truth) == 6


def test_the_task_learns_from_cuts_and_answers_whole_frames(data: Path) -> None:
    task = FusionTask(PLANS.lidar, CONFIG, cuts=True, lidar_alone=True)
    for key, value in task.averaged.state_dict().items():
        assert torch.equal(value, task.network.state_dict()[key]), key
    source = FrameSource(cache.frame_files(data / "train"), CONFIG, with_cameras=False, cuts=True)
    batch = collate([source.draw(torch.Generator().manual_seed(seed)) for seed in range(2)])
    output = task.network(batch.inputs_of(task.network))
    assert output.heatmap.shape[2:] == (64, 64)
    assert output.map_logits.shape[2:] == (100, 100)
    mean_loss(fusion_loss(output, batch, task.network)).backward()
    gradient = task.network.pillars.linear.weight.grad
    assert gradient is not None
    assert bool(gradient.any())
    whole = task.averaged(collate([source[0]]).inputs)
    assert whole.heatmap.shape[2:] == (128, 128)
    assert task.config()["extent"] == CONFIG.extent
