# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Labelled clouds of one's own train Kestrel-Seg, and nothing that needs more than points."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from kestrel.classes import IGNORE, POINT_CLASSES
from kestrel.cli import build_app
from kestrel.errors import ConfigError, InputError
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.train import cache, fusion, score, seg
from kestrel.train.own_clouds import import_clouds, read_cloud
from kestrel.train.plan import Plan
from kestrel.weights import load
from tests.data.labelled_folders import semantickitti_sweep

PLAN = Plan(steps=1, batch_size=1, lr=1e-3, validate_every=1, validation_batches=1, workers=0)


def write_clouds(folder: Path, count: int = 2) -> Path:
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        points = random.uniform((-20, -20, 0, 0), (20, 20, 2, 1), (300, 4)).astype(np.float32)
        points[-1] = 80, 0, 1, 1
        label = np.where(points[:, 2] < 0.3, 10, 14)
        label[0] = IGNORE
        np.savez(folder / f"{number:03d}.npz", points=points, label=label)
    return folder


def test_clouds_come_back_as_they_were_within_reach(tmp_path: Path) -> None:
    source = write_clouds(tmp_path / "mine")
    drive = import_clouds(source, tmp_path / "data", "train_lidar")
    assert drive == tmp_path / "data" / "train_lidar" / "mine"
    frames = cache.frame_files(drive.parent)
    assert len(frames) == 2
    frame = cache.read(cache.CachedFrame, frames[0])
    with np.load(source / "000.npz") as stored:
        points, label = stored["points"][:-1], stored["label"][:-1]
    np.testing.assert_allclose(frame.cloud(0)[:, :3], points[:, :3], atol=0.00101)
    np.testing.assert_allclose(frame.cloud(0)[:, 3], points[:, 3], atol=0.002)
    assert (frame.label == label).all()


def test_the_command_imports_into_train_lidar_unless_told_otherwise(tmp_path: Path) -> None:
    source = write_clouds(tmp_path / "mine", count=1)
    arguments = ["train", "import", str(source), "--data", str(tmp_path / "data")]
    for options, split in (([], "train_lidar"), (["--split", "validation_lidar"], "validation_lidar")):
        result = CliRunner().invoke(build_app(), [*arguments, *options], catch_exceptions=False)
        assert result.stdout == f"drive: {tmp_path / 'data' / split / 'mine'}\n"


def test_a_sequence_of_semantickitti_is_imported_with_the_classes_that_both_have(tmp_path: Path) -> None:
    sequence = semantickitti_sweep(tmp_path / "dataset", [40, 44, 20, 0, 30], sequence="00")
    semantickitti_sweep(tmp_path / "dataset", [10], 1, sequence="00")
    arguments = ["train", "import", str(sequence), "--data", str(tmp_path / "data")]
    result = CliRunner().invoke(build_app(), arguments, catch_exceptions=False)
    drive = tmp_path / "data" / "train_lidar" / "00"
    assert result.stdout == f"drive: {drive}\n"
    first, second = (cache.read(cache.CachedFrame, path) for path in cache.frame_files(drive.parent))
    road, person = (POINT_CLASSES.index(name) for name in ("driveable_surface", "pedestrian"))
    assert first.label.tolist() == [road, road, IGNORE, IGNORE, person]
    assert second.label.tolist() == [POINT_CLASSES.index("car")]
    np.testing.assert_allclose(first.cloud(0)[:, 2], 0.03, atol=0.00101)  # the ground below the LiDAR
    assert json.loads((drive / "drive.json").read_text())["source"] == "SemanticKITTI 00"


def test_a_sequence_with_a_damaged_file_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    sequence = semantickitti_sweep(tmp_path, [10, 10], sequence="00")
    (sequence / "labels" / "000000.label").write_bytes(b"abc")
    with pytest.raises(InputError, match=r"000000\.label: expected 2 labels"):
        import_clouds(sequence, tmp_path / "data", "train_lidar")
    assert not (tmp_path / "data" / "train_lidar" / "00").exists()


