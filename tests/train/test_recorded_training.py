# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Imported recordings train what they can serve, and are said to be left out of all else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS
from kestrel.errors import ConfigError, InputError
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.train import cache, fusion, score, seg
from kestrel.train.drive_file import Holds
from kestrel.train.fusion import FusionTask
from kestrel.train.fusion_data import FrameSource
from kestrel.train.fusion_sample import collate
from kestrel.train.fusion_score import Answers, score_all_sensors, score_cameras_alone, score_fusion
from kestrel.train.own_recordings import import_recording
from kestrel.train.plan import Plan
from kestrel.types import BevMap, Boxes3D, SensorFrame
from kestrel.weights import load, save
from tests.train.recordings import Drive

PLAN = Plan(steps=1, batch_size=1, lr=1e-3, validate_every=1, validation_batches=1, workers=0)
PLANS = fusion.Plans(PLAN, PLAN, PLAN, PLAN, PLAN, PLAN)
BLIND, SEEING = Drive(), Drive(cameras={"front": 0})


def imported(data: Path, recorded: Drive) -> Path:
    recording = recorded.write(data / "mine.bag")
    for split in ("train_lidar", "validation_lidar"):
        import_recording(recording, data, split)
    return data


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The sources of the training and the validation of each stage that would have run."""
    ran: dict[str, Any] = {}

    def fitted(task: Any, train: Any, validation: Any, collated: Any, out: Path, **_: Any) -> None:
        ran[out.name] = train, validation
        out.mkdir(parents=True)
        save(out / "kestrel-fusion.safetensors", task.network.state_dict(), load("kestrel-fusion")[1])

    monkeypatch.setattr(fusion, "fit", fitted)
    return ran


def test_stages_that_recordings_cannot_serve_are_left_out_and_said(
    tmp_path: Path, stages: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    data = imported(tmp_path / "own", SEEING)
    weights = fusion.train(data, tmp_path, PLANS, FusionConfig(), resume=False, start="kestrel-fusion")
    assert list(stages) == ["fusion-cameras", "fusion-lidar", "fusion-quarters", "fusion-sensors"]
    assert weights == tmp_path / "fusion-sensors" / "kestrel-fusion.safetensors"
    said = capsys.readouterr().err
    assert "stage fusion-map: no drive for train has maps; it is left out" in said
    assert "stage fusion: no drive for train has velocities; it is left out" in said
    assert "fusion-lidar" not in said


def test_what_is_left_out_has_to_be_known_already(tmp_path: Path, stages: dict[str, Any]) -> None:
    data = imported(tmp_path / "own", BLIND)
    expected = r"--start: expected weights.*stage fusion-cameras: no drive for train has pictures.*found none"
    with pytest.raises(ConfigError, match=expected):
        fusion.train(data, tmp_path, PLANS, FusionConfig(), resume=False)
    assert not stages


def test_a_stage_needs_drives_to_judge_it_by(data: Path, tmp_path: Path) -> None:
    blind = imported(tmp_path / "own", BLIND)
    stage = fusion.Stage(FusionTask(PLAN, FusionConfig()), "fusion-sensors", len, collate, Holds.PICTURES)
    splits = {"train": [data / "train"], "validation": [blind / "validation_lidar"]}
    with pytest.raises(ConfigError, match="no drive for validation has pictures"):
        fusion.served([stage], splits, needs_start=True)
    splits["validation"].append(data / "validation")
    assert fusion.served([stage], splits, needs_start=True) == [stage]


def test_beside_simulated_drives_all_stages_run_and_maps_are_of_these_alone(
    data: Path,
    tmp_path: Path,
    stages: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mixed = imported(tmp_path / "own", BLIND)
    for split in ("train", "validation"):
        shutil.copytree(data / split, mixed / split)
    monkeypatch.setattr(fusion.fusion_motion, "collect", lambda *_, **__: None)
    fusion.train(mixed, tmp_path, PLANS, FusionConfig(), resume=False)
    assert len(stages) == 6
    assert {len(source.files) for source in stages["fusion-lidar"]} == {5}
    assert len(stages["fusion-map"][1]) == 1  # as many as the plan has steps
    assert "1 of 2 drives have no maps; they are left out" in capsys.readouterr().err


def test_a_step_on_recordings_alone_runs_and_is_judged_by_boxes(tmp_path: Path) -> None:
    data = imported(tmp_path / "own", BLIND)
    weights = fusion.train(data, tmp_path, PLANS, FusionConfig(), resume=False, start="kestrel-fusion")
    manifest = load(weights)[1]
    assert manifest.training["data"]["source"] == "recording mine.bag"
    assert "val/ap2m/car" in manifest.metrics
    assert not [name for name in manifest.metrics if "iou" in name]


def test_maps_are_judged_where_they_are_known(data: Path) -> None:
    source = FrameSource(cache.frame_files(data / "train"), FusionConfig(), with_cameras=False)
    task, known = FusionTask(PLAN, FusionConfig()), source[0]
    task.validation_step(collate([known]), 0)
    overlap = task.overlap.clone()
    blank = torch.full_like(known.map_truth, torch.nan)
    task.validation_step(collate([replace(known, map_truth=blank)]), 1)
    assert torch.equal(task.overlap, overlap)
    assert "map_miou" in task.scores()
    task.validation_step(collate([replace(known, map_truth=blank)]), 0)
    assert "map_miou" not in task.scores()


def test_kestrel_seg_learns_of_no_recording(tmp_path: Path, data: Path) -> None:
    own = imported(tmp_path / "own", BLIND)
    with pytest.raises(
        InputError, match=r"train_lidar: expected drives with classes of points, found 1 without"
    ):
        seg.train(own, tmp_path, PLAN, resume=False)
    with pytest.raises(InputError, match="expected drives with classes of points"):
        score.score_segmentation(lambda cloud: np.zeros(len(cloud), np.uint8), own / "train_lidar")


def test_kestrel_seg_leaves_recordings_out_beside_other_drives(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = imported(tmp_path / "own", BLIND)
    for split in ("train", "validation"):
        shutil.copytree(data / split, own / split)
    sources: list[Any] = []
    monkeypatch.setattr(seg, "fit", lambda task, *given, **_: sources.extend([task.data, *given]))
    seg.train(own, tmp_path, PLAN, resume=False)
    told, training, validation, *_ = sources
    assert told["drives"] == 1
    assert {path.parent.name for source in (training, validation) for path in source.files} == {"d0"}
    assert capsys.readouterr().err.count("1 of 2 drives have no classes of points; they are left out") == 2


class EverywhereDetector:
    """Finds the true car, a car where nothing is labelled, and a pedestrian, of which nothing is known."""

    def __init__(self, recorded: Drive) -> None:
        self.recorded = recorded
        self.cameras: list[int] = []

    def __call__(self, frame: SensorFrame) -> tuple[Boxes3D, BevMap]:
        self.cameras.append(len(frame.images))
        truth = self.recorded.truth(frame.stamp_ns)
        boxes = replace(
            truth,
            center=np.concatenate((truth.center, [[10, 10, 1]])).astype(np.float32),
            size=np.tile(truth.size[:1], (3, 1)),
            yaw=np.tile(truth.yaw[:1], 3),
            velocity=np.zeros((3, 2), np.float32),
            label=np.array([0, 0, 8], np.int64),
            score=np.array([0.5, 0.9, 0.9], np.float32),
            class_names=DETECTION_CLASSES,
        )
        layers = np.zeros((len(MAP_LAYERS), 200, 200), np.float32)
        return boxes, BevMap(layers, MAP_LAYERS, (-50.0, -50.0), 0.5, "base_link", frame.stamp_ns)


@pytest.mark.parametrize("recorded", [BLIND, SEEING], ids=["blind", "seeing"])
def test_scores_are_of_what_the_truth_says(tmp_path: Path, recorded: Drive) -> None:
    folder = imported(tmp_path / "own", recorded) / "validation_lidar"
    detector = EverywhereDetector(recorded)
    values = score_fusion(Answers(detector, sweeps=2), folder, ("camera+lidar", "lidar", "camera"))
    choices = ["camera+lidar", "lidar", "camera"] if recorded is SEEING else ["lidar"]
    assert {name.split("/")[0] for name in values} == set(choices)
    for sensors in choices:
        assert values[f"{sensors}/mAP"] == pytest.approx(1)
        assert f"{sensors}/mATE" in values
    assert not [name for name in values if name.split("/")[-1] in ("mAVE", "mAAE", "NDS", "map_miou")]
    assert set(score_all_sensors(Answers(detector, sweeps=2), folder)) == {"mAP", "mAP_2m"}
    assert ("mAP" in score_cameras_alone(Answers(detector, sweeps=2), folder)) == (recorded is SEEING)
