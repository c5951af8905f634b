# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kestrel.errors import InputError
from kestrel.models.kestrel_fusion_motion import BoxMotion
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.pipelines import Augmenter, FusionDetector, PointSegmenter, VideoUnderstanding
from kestrel.train import augment, fusion, fusion_motion, seg, video
from kestrel.train.drawing import Endless
from kestrel.train.fusion_data import CamerasAlone
from kestrel.train.fusion_motion import Surroundings
from kestrel.train.plan import Plan
from kestrel.weights import load, save

PLAN = Plan(steps=2, batch_size=2, lr=1e-3, validate_every=2, validation_batches=1, workers=0)
MUON = replace(PLAN, optimizer="muon")


def last_step(out: Path) -> int:
    return int(torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])


def was_to_be_longer(out: Path, steps: int) -> None:
    """Make the checkpoint of a run that has ended one of a run that was interrupted."""
    path = out / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["plan"]["steps"] = steps
    torch.save(checkpoint, path)


@pytest.mark.parametrize(
    ("module", "name", "pipeline", "moves"),
    [
        (seg, "seg", PointSegmenter, 1),
        (video, "video", VideoUnderstanding, 1),
        (augment, "augment", Augmenter, 2),
    ],
)
def test_training_runs_exports_and_resumes(
    data: Path, tmp_path: Path, module: Any, name: str, pipeline: Callable[[Path], Any], moves: int
) -> None:
    weights = module.train(data, tmp_path, PLAN, resume=False)
    assert last_step(tmp_path / name) == 2 * moves
    pipeline(weights)
    was_to_be_longer(tmp_path / name, 4)
    module.train(data, tmp_path, replace(PLAN, steps=4), resume=True)
    assert last_step(tmp_path / name) == 4 * moves
    assert (tmp_path / name / "curves.png").stat().st_size > 5000


