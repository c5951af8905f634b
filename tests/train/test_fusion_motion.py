# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The stage of Kestrel-Fusion that learns velocities from points."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kestrel.errors import InputError
from kestrel.models.kestrel_fusion import KestrelFusion
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.pipelines.box_decoder import DecodedBoxes
from kestrel.train import cache, fusion_motion
from kestrel.train.fusion_data import FrameSource
from kestrel.train.fusion_motion import (
    MOST_BOXES,
    TOGETHER,
    MotionSource,
    MotionTask,
    Surroundings,
    matched,
    surroundings,
)
from kestrel.train.fusion_sample import FusionSample
from kestrel.train.plan import Plan

CONFIG = FusionConfig()


@pytest.fixture
def sample(data: Path) -> FusionSample:
    return FrameSource(cache.frame_files(data / "train"), CONFIG, with_cameras=False)[0]


def boxes_at(*places: tuple[float, float], label: int = 0) -> DecodedBoxes:
    values = torch.zeros(len(places), 9)
    values[:, :2] = torch.tensor(places)
    return DecodedBoxes(values, torch.full((len(places),), label), torch.ones(len(places)))


def test_a_box_is_compared_with_the_nearest_true_one_of_its_class(sample: FusionSample) -> None:
    truth = torch.zeros(4, 9)
    truth[:, 0] = torch.tensor([0.0, 3, 3, 20])
    truth[:, 7] = torch.tensor([1.0, 2, 3, 4])
    scene = replace(
        sample, boxes=truth, box_label=torch.tensor([0, 0, 1, 0]), box_points=torch.tensor([5, 5, 5, 0])
    )
    found, true = matched(boxes_at((1, 0), (2.5, 0.5), (8, 0), (20, 0)), scene)
    assert found.values[:, 0].tolist() == [1, 2.5]
    assert true[:, 7].tolist() == [1, 2]
    _, true = matched(boxes_at((2.5, 0.5), label=1), scene)
    assert true[:, 7].tolist() == [3]


def test_no_more_than_the_best_boxes_are_learned_from(sample: FusionSample) -> None:
    scene = replace(
        sample, boxes=torch.zeros(1, 9), box_label=torch.zeros(1, dtype=torch.int64), box_points=torch.ones(1)
    )
    found, true = matched(boxes_at(*[(0, 0)] * (MOST_BOXES + 9)), scene)
    assert len(found.values) == len(true) == MOST_BOXES
    nothing = replace(scene, boxes=scene.boxes[:0], box_label=scene.box_label[:0], box_points=torch.ones(0))
    found, true = matched(boxes_at((0, 0)), nothing)
    assert len(found.label) == len(true) == 0


