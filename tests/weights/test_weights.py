# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kestrel.classes import EVENTS, POINT_CLASSES
from kestrel.errors import InputError, ModelError
from kestrel.models.kestrel_seg import KestrelSeg, SegConfig
from kestrel.pipelines import PointSegmenter
from kestrel.weights import FOLDER, Manifest, assign, average, load, read_manifest, save

MANIFEST = Manifest("small", "KestrelSeg", asdict(SegConfig()), POINT_CLASSES)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return KestrelSeg().state_dict()


@pytest.fixture
def path(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    save(tmp_path / "small.safetensors", state, MANIFEST)
    return tmp_path / "small.safetensors"


def edit(path: Path, **changes: object) -> None:
    manifest = path.with_suffix(".json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))


def test_weights_come_back_with_half_precision_kernels(path: Path, state: dict[str, torch.Tensor]) -> None:
    again, manifest = load(path)
    assert manifest.classes == POINT_CLASSES
    assert again.keys() == state.keys()
    for key, value in state.items():
        assert again[key].dtype == value.dtype
        torch.testing.assert_close(again[key], value, rtol=1e-3 if value.ndim >= 2 else 0, atol=1e-7)


@pytest.mark.parametrize("content", [b'{"architectures": ["GPT"]}', b"{}", b"\xff\x00", b""])
def test_a_file_of_the_name_of_the_manifest_that_is_none_is_not_replaced(
    tmp_path: Path, state: dict[str, torch.Tensor], content: bytes
) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json: expected nothing or a weights manifest"):
        save(tmp_path / "config.safetensors", state, MANIFEST)
    assert (tmp_path / "config.json").read_bytes() == content
    assert not (tmp_path / "config.safetensors").exists()


def test_earlier_weights_are_replaced(path: Path, state: dict[str, torch.Tensor]) -> None:
    save(path, state, replace(MANIFEST, name="later"))
    assert load(path)[1].name == "later"


def test_the_pipeline_takes_them_by_path(path: Path) -> None:
    assert PointSegmenter(path).manifest is not None
    assert PointSegmenter(path.with_suffix("")).classes == POINT_CLASSES


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(ModelError, match=r"no-such-network.*one of \["):
        load("no-such-network")


def test_a_changed_byte_is_refused(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"{path}.* expected [0-9a-f]{{64}}, found [0-9a-f]{{64}}"):
        load(path)


def test_a_truncated_file_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="sha256"):
        load(path)


def test_a_file_that_is_no_safetensors_is_refused(path: Path) -> None:
    import hashlib

    path.write_bytes(b"no tensors")
    edit(path, sha256=hashlib.sha256(b"no tensors").hexdigest())
    with pytest.raises(ModelError, match="a safetensors file"):
        load(path)


def test_missing_or_malformed_manifests_are_refused(path: Path) -> None:
    manifest = path.with_suffix(".json")
    edit(path, colour="red")
    with pytest.raises(ModelError, match="colour"):
        load(path)
    manifest.write_text("[")
    with pytest.raises(ModelError, match=r"small\.json.*a weights manifest"):
        load(path)
    for wrong in (b"\xff{}", b"[" * 100_000):
        manifest.write_bytes(wrong)
        with pytest.raises(ModelError, match=r"small\.json.*a weights manifest"):
            load(path)
    manifest.unlink()
    with pytest.raises(ModelError, match="manifest"):
        load(path)


@pytest.mark.parametrize("changes", [{"name": 3}, {"classes": [1]}, {"metrics": []}, {"config": "x"}])
def test_entries_of_other_types_are_refused(path: Path, changes: dict[str, Any]) -> None:
    edit(path, **changes)
    with pytest.raises(ModelError, match=r"small\.json: expected a weights manifest"):
        load(path)


def test_other_networks_classes_and_arguments_are_refused(path: Path) -> None:
    edit(path, network="KestrelVideo")
    with pytest.raises(ModelError, match="expected KestrelSeg, found KestrelVideo"):
        PointSegmenter(path)
    edit(path, network="KestrelSeg", classes=EVENTS)
    with pytest.raises(ModelError, match="classes"):
        PointSegmenter(path)
    edit(path, classes=POINT_CLASSES, config={"depth": 3})
    with pytest.raises(ModelError, match="depth"):
        PointSegmenter(path)


def test_weights_for_another_size_are_refused_with_both_shapes(path: Path) -> None:
    config = asdict(SegConfig())
    config["num_classes"] = 15
    edit(path, config=config)
    with pytest.raises(ModelError, match=rf"{path} network.classifier.* expected \(15.*\), found \(16.*\)"):
        PointSegmenter(path)


def test_missing_and_unexpected_keys_are_named() -> None:
    network = nn.Linear(2, 3)
    with pytest.raises(ModelError, match=r"1 missing \['bias'\], 1 unexpected \['other'\]"):
        assign(network, {"weight": torch.zeros(3, 2), "other": torch.zeros(1)}, "file")


def test_non_finite_weights_are_refused() -> None:
    with pytest.raises(ModelError, match="file bias: expected finite"):
        assign(nn.Linear(2, 1), {"weight": torch.zeros(1, 2), "bias": torch.tensor([torch.nan])}, "file")


@pytest.mark.parametrize("shipped", sorted(FOLDER.glob("*.safetensors")), ids=lambda entry: entry.stem)
def test_shipped_weights_are_small_licensed_and_intact(shipped: Path) -> None:
    state, manifest = load(shipped.stem)
    assert manifest.name == shipped.stem
    assert manifest.licence == "Apache-2.0"
    assert manifest.metrics
    assert manifest.training
    assert shipped.stat().st_size < 12e6
    assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())


def test_the_mean_of_weights_is_written_with_what_it_came_from(
    path: Path, state: dict[str, torch.Tensor]
) -> None:
    later = {key: value + 1 if value.is_floating_point() else value + 2 for key, value in state.items()}
    save(
        path.with_name("later.safetensors"),
        later,
        replace(MANIFEST, training={"steps": 7}, metrics={"a": 1.0}),
    )
    sources = [path, path.with_name("later")]
    average(sources, path.with_name("mean.safetensors"))
    mean, manifest = load(path.with_name("mean"))
    for key, value in state.items():
        expected = value + 0.5 if value.is_floating_point() else later[key]
        torch.testing.assert_close(mean[key], expected, rtol=2e-3, atol=2e-3)
    hashes = [read_manifest(source).sha256 for source in sources]
    assert [entry["sha256"] for entry in manifest.training["averaged"]] == hashes
    assert (manifest.name, manifest.training["steps"], manifest.metrics) == ("mean", 7, {})


def test_weights_of_another_network_are_not_averaged(path: Path) -> None:
    other = path.with_name("other.safetensors")
    config = SegConfig(voxel_size=0.2)
    save(other, KestrelSeg(config).state_dict(), replace(MANIFEST, config=asdict(config)))
    with pytest.raises(ModelError, match=r"weights to average: .*small.safetensors"):
        average([path, other], path.with_name("mean.safetensors"))
    with pytest.raises(InputError, match="at least one"):
        average([], path.with_name("mean.safetensors"))
    assert not path.with_name("mean.safetensors").exists()
