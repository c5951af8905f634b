# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores of cached drives: perfect answers are perfect, the baseline is judged like a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from kestrel.classes import DETECTION_CLASSES, IGNORE, MAP_LAYERS
from kestrel.cli import build_app
from kestrel.errors import ConfigError, InputError
from kestrel.train import cache, score, seg
from kestrel.train.fusion_score import Answers, score_fusion
from kestrel.train.plan import Plan
from kestrel.types import BevMap, Boxes3D, PointCloud, SensorFrame
from kestrel.weights import Manifest, save
from tests.train.conftest import make_cached_frame


@pytest.fixture
def frames(data: Path) -> list[cache.CachedFrame]:
    return [cache.read(cache.CachedFrame, path) for path in cache.frame_files(data / "validation")]


def test_labels_equal_to_the_truth_score_one(data: Path, frames: list[cache.CachedFrame]) -> None:
    truths = iter(frames)

    def perfect(cloud: PointCloud) -> np.ndarray:
        label = next(truths).label.copy()
        label[label == IGNORE] = 0
        return label

    assert score.score_segmentation(perfect, data / "validation")["point_miou"] == pytest.approx(1.0)


def test_one_wrong_class_lowers_the_score_of_that_class_alone(
    data: Path, frames: list[cache.CachedFrame]
) -> None:
    truths = iter(frames)

    def without_cars(cloud: PointCloud) -> np.ndarray:
        label = next(truths).label.copy()
        label[label == 3] = IGNORE
        return label

    values = score.score_segmentation(without_cars, data / "validation")
    assert values["iou/car"] == 0
    assert values["iou/pedestrian"] == pytest.approx(1.0)


def test_points_are_told_by_rig_where_a_drive_has_no_pictures(tmp_path: Path) -> None:
    for rig in ("nuscenes", "kitti"):
        (tmp_path / rig).mkdir()
        cache.write(tmp_path / rig / "frame_0000.npz", make_cached_frame(cameras=0))
        cache.finish(tmp_path / rig, {"rig": rig, "weather": "day", "frame_hz": 1.0, "format": cache.FORMAT})
    values = score.score_segmentation(lambda cloud: np.zeros(len(cloud), np.uint8), tmp_path)
    assert {"point_miou/nuscenes", "point_miou/kitti"} <= values.keys()


def test_boxes_and_map_equal_to_the_truth_score_one(data: Path, frames: list[cache.CachedFrame]) -> None:
    truths = iter(frames)

    def perfect(frame: SensorFrame) -> tuple[Boxes3D, BevMap]:
        truth = next(truths)
        layers = truth.map_truth(len(MAP_LAYERS), 200).astype(np.float32)
        boxes = Boxes3D(
            center=truth.boxes[:1, :3].copy(),
            size=truth.boxes[:1, 3:6].copy(),
            yaw=truth.boxes[:1, 6].copy(),
            velocity=truth.boxes[:1, 7:9].copy(),
            label=truth.box_label[:1],
            score=np.ones(1, np.float32),
            class_names=DETECTION_CLASSES,
            frame_id="base_link",
            stamp_ns=frame.stamp_ns,
        )
        return boxes, BevMap(layers, MAP_LAYERS, (-50.0, -50.0), 0.5, "base_link", frame.stamp_ns)

    values = score_fusion(Answers(perfect, sweeps=0), data / "validation", ("lidar",))
    assert values["lidar/ap2m/car"] == pytest.approx(1.0)
    assert values["lidar/map_miou"] == pytest.approx(1.0)


def test_the_baseline_has_the_figures_of_networks_and_no_manifest(data: Path) -> None:
    values = score.score(score.BASELINE, data / "validation", "validation")
    assert 0 < values["validation/point_miou"] < 0.5
    assert {"validation/lidar/mAP_2m", "validation/lidar/iou/drivable_area"} <= values.keys()


def test_weights_without_a_score_are_refused_by_name(data: Path, tmp_path: Path) -> None:
    manifest = Manifest(name="painter", network="KestrelAugment", config={}, classes=())
    save(tmp_path / "painter.safetensors", {}, manifest)
    with pytest.raises(ConfigError, match="KestrelAugment"):
        score.score(tmp_path / "painter.safetensors", data / "validation", "validation")


def test_that_no_drive_has_six_cameras_is_found_before_the_first_frame(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked(*_: object, **__: object) -> None:
        raise AssertionError("looked at a frame")

    monkeypatch.setattr(score, "FusionDetector", looked)
    expected = r"validation: expected a drive with six cameras.*\(--sensors-out\), found none"
    with pytest.raises(InputError, match=expected):
        score.score("kestrel-fusion", data / "validation", "validation", sensors_out=True)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], "--split: expected a split to score on.*found none"),
        (["--bag", "a", "--split", "test"], "expected --bag or --split.*found both"),
        (["--bag", "a", "--sensors-out"], "at most one of .*found --bag and --sensors-out"),
        (["--split", "test", "--bfloat16", "1", "--int8", "a"], "found --bfloat16 and --int8"),
    ],
)
def test_options_of_which_one_would_not_be_heeded_are_refused(options: list[str], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        CliRunner().invoke(build_app(), ["train", "score", *options], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["seg", "--resume", "--start", "kestrel-seg"], "expected --resume.* or --start, found both"),
        (["seg", "--lr", "0"], "--lr: expected a rate between 0 and 1, found 0.0"),
        (["seg", "--lr", "nan"], "--lr: expected a rate between 0 and 1, found nan"),
    ],
)
def test_options_that_a_training_would_not_heed_are_refused(arguments: list[str], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        CliRunner().invoke(build_app(), ["train", *arguments], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["fusion", "--lr", "0.001"], "--lr"),
        (["fusion", "--classes", "car"], "--classes"),
        (["seg", "clouds"], "clouds"),
        (["import"], "source"),
    ],
)
def test_a_command_takes_its_own_options_alone(arguments: list[str], named: str) -> None:
    result = CliRunner().invoke(build_app(), ["train", *arguments])
    assert result.exit_code == 2
    assert named in result.stderr


@pytest.mark.parametrize("seed", ["-1", str(2**32)])
def test_a_seed_that_no_generator_takes_is_refused(seed: str) -> None:
    result = CliRunner().invoke(build_app(), ["train", "seg", "--seed", seed])
    assert result.exit_code == 2
    assert "--seed" in result.stderr


def test_a_rate_takes_the_place_of_the_one_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Plan] = []
    monkeypatch.setattr(seg, "train", lambda data, out, plan, **_: found.append(plan))
    for options in (["--lr", "0.002"], []):
        CliRunner().invoke(build_app(), ["train", "seg", *options], catch_exceptions=False)
    assert [plan.lr for plan in found] == [0.002, seg.PLAN.lr]
