# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Calibration takes frames evenly, measures on others, and leaves a folder that is whole or none."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from kestrel.data import messages, sensor_messages
from kestrel.data.bag import BagWriter
from kestrel.engine import has_openvino
from kestrel.engine.int8 import TOLERANCE, Int8Models
from kestrel.errors import InputError, ModelError, SetupError
from kestrel.models.kestrel_fusion_types import FusionOutput
from kestrel.pipelines import FusionDetector
from kestrel.train import cache, calibration
from kestrel.train.calibration import calibrate, check_tolerance, relative_errors, split
from kestrel.types import Calibration, PointCloud
from kestrel.weights import read_manifest
from tests.train.conftest import make_cached_frame

WEIGHTS = "kestrel-fusion"
needs_nncf = pytest.mark.skipif(
    not has_openvino() or importlib.util.find_spec("nncf") is None, reason="the extra int8 is not installed"
)


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drives")
    (root / "d0").mkdir()
    for index in range(6):
        cache.write(root / "d0" / f"frame_{index:04d}.npz", make_cached_frame(index))
    cache.finish(root / "d0", {"rig": "nuscenes", "weather": "day", "frame_hz": 2.0, "format": cache.FORMAT})
    return root


def test_frames_to_measure_with_come_from_a_stretch_of_their_own() -> None:
    recorded = range(100)
    used, others = split(recorded, 9, Path("drive.mcap"))
    assert used == [0, 10, 20, 30, 40, 49, 59, 69, 79]
    assert others == [80, 90, 99]
    assert split(recorded[:5], 64, Path("drive.mcap")) == ([0, 1, 2, 3], [4])
    with pytest.raises(InputError, match=r"recording drive\.mcap: expected at least 5 frames, found 4"):
        split(recorded[:4], 64, Path("drive.mcap"))


def test_frames_of_a_bag_are_those_of_its_sensors(tmp_path: Path) -> None:
    forward = np.array([[0, 0, 1, 1.5], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]], float)
    base_from_lidar = np.eye(4)
    base_from_lidar[2, 3] = 1.8
    lens = Calibration(np.array([[200.0, 0, 160], [0, 200, 90], [0, 0, 1]]), 320, 180, forward)
    points = np.random.default_rng(0).uniform(0, 1, (50, 4)).astype(np.float32)
    stamps = [10**18, 10**18 + 10**8]
    with BagWriter(tmp_path / "drive.mcap") as bag:
        mounts = [
            messages.transform_message(base_from_lidar, "base_link", "lidar", stamps[0]),
            messages.transform_message(forward, "base_link", "front_optical", stamps[0]),
        ]
        bag.write("/tf_static", messages.tf_message(mounts), stamps[0])
        for stamp in stamps:
            bag.write(
                "/lidar/points", sensor_messages.cloud_message(PointCloud(points, stamp, "lidar")), stamp
            )
            for name in ("front", "uncalibrated"):
                frame_id = f"{name}_optical"
                picture = np.full((180, 320, 3), 90, np.uint8)
                image = sensor_messages.compressed_image(picture, stamp, frame_id, jpeg_quality=90)
                bag.write(f"/camera/{name}/image/compressed", image, stamp)
                info = sensor_messages.camera_info_message(lens, stamp, frame_id)
                bag.write(f"/camera/{name}/camera_info", info, stamp)
    one, both = (read() for read in calibration.recorded_frames(tmp_path / "drive.mcap", 2, hop_s=0.1))
    assert [[frame.stamp_ns for frame in frames] for frames in (one, both)] == [stamps[:1], stamps]
    second = both[-1]
    assert list(second.images) == ["front"]
    assert np.allclose(second.images["front"].data, 90, atol=2)
    assert np.allclose(second.calibrations["front"].reference_from_camera, forward)
    assert second.cloud is not None
    assert np.allclose(second.cloud.points[:, 2], points[:, 2] + 1.8)


def test_errors_are_relative_to_the_size_of_the_exact_output() -> None:
    exact = FusionOutput(*(torch.full((1, 4), value) for value in (1.0, 2.0, 4.0, 8.0)), state=())
    found = FusionOutput(*(torch.full((1, 4), value) for value in (1.1, 2.0, 3.0, 8.4)), state=())
    wanted = {"heatmap": 0.1, "features": 0, "map_logits": 0.25, "depth": 0.05}
    assert relative_errors(found, exact) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("error", [TOLERANCE + 0.01, float("nan")])
def test_an_output_beyond_the_tolerance_is_refused(error: float) -> None:
    check_tolerance({"depth": 0.01, "heatmap": TOLERANCE})
    with pytest.raises(ModelError, match="output heatmap: expected a relative error in int8"):
        check_tolerance({"heatmap": error})


def test_an_existing_folder_is_not_overwritten(drives: Path) -> None:
    with pytest.raises(InputError, match="--out: expected a path that does not exist"):
        calibrate(WEIGHTS, drives, drives, 4)


def test_without_its_libraries_nothing_is_written(
    drives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"make setup EXTRAS=int8"):
        calibrate(WEIGHTS, drives, tmp_path / "out", 4)
    assert not list(tmp_path.iterdir())


@needs_nncf
def test_calibrated_models_answer_like_eager_float32(
    drives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = calibrate(WEIGHTS, drives, tmp_path / "out", 64)
    assert models.sha256 == read_manifest(WEIGHTS).sha256
    assert models.calibration == {"source": str(drives), "frames": 5, "other_frames": 1}
    assert models.versions.keys() == {"openvino", "nncf", "torch"}
    assert models.difference.keys() == {"depth", "heatmap", "features", "map_logits"}
    assert 0 < max(models.difference.values()) <= TOLERANCE
    assert Int8Models.open(tmp_path / "out", models.sha256) == models
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]

    before, frame = calibration.recorded_frames(drives, 2, hop_s=0.5)[-1]()
    assert frame.stamp_ns - before.stamp_ns == 500_000_000
    exact = FusionDetector(WEIGHTS, engine="eager", precision="float32")
    rough = FusionDetector(WEIGHTS, engine="int8", precision="float32", int8=tmp_path / "out")
    for detector in (exact, rough):
        detector.detect(before)
    wanted, found = exact.detect(frame)[1].probability, rough.detect(frame)[1].probability
    assert rough.engine.parts["camera"].name == "int8"
    assert rough.engine.parts["bird's-eye view"].name != "int8"
    assert 0 < float(np.abs(found - wanted).mean()) < 0.02

    monkeypatch.setattr(calibration, "TOLERANCE", 1e-6)
    with pytest.raises(ModelError, match="relative error in int8"):
        calibrate(WEIGHTS, drives, tmp_path / "refused", 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
