# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import chdir, suppress
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
from kestrel.weights import FOLDER, Manifest, assign, average, load, read_manifest, resolve, save

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


class KilledError(BaseException):
    """Ends a process where a kill would."""


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process end in the ``step``-th change of a file: nothing that would follow is done."""
    changes = iter(range(99))

    def until(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any) -> Any:
            if next(changes) == step:
                raise KilledError
            return change(*arguments)

        return changed

    for name in ("write_bytes", "replace"):
        monkeypatch.setattr(Path, name, until(getattr(Path, name)))


@pytest.mark.parametrize("step", range(7))
def test_whenever_a_process_is_killed_that_replaces_weights_some_can_be_loaded(
    path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    later = {key: value + 1 for key, value in state.items()}
    with monkeypatch.context() as patched:
        killed_at(step, patched)
        with suppress(KilledError):
            save(path, later, replace(MANIFEST, name="later"))
    found, manifest = load(path)
    assert manifest.name == ("small" if step < 4 else "later")
    assert read_manifest(path) == manifest
    key = "network.classifier.0.bias"
    torch.testing.assert_close(found[key], later[key] if manifest.name == "later" else state[key])
    save(path, state, replace(MANIFEST, name="next"))  # it goes on from there
    assert load(path)[1].name == "next"
    assert set(json.loads(path.with_suffix(".json").read_text())) == {*asdict(MANIFEST)}


@pytest.mark.parametrize(("first", "second"), [(2, 2), (4, 2), (5, 3)])
def test_weights_outlive_several_kills(
    path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, first: int, second: int
) -> None:
    for number, step in enumerate((first, second)):
        later = {key: value + number + 1 for key, value in state.items()}
        with monkeypatch.context() as patched:
            killed_at(step, patched)
            with pytest.raises(KilledError):
                save(path, later, replace(MANIFEST, name=f"later {number}"))
    assert load(path)[1].name == ("small" if first < 4 else "later 0")


def test_first_weights_that_were_interrupted_are_refused_and_can_be_written_again(
    tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "first.safetensors"
    with monkeypatch.context() as patched:
        killed_at(2, patched)
        with pytest.raises(KilledError):
            save(path, state, MANIFEST)
    with pytest.raises(ModelError, match=r"first\.safetensors: expected a manifest first\.json, found none"):
        load(path)
    save(path, state, MANIFEST)
    assert load(path)[1].name == MANIFEST.name


def test_weights_that_neither_of_two_manifests_means_are_refused(path: Path) -> None:
    manifest = read_manifest(path)
    other = replace(manifest, sha256="0" * 64)
    path.with_suffix(".json").write_text(other.to_json(replace(manifest, sha256="1" * 64)))
    with pytest.raises(ModelError, match=rf"sha256: expected {'0' * 64}"):
        load(path)
    assert read_manifest(path).sha256 == other.sha256


@pytest.mark.parametrize("wrong", [[], "x", {"colour": "red"}, {"name": 3}])
def test_a_malformed_manifest_of_replaced_weights_is_refused(path: Path, wrong: object) -> None:
    edit(path, previous=wrong)
    for read in (load, read_manifest):
        with pytest.raises(ModelError, match=r"small\.json: expected a weights manifest"):
            read(path)


def test_a_dot_in_a_name_is_part_of_it(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save(tmp_path / "net.safetensors", state, MANIFEST)
    save(tmp_path / "net.v2.safetensors", state, replace(MANIFEST, name="second"))
    with chdir(tmp_path.parent):
        relative = Path(tmp_path.name) / "net.v2"
        assert resolve(relative) == Path(tmp_path.name) / "net.v2.safetensors"
        assert load(relative)[1].name == load(tmp_path / "net.v2")[1].name == "second"
        with pytest.raises(ModelError, match=r"found no file .*net\.v3\.safetensors"):
            load(relative.with_name("net.v3"))


@pytest.mark.parametrize("name", ["", "/", "."])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="expected a file or one of"):
        resolve(name)


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
