# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The stage of Kestrel-Fusion that learns maps of several frames."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kestrel.classes import MAP_LAYERS
from kestrel.models.kestrel_fusion import KestrelFusion
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.train import cache, fusion_map
from kestrel.train.fusion_map import CUT, MapEvidence, MapSource, MapTask, collect
from kestrel.train.plan import Plan
from kestrel.train.sensor_cases import LIDAR, NOTHING, Without
from tests.train.conftest import make_cached_frame

CONFIG = FusionConfig()
LAYERS = len(MAP_LAYERS)
PLAN = Plan(steps=6, batch_size=1, lr=1e-2, validate_every=6)


@pytest.fixture(scope="module")
def network() -> KestrelFusion:
    torch.manual_seed(0)
    network = KestrelFusion(CONFIG).eval().requires_grad_(False)
    network.map_head.answer.weight.mul_(20)  # frames differ
    return network


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two drives of four and of two frames; the vehicle moves 2 m from frame to frame."""
    root = tmp_path_factory.mktemp("maps")
    for drive, count in (("a", 4), ("b", 2)):
        (root / drive).mkdir()
        for number in range(count):
            pose = np.eye(4)
            pose[0, 3] = 2.0 * number
            frame = replace(make_cached_frame(number, cameras=1), odom_from_base=pose)
            cache.write(root / drive / f"frame_{number:04d}.npz", frame)
        (root / drive / cache.DONE).write_text(json.dumps({"frame_hz": 2.0, "format": cache.FORMAT}))
    return cache.frame_files(root)


def test_frames_are_collected_with_what_those_before_them_said(
    network: KestrelFusion, files: list[Path]
) -> None:
    frames = collect(network, files, PLAN, varied=False).frames
    assert len(frames) == 6
    remembers = [
        bool((each.evidence[:, :LAYERS] - each.evidence[:, LAYERS:-2]).abs().max() > 0.1) for each in frames
    ]
    assert remembers == [False, True, True, True, False, True]
    for each, path in zip(frames, files, strict=True):
        truth = cache.read(cache.CachedFrame, path).map_truth(LAYERS, 200)
        assert (each.truth[0].numpy() == truth).all()


def test_no_more_frames_are_collected_than_there_are_steps(network: KestrelFusion, files: list[Path]) -> None:
    assert len(collect(network, files, replace(PLAN, steps=3), varied=False)) == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion_map, "FRAMES", 2)
        assert len(collect(network, files, PLAN, varied=True)) == 2


def test_some_memories_are_short(
    network: KestrelFusion, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def remembering(forgotten: float) -> int:
        monkeypatch.setattr(fusion_map, "FORGOTTEN", forgotten)
        monkeypatch.setattr(fusion_map, "SENSORS", ((1.0, NOTHING),))
        frames = collect(network, files, PLAN, varied=True).frames
        return sum(
            bool((each.evidence[:, :LAYERS] - each.evidence[:, LAYERS:-2]).abs().max() > 0.1)
            for each in frames
        )

    assert (remembering(0.0), remembering(1.0)) == (4, 0)


def test_in_some_drives_the_lidar_comes_or_goes() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [fusion_map._sensors(generator) for _ in range(300)]
    gone = Without.of(LIDAR)
    assert {(NOTHING, gone), (gone, NOTHING)} < set(drawn)
    assert 0.35 < drawn.count((NOTHING, NOTHING)) / len(drawn) < 0.55


def striped(cells: int = 200) -> MapSource:
    """Return one map of stripes that the frame knows a little and the average better."""
    truth = ((torch.arange(cells) // 8) % 2 > 0)[None, None, :, None].expand(1, LAYERS, cells, cells)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, 2 * LAYERS + 2, cells, cells, generator=generator)
    signal = torch.cat((0.3 * truth.float(), 1.5 * truth.float(), torch.zeros(1, 2, cells, cells)), 1)
    return MapSource([MapEvidence((signal + noise - 0.7).half(), truth)])


def test_samples_are_cut_turned_and_mirrored_together_with_the_truth() -> None:
    source = striped()
    directions = set()
    for seed in range(20):
        sample = source.draw(torch.Generator().manual_seed(seed))
        assert sample.truth.shape == (1, LAYERS, CUT, CUT)
        assert sample.evidence.shape == (1, 2 * LAYERS + 2, CUT, CUT)
        averaged = sample.evidence[:, LAYERS:-2]
        if not torch.equal(averaged, sample.evidence[:, :LAYERS]):
            assert averaged[sample.truth].mean() > averaged[~sample.truth].mean() + 1
        directions.add(bool((sample.truth[..., :1] == sample.truth).all()))
        again = source.draw(torch.Generator().manual_seed(seed))
        assert torch.equal(again.evidence, sample.evidence)
    assert directions == {True, False}


def test_some_samples_know_of_no_frame_but_their_own() -> None:
    source = striped()
    samples = [source.draw(torch.Generator().manual_seed(seed)) for seed in range(60)]
    alone = [torch.equal(each.evidence[:, :LAYERS], each.evidence[:, LAYERS:-2]) for each in samples]
    assert 4 <= sum(alone) <= 24


def test_it_learns_and_leaves_the_rest_of_the_network_alone() -> None:
    torch.manual_seed(0)
    task, source = MapTask(PLAN, CONFIG), striped()
    before = {key: value.clone() for key, value in task.network.state_dict().items()}
    trained = [parameter for parameter in task.network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for step in range(12):
        batch = MapEvidence.joined([source.draw(torch.Generator().manual_seed(step))])
        loss = task.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    after = task.network.state_dict()
    changed = {key.split(".")[0] for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {"map_refiner"}


def test_right_maps_score_one_and_each_layer_counts_alike() -> None:
    task, source = MapTask(PLAN, CONFIG), striped()
    (frame,) = source.frames
    sure = torch.where(frame.truth, 5.0, -5.0)
    sure[:, 0] *= -1
    evidence = torch.cat((sure, sure, torch.zeros(1, 2, *sure.shape[2:])), 1)
    task.validation_step(MapEvidence.joined([MapEvidence(evidence, frame.truth)]), 0)
    scores = task.scores()
    assert next(iter(scores)) == "map_miou"
    assert scores["map_miou"] == pytest.approx((LAYERS - 1) / LAYERS)
    assert scores[f"iou/{MAP_LAYERS[0]}"] == 0
