# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores reach the manifest of weights when they are of the drives of the split, and not otherwise."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from kestrel.cli import build_app
from kestrel.errors import InputError
from kestrel.sim.splits import DriveSpec, drives, scored_drives
from kestrel.train import cache, score, score_memory
from kestrel.types import PointCloud, PointLabels
from kestrel.weights import Manifest, read_manifest, save
from tests.train.conftest import make_cached_frame

FIGURES = {"test/drives": 11.0, "test/point_miou": 0.5}


def write_drives(data: Path, split: str, specs: list[DriveSpec]) -> Path:
    """Drives of a split, as `kestrel train prepare` names them, without frames."""
    for spec in specs:
        (data / split / spec.name).mkdir(parents=True)
        told = {**asdict(spec), "weather": spec.weather or "fog", "frame_hz": 2.0, "format": cache.FORMAT}
        cache.finish(data / split / spec.name, told)
    return data / split


def change(drive: Path, **values: object) -> None:
    told = json.loads((drive / cache.DONE).read_text())
    cache.finish(drive, {**told, **values})


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    save(path, {}, Manifest("small", "KestrelSeg", {}, (), metrics={"val/point_miou": 0.4}))
    return path


def test_the_scores_of_all_test_drives_are_kept_beside_those_of_other_splits(
    tmp_path: Path, weights: Path
) -> None:
    folder = write_drives(tmp_path, "test", scored_drives())
    assert score_memory.remember(weights, folder, "test", FIGURES) is None
    assert read_manifest(weights).metrics == {"val/point_miou": 0.4, **FIGURES}


@pytest.mark.parametrize(
    ("specs", "changes", "reason"),
    [
        (scored_drives()[:1], {}, "expected the 11 of test, found 1, without "),
        (scored_drives(), {"seed": 1}, "expected the 11 of test, found 11, without .*, 1 of them other ones"),
        (scored_drives(), {"weather": "night"}, "1 of them other ones"),
        ([*scored_drives(), *drives("validation", 1)], {}, "found 12, 1 of them other ones"),
    ],
)
def test_other_drives_leave_the_manifest_as_it_is_and_the_reason_says_which(
    tmp_path: Path, weights: Path, specs: list[DriveSpec], changes: dict[str, object], reason: str
) -> None:
    folder = write_drives(tmp_path, "test", specs)
    change(folder / specs[0].name, **changes)
    before = weights.with_suffix(".json").read_bytes()
    found = score_memory.remember(weights, folder, "test", FIGURES)
    assert found is not None
    assert re.search(reason, found), found
    assert weights.with_suffix(".json").read_bytes() == before


@pytest.mark.parametrize("count", [1, 6])
def test_of_a_split_without_end_the_first_drives_count_however_many(
    tmp_path: Path, weights: Path, count: int
) -> None:
    folder = write_drives(tmp_path, "validation", drives("validation", count))
    figures = {"validation/drives": float(count), "validation/point_miou": 0.5}
    assert score_memory.remember(weights, folder, "validation", figures) is None
    assert figures.items() <= read_manifest(weights).metrics.items()
    (folder / "validation_0000" / cache.DONE).unlink()
    write_drives(tmp_path, "validation", drives("validation", count + 2)[count + 1 :])
    reason = score_memory.remember(weights, folder, "validation", figures)
    assert reason is not None
    assert "without validation_0000" in reason


def test_a_split_of_ones_own_is_scored_and_not_kept(tmp_path: Path, weights: Path) -> None:
    folder = write_drives(tmp_path, "mine", scored_drives())
    reason = score_memory.remember(weights, folder, "mine", {"mine/drives": 11.0})
    assert reason is not None
    assert "found mine" in reason


def test_figures_on_another_number_of_drives_go_and_those_in_bfloat16_have_their_own(
    tmp_path: Path, weights: Path
) -> None:
    def keep(count: int, **figures: float) -> dict[str, float]:
        folder = write_drives(tmp_path / str(count), "validation", drives("validation", count))
        named = {f"validation/{name.replace('__', '/')}": value for name, value in figures.items()}
        assert score_memory.remember(weights, folder, "validation", named) is None
        found = read_manifest(weights).metrics
        return {
            name.removeprefix("validation/"): value for name, value in found.items() if "val/" not in name
        }

    keep(2, drives=2, mAP=0.1, sensors_out__none__mAP=0.2)
    keep(3, bfloat16__drives=1, bfloat16__mAP=0.3, float32__mAP=0.3)
    kept = keep(4, drives=4, mAP=0.4)
    rounded = {"bfloat16/drives": 1, "bfloat16/mAP": 0.3, "float32/mAP": 0.3}
    assert kept == {**rounded, "drives": 4, "mAP": 0.4}
    assert keep(5, bfloat16__drives=5, bfloat16__mAP=0.5) == {
        "drives": 4,
        "mAP": 0.4,
        "bfloat16/drives": 5,
        "bfloat16/mAP": 0.5,
    }


class Segmenter:
    """Calls everything a barrier."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def segment(self, cloud: PointCloud) -> PointLabels:
        label = np.zeros(len(cloud), np.uint8)
        return PointLabels(label, np.ones(len(cloud), np.float32), ("barrier",))


@pytest.fixture
def command(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`kestrel train score` of one of eleven test drives."""
    folder = write_drives(tmp_path, "test", scored_drives()[:1])
    cache.write(folder / scored_drives()[0].name / "frame_0000.npz", make_cached_frame())
    monkeypatch.setattr(score, "PointSegmenter", Segmenter)
    monkeypatch.setattr(score, "int8_is_fast", lambda: False)
    return ["train", "score", "--weights", str(weights), "--data", str(tmp_path), "--split", "test", "--json"]


def test_the_command_prints_scores_of_other_drives_and_says_that_it_kept_none(
    command: list[str], weights: Path
) -> None:
    before = weights.with_suffix(".json").read_bytes()
    result = CliRunner().invoke(build_app(), command)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["figures"]["test/drives"] == {
        "value": 1.0,
        "unit": "drives",
        "ratio": None,
        "against": None,
    }
    assert f"the manifest of {weights} was not changed: drives below" in result.stderr
    assert weights.with_suffix(".json").read_bytes() == before


@pytest.mark.parametrize("options", [["--int8", "models"], ["--weights", "baseline"]])
def test_what_is_not_of_the_weights_is_not_kept(
    command: list[str], options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(*_: object) -> None:
        raise AssertionError("a calibration and a baseline have no manifest")

    for name in ("score", "score_int8"):
        monkeypatch.setattr(score, name, lambda *_, **__: {"test/mAP": 0.5})
    monkeypatch.setattr(score_memory, "remember", kept)
    result = CliRunner().invoke(build_app(), [*command, *options], catch_exceptions=False)
    assert list(json.loads(result.stdout)["figures"]) == ["test/mAP"]


def test_scores_that_cannot_be_kept_are_printed_first(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise InputError("read-only")

    monkeypatch.setattr(score_memory, "why_not_split", lambda *_: None)
    monkeypatch.setattr(score_memory, "write_whole", refused)
    result = CliRunner().invoke(build_app(), command)
    assert isinstance(result.exception, InputError)
    assert "test/point_miou" in json.loads(result.stdout)["figures"]