@pytest.fixture
def boxes_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a network finds, there are a car that stands and one that moves."""
    around, there = (
        torch.rand(2, 3, BoxMotion.POINTS, 5),
        torch.ones(2, 3, BoxMotion.POINTS, dtype=torch.bool),
    )
    found = Surroundings(
        around.half(),
        there,
        count=torch.full((2, 3), 99.0),
        size=torch.ones(2, 3),
        told=torch.zeros(2, 2),
        truth=torch.tensor([[0.0, 0], [5, 0]]),
        reverse=torch.tensor([False, True]),
        label=torch.tensor([0, 0]),
    )
    monkeypatch.setattr(fusion_motion, "surroundings", lambda *_: found)


def test_fusion_trains_in_six_stages_and_resumes_in_the_last(
    data: Path, tmp_path: Path, boxes_found: None
) -> None:
    def last_checkpoint(folder: str) -> int:
        return (tmp_path / folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns

    def sha256_of_start(folder: str) -> str:
        manifest = load(tmp_path / folder / "kestrel-fusion.safetensors")[1]
        return str(manifest.training["started_from"]["sha256"])

    plans = fusion.Plans(MUON, MUON, MUON, MUON, PLAN, PLAN)
    weights = fusion.train(data, tmp_path, plans, FusionConfig(), resume=False, start="kestrel-fusion")
    FusionDetector(weights)
    assert sha256_of_start("fusion-cameras") == load("kestrel-fusion")[1].sha256
    for stage, before in (
        ("fusion-lidar", "fusion-cameras"),
        ("fusion-quarters", "fusion-lidar"),
        ("fusion-sensors", "fusion-quarters"),
        ("fusion-map", "fusion-sensors"),
        ("fusion", "fusion-map"),
    ):
        assert sha256_of_start(stage) == load(tmp_path / before / "kestrel-fusion.safetensors")[1].sha256
    earlier = ("fusion-cameras", "fusion-lidar", "fusion-quarters", "fusion-sensors", "fusion-map")
    done = [last_checkpoint(folder) for folder in earlier]
    longer = replace(MUON, steps=3)
    was_to_be_longer(tmp_path / "fusion", 3)
    fusion.train(
        data,
        tmp_path,
        fusion.Plans(longer, longer, longer, longer, replace(PLAN, steps=3), replace(PLAN, steps=3)),
        FusionConfig(),
        resume=True,
    )
    assert [last_checkpoint(folder) for folder in earlier] == done
    assert last_step(tmp_path / "fusion") == 3


def test_quarters_alone_are_judged_by_the_cameras_alone(
    data: Path, tmp_path: Path, boxes_found: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: dict[str, bool] = {}

    def fitted(
        task: Any, train_source: Any, validation_source: Any, collate: Any, out: Path, **_: Any
    ) -> None:
        judged[out.name] = isinstance(validation_source, CamerasAlone)
        assert not isinstance(train_source, CamerasAlone)
        out.mkdir()
        save(out / "kestrel-fusion.safetensors", task.network.state_dict(), load("kestrel-fusion")[1])

    monkeypatch.setattr(fusion, "fit", fitted)
    plans = fusion.Plans(MUON, MUON, MUON, MUON, PLAN, PLAN)
    fusion.train(data, tmp_path, plans, FusionConfig(), resume=False)
    assert len(judged) == 6
    assert [name for name, alone in judged.items() if alone] == ["fusion-quarters"]


def test_the_camera_stage_changes_the_camera_branch_alone(
    data: Path, tmp_path: Path, boxes_found: None
) -> None:
    plans = fusion.Plans(MUON, MUON, MUON, MUON, PLAN, PLAN)
    fusion.train(data, tmp_path, plans, FusionConfig(), resume=False, start="kestrel-fusion")
    stage = load(tmp_path / "fusion-cameras" / "kestrel-fusion.safetensors")[0]
    before = load("kestrel-fusion")[0]
    changed = {key.split(".")[0] for key, value in stage.items() if not torch.equal(value, before[key])}
    assert changed == {"camera"}
    lidar = load(tmp_path / "fusion-lidar" / "kestrel-fusion.safetensors")[0]
    assert all(torch.equal(lidar[key], stage[key]) for key in stage if key.startswith("camera."))
    norms = [key for key in stage if key.endswith(("running_mean", "running_var"))]
    changed = {key.split(".")[0] for key in norms if not torch.equal(lidar[key], stage[key])}
    assert "pillars" in changed
    assert not changed & {"view", "camera"}
    for folder in ("fusion-quarters", "fusion-sensors"):
        sensors = load(tmp_path / folder / "kestrel-fusion.safetensors")[0]
        assert all(torch.equal(sensors[key], lidar[key]) for key in norms)
    maps = load(tmp_path / "fusion-map" / "kestrel-fusion.safetensors")[0]
    assert {key.split(".")[0] for key in maps if not torch.equal(maps[key], sensors[key])} == {"map_refiner"}


@pytest.mark.usefixtures("boxes_found")
def test_fusion_trains_without_the_shift_and_says_so(data: Path, tmp_path: Path) -> None:
    plans = fusion.Plans(MUON, MUON, MUON, MUON, PLAN, PLAN)
    weights = fusion.train(data, tmp_path, plans, FusionConfig(hop_s=0), resume=False)
    assert load(weights)[1].config["hop_s"] == 0
    assert FusionDetector(weights).network.camera.no_past(1) == ()


def test_resuming_what_never_started_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--resume.*last\.ckpt"):
        seg.train(data, tmp_path, PLAN, resume=True)


def test_a_resumed_run_goes_on_with_the_samples_it_would_have_drawn() -> None:
    class Numbers:
        def draw(self, generator: torch.Generator) -> int:
            return int(torch.randint(1 << 30, (1,), generator=generator))

    def take(first: int, count: int) -> list[int]:
        return [
            number for number, _ in zip(Endless(Numbers(), seed=1, first=first), range(count), strict=False)
        ]

    assert take(4, 3) == take(0, 7)[4:]
    assert len(set(take(0, 7))) == 7


def test_mirroring_a_clip_swaps_the_sides_of_crossings() -> None:
    from kestrel.classes import EVENTS

    names = [EVENTS[index] for index in video.MIRROR.tolist()]
    assert names[EVENTS.index("crossing_from_left")] == "crossing_from_right"
    assert names[EVENTS.index("crossing_from_right")] == "crossing_from_left"
    assert sum(a != b for a, b in zip(names, EVENTS, strict=True)) == 2


def test_the_loss_knows_how_much_more_often_than_they_happen_events_are_drawn(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = video.ClipSource([data / "train" / "d0" / "video.npz"], video.VideoConfig())
    events = source.videos[0].event
    ends = []
    monkeypatch.setattr(source, "_indices", lambda _, end, pace: ends.append(events[end]))
    monkeypatch.setattr(source, "_clip", lambda *_: (None, None))
    monkeypatch.setattr(video, "augment", lambda clip, events, generator: (clip, events))
    generator = torch.Generator().manual_seed(3)
    for _ in range(4000):
        source.draw(generator)
    happen, drawn = (np.bincount(each, minlength=8) / len(each) for each in (events, np.array(ends)))
    assert len(set(events.tolist())) > 1
    np.testing.assert_allclose(happen * np.exp(source.prior_shift().numpy()), drawn, atol=0.03)


def test_clips_are_one_hop_apart(data: Path) -> None:
    source = video.ClipSource([data / "train" / "d0" / "video.npz"], video.VideoConfig())
    indices = source._indices(source.videos[0], 40, 1.0)
    assert np.diff(indices).tolist() == [2] * (video.CLIP - 1)
    assert indices[-1] == 40
    assert source._indices(source.videos[0], 3, 1.0)[0] == 0


def test_training_starts_from_weights_and_names_them_and_its_data(data: Path, tmp_path: Path) -> None:
    plan = replace(PLAN, steps=1, lr=0.0, weight_decay=0.0)
    weights = seg.train(data, tmp_path, plan, resume=False, start="kestrel-seg")
    (given, shipped), (found, manifest) = load("kestrel-seg"), load(weights)
    assert manifest.training["started_from"] == {"name": "kestrel-seg", "sha256": shipped.sha256}
    assert manifest.training["data"]["drives"] == 1
    assert manifest.rigs == ("kitti",)
    key = "network.classifier.0.weight"
    torch.testing.assert_close(found[key], given[key], atol=1e-3, rtol=1e-3)


def test_a_split_may_hold_one_sensor_alone(data: Path, tmp_path: Path) -> None:
    from kestrel.train import cache

    for name in ("train_lidar", "train_lidar_streets"):
        (tmp_path / name / "drive").mkdir(parents=True)
    cache.finish(tmp_path / "train_lidar" / "drive", {})
    assert cache.split_folders(tmp_path, "train", "lidar") == [tmp_path / "train_lidar"], "the other is begun"
    cache.finish(tmp_path / "train_lidar_streets" / "drive", {})
    both = [tmp_path / "train_lidar", tmp_path / "train_lidar_streets"]
    assert cache.split_folders(tmp_path, "train", "lidar") == both
    assert cache.split_folders(data, "train", "video") == [data / "train"]
    with pytest.raises(InputError, match="train, train_video"):
        cache.split_folders(tmp_path, "train", "video")