def test_kestrel_seg_learns_from_them_and_says_whose_they_are(tmp_path: Path) -> None:
    source, data = write_clouds(tmp_path / "mine"), tmp_path / "data"
    for split in ("train_lidar", "validation_lidar", "test"):
        import_clouds(source, data, split)
    weights = seg.train(data, tmp_path / "runs", PLAN, resume=False, start="kestrel-seg")
    manifest = load(weights)[1]
    assert manifest.training["data"]["source"] == "labelled clouds of mine"
    assert manifest.rigs == ()
    found = score.score_segmentation(lambda cloud: np.zeros(len(cloud), np.uint8), data / "test")
    assert "point_miou/unknown" in found


def test_kestrel_fusion_does_not_take_them_for_empty_streets(tmp_path: Path) -> None:
    for split in ("train_lidar", "validation_lidar"):
        import_clouds(write_clouds(tmp_path / split), tmp_path / "data", split)
    plans = fusion.Plans(PLAN, PLAN, PLAN, PLAN, PLAN, PLAN)
    with pytest.raises(
        InputError, match=r"train_lidar: expected frames with boxes.*found labelled points alone"
    ):
        fusion.train(tmp_path / "data", tmp_path, plans, FusionConfig(), resume=False)
    with pytest.raises(InputError, match="expected drives with boxes, found 1 without"):
        score.score_baseline(tmp_path / "data" / "train_lidar")


def test_what_is_no_cloud_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    source, data = write_clouds(tmp_path / "mine"), tmp_path / "data"
    (source / "001.npz").write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"001\.npz: expected a \.npz file of points and label"):
        import_clouds(source, data, "train_lidar")
    assert not list((data / "train_lidar").iterdir())
    with pytest.raises(
        InputError, match=r"empty: expected a folder of \.npz files .* or a recording .*, found none"
    ):
        import_clouds(tmp_path / "empty", data, "train_lidar")
    with pytest.raises(ConfigError, match=r"--split: expected one of train_lidar.*, test, found train_video"):
        import_clouds(source, data, "train_video")


def test_clouds_that_are_there_are_not_replaced(tmp_path: Path) -> None:
    source, data = write_clouds(tmp_path / "mine"), tmp_path / "data"
    import_clouds(source, data, "train_lidar")
    with pytest.raises(InputError, match="imported drive: expected a path that does not exist"):
        import_clouds(source, data, "train_lidar")


POINTS = np.full((3, 4), 0.5, np.float32)
LABEL = np.zeros(3, np.int64)


@pytest.mark.parametrize(
    ("points", "label", "found"),
    [
        (POINTS[:, :3], LABEL, r"points: expected numbers \(N, 4\), N > 0, found \(3, 3\)"),
        (POINTS[:0], LABEL[:0], r"points: expected .* found \(0, 4\)"),
        (POINTS.astype(str), LABEL, "points: expected numbers"),
        (np.where(np.eye(3, 4) > 0, np.nan, POINTS), LABEL, "points: expected finite numbers"),
        (POINTS * 100, LABEL, "intensity: expected 0 to 1, found 50 to 50"),
        (POINTS * [200, 1, 1, 1], LABEL, "points: expected some within 65 m, found none"),
        (POINTS, LABEL[:2], r"label: expected integers \(3,\), found \(2,\)"),
        (POINTS, LABEL.astype(float), r"label: expected integers \(3,\), found \(3,\) of float64"),
        (POINTS, LABEL + 16, r"label: expected 0 to 15, or 255 for no class, found \[16\]"),
        (POINTS, LABEL - 1, r"label: expected 0 to 15.*found \[-1\]"),
    ],
)
def test_a_malformed_cloud_is_refused(
    tmp_path: Path, points: np.ndarray, label: np.ndarray, found: str
) -> None:
    np.savez(tmp_path / "a.npz", points=points, label=label)
    with pytest.raises(InputError, match=found):
        read_cloud(tmp_path / "a.npz")