def street(sample: FusionSample) -> FusionSample:
    """Twelve people who walk, each seen in three sweeps."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(12, 9)
    truth[:, 0], truth[:, 2:6] = torch.arange(12.0) * 8 - 44, torch.tensor([0.9, 0.7, 0.7, 1.8])
    truth[:, 6] = 6 * torch.rand(12, generator=generator)
    truth[:, 7:9] = 3 * torch.rand(12, 2, generator=generator) - 1.5
    body = (torch.rand(12, 30, 3, generator=generator) - 0.5) * torch.tensor([0.5, 0.5, 1.4])
    body = body + truth[:, None, :3]
    sweeps = []
    for age in (0.0, 0.2, 0.4):
        then = body.clone()
        then[..., :2] -= age * truth[:, None, 7:9]
        sweeps.append(torch.cat((then, torch.zeros(12, 30, 1), torch.full((12, 30, 1), age)), -1))
    return replace(
        sample,
        points=torch.cat(sweeps).flatten(0, 1),
        boxes=truth,
        box_label=torch.full((12,), 8),
        box_points=torch.full((12,), 30),
    )


@pytest.fixture
def walkers(sample: FusionSample, monkeypatch: pytest.MonkeyPatch) -> Surroundings:
    """What a network finds that thinks that nobody moves, and of six that they head backwards."""
    scene = street(sample)
    told = scene.boxes.clone()
    told[:, 7:9] = 0
    told[:6, 6] += torch.pi
    found = DecodedBoxes(told, scene.box_label, torch.ones(12))
    monkeypatch.setattr(fusion_motion, "first_boxes", lambda *_: found)
    return surroundings(KestrelFusion(CONFIG).eval(), scene)


def test_boxes_are_collected_in_their_own_axes(walkers: Surroundings, sample: FusionSample) -> None:
    boxes = street(sample).boxes
    assert len(walkers) == 12
    torch.testing.assert_close(walkers.truth.norm(dim=1), boxes[:, 7:9].norm(dim=1))
    assert walkers.reverse.tolist() == [True] * 6 + [False] * 6
    along = boxes[:, 7] * boxes[:, 6].cos() + boxes[:, 8] * boxes[:, 6].sin()
    torch.testing.assert_close(walkers.truth[:, 0], torch.where(walkers.reverse, -along, along))
    assert bool(walkers.there[:, :, :30].all())
    assert not bool(walkers.there[:, :, 30:].any())
    now, before = (walkers.around[:, slot, :30].float().mean(1) for slot in (0, 2))
    torch.testing.assert_close((now - before)[:, :2], 0.4 * walkers.truth, atol=0.01, rtol=0.01)


def test_what_is_drawn_fits_together_however_it_is_turned_and_told(walkers: Surroundings) -> None:
    drawn = MotionSource(walkers).draw(torch.Generator().manual_seed(1))
    assert len(drawn) == TOGETHER
    assert float((drawn.told - walkers.told[:1]).norm(dim=1).max()) > 1
    both = (drawn.there[:, 0] & drawn.there[:, 2])[..., None]  # the same points in both sweeps
    seen = both.any(1)[:, 0]
    assert 0.8 * TOGETHER < int(seen.sum()) < TOGETHER
    assert torch.equal(seen, (drawn.count > 0).all(1))
    count = both.sum(1).clamp(min=1)
    now, before = ((drawn.around[:, slot, :, :2] * both).sum(1) / count for slot in (0, 2))
    moved = 0.4 * (drawn.truth - drawn.told)
    torch.testing.assert_close((now - before)[seen], moved[seen], atol=0.02, rtol=0.02)


def test_it_learns_the_motion_of_points_and_changes_nothing_else(
    walkers: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    task = MotionTask(Plan(steps=60, batch_size=1, lr=3e-3, validate_every=60), CONFIG)
    monkeypatch.setattr(task, "log", lambda *_, **__: None)
    before = {key: value.clone() for key, value in task.network.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in task.network.parameters() if p.requires_grad], lr=3e-3)
    source, generator = MotionSource(walkers), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = task.training_step(source.draw(generator), 0)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert sum(losses[-5:]) < sum(losses[:5]) / 3
    changed = {
        key.split(".")[0] for key, value in task.network.state_dict().items() if not value.equal(before[key])
    }
    assert changed == {"motion"}
    task.averaged.load_state_dict(task.network.state_dict())
    assert len(source) == 1
    task.validation_step(source[0], 0)
    scores = task.scores()
    assert scores["mean"] == (scores["velocity"] + scores["sense"]) / 2
    assert scores["velocity"] == scores["velocity/pedestrian"] > 0.5
    assert scores["error"] < 0.6 < float(walkers.truth.norm(dim=1).mean())


def test_without_anything_found_it_names_the_stage_the_remedy_and_the_weights_that_are_there(
    data: Path, walkers: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = walkers.take(torch.zeros(0, dtype=torch.int64))
    monkeypatch.setattr(fusion_motion, "surroundings", lambda *_: nothing)
    source = FrameSource(cache.frame_files(data / "validation"), CONFIG, with_cameras=False)
    plan = Plan(steps=1, batch_size=1, lr=1e-3, validate_every=1, workers=0)
    expected = (
        r"last stage of fusion, velocities: expected .* more steps, found none; .* are there\.safetensors"
    )
    with pytest.raises(InputError, match=expected):
        fusion_motion.collect(KestrelFusion(CONFIG), source, plan, "there.safetensors", augmented=False)


def test_a_velocity_that_nobody_knows_teaches_nothing_but_the_sense_of_its_box(
    walkers: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    task = MotionTask(Plan(steps=1, batch_size=1, lr=3e-3, validate_every=1), CONFIG)
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(task, "log_dict", lambda parts, **_: logged.update(parts))
    truth = walkers.truth.clone()
    truth[:6] = torch.nan
    half = replace(walkers, truth=truth)
    task.training_step(walkers.take(torch.arange(6, 12)), 0)
    known = logged["velocity"]
    task.training_step(half, 0).backward()
    torch.testing.assert_close(logged["velocity"], known)
    gradients = [part.grad for part in task.parameters() if part.grad is not None]
    assert gradients
    assert all(each.isfinite().all() for each in gradients)
    task.validation_step(half, 0)
    label = int(half.label[0])
    assert (len(task.errors[label]), len(task.senses[label])) == (6, 12)
    drawn = MotionSource(half).draw(torch.Generator().manual_seed(1))
    assert 0 < int(drawn.truth.isnan().all(1).sum()) < TOGETHER
