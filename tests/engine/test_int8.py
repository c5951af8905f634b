# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Int8 models are only used whole, with their own weights, and stay close to what they were made from."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from kestrel.engine import has_openvino, int8, make_engine
from kestrel.engine.int8 import MANIFEST, Int8Models, check_installed, file_hash
from kestrel.errors import ConfigError, ModelError, SetupError
from kestrel.pipelines import FusionDetector, load_detector
from kestrel.weights import read_manifest

WEIGHTS = "kestrel-fusion"
needs_nncf = pytest.mark.skipif(
    not has_openvino() or importlib.util.find_spec("nncf") is None, reason="the extra int8 is not installed"
)


@pytest.fixture
def models(tmp_path: Path) -> Int8Models:
    (tmp_path / "camera.xml").write_text("operations")
    (tmp_path / "camera.bin").write_bytes(b"numbers")
    made = Int8Models(
        weights="small",
        sha256="ab" * 32,
        models={name: file_hash(tmp_path / name) for name in ("camera.xml", "camera.bin")},
        calibration={"source": "drive.mcap", "frames": 4, "other_frames": 1},
        versions={"openvino": "2026.4.1"},
        difference={"depth": 0.03},
        folder=tmp_path,
    )
    made.write()
    return made


def test_a_manifest_is_read_as_it_was_written(models: Int8Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "check_installed", lambda *libraries: None)
    found = Int8Models.open(models.folder, models.sha256)
    assert found == models
    assert found.model("camera") == models.folder / "camera.xml"
    assert found.model("bird") is None


def test_models_of_other_weights_are_refused(models: Int8Models) -> None:
    with pytest.raises(ModelError, match=r"weights in use, sha256 cdcdcd.*found of small, sha256 ababab"):
        Int8Models.open(models.folder, "cd" * 32)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"made by `kestrel calibrate`, found no file .*none.int8\.json"):
        Int8Models.open(tmp_path / "none", "ab" * 32)


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_model_is_refused(models: Int8Models, damage: str) -> None:
    path = models.folder / "camera.bin"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"other numbers")
    with pytest.raises(
        ModelError, match=r"camera\.bin sha256: expected [0-9a-f]{64}, found (no file|[0-9a-f]{64})"
    ):
        Int8Models.open(models.folder, models.sha256)


@pytest.mark.parametrize("text", ["", "[]", '{"weights": "small"}', None])
def test_a_malformed_manifest_is_refused(models: Int8Models, text: str | None) -> None:
    path = models.folder / MANIFEST
    if text is None:
        text = json.dumps(json.loads(path.read_text()) | {"models": ["camera.xml"]})
    path.write_text(text)
    with pytest.raises(ModelError, match=r"int8\.json: expected a manifest of int8 models"):
        Int8Models.open(models.folder, models.sha256)


def test_without_its_libraries_the_extra_is_named() -> None:
    with pytest.raises(SetupError, match=r"EXTRAS=int8.*, found no a_library_that_is_not_there"):
        check_installed("json", "a_library_that_is_not_there")


def test_engine_and_folder_go_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine int8: expected a folder.*found None"):
        FusionDetector(WEIGHTS, engine="int8")
    with pytest.raises(ConfigError, match=r"engine folded: .*with no other, found .*models"):
        load_detector(WEIGHTS, engine="folded", int8=tmp_path / "models")


def test_a_detector_refuses_models_of_other_weights(models: Int8Models) -> None:
    with pytest.raises(ModelError, match=read_manifest(WEIGHTS).sha256[:12]):
        load_detector(WEIGHTS, engine="int8", int8=models.folder)


@needs_nncf
def test_int8_stays_close_and_takes_any_number_of_pictures(tmp_path: Path) -> None:
    import openvino

    from kestrel.engine.quantization import quantize

    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1)
    ).eval()
    with torch.no_grad():
        model = quantize(module, [(torch.randn(2, 3, 16, 24),) for _ in range(8)], dynamic_batch=True)
        openvino.save_model(model, tmp_path / "small.xml", compress_to_fp16=False)
        kinds = {node.get_type_name() for node in model.get_ordered_ops()}
        assert "FakeQuantize" in kinds
        engine = make_engine(module, (), "int8", int8=tmp_path / "small.xml")
        assert engine.name == "int8"
        for batch in (2, 1, 5):
            x = torch.randn(batch, 3, 16, 24)
            (found,), wanted = engine(x), module(x)
            error = float((found - wanted).norm() / wanted.norm())
            assert 1e-5 < error < 0.03  # not exact, or it would not be int8


@pytest.mark.skipif(not has_openvino(), reason="the extra openvino is not installed")
def test_a_part_without_a_model_cannot_run_in_int8() -> None:
    with pytest.raises(ConfigError, match="engine int8 of Identity: expected a quantized model"):
        make_engine(nn.Identity(), (), "int8")
