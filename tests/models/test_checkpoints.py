# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Released checkpoints: recognised by their keys, refused when anything does not fit, kept bit for bit."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from kestrel.cli import build_app
from kestrel.errors import InputError, ModelError
from kestrel.models.anycost import AnyCostGenerator
from kestrel.models.bevfusion_config import build_bevfusion
from kestrel.models.bevfusion_released import released_config
from kestrel.models.checkpoints import MMDET3D_ATTENTION, MMDET3D_PARTS, convert, read_checkpoint
from kestrel.models.gan_compression import ResnetGenerator
from kestrel.models.mobilenetv2 import OnlineTSMMobileNetV2
from kestrel.models.spvcnn import SPVCNN
from kestrel.models.tsm import TSM
from kestrel.weights import load

NETWORKS = {
    "OnlineTSMMobileNetV2": lambda: OnlineTSMMobileNetV2(27),
    "TSM": lambda: TSM("mobilenetv2", 11),
    "SPVCNN": lambda: SPVCNN(19, channels=(8, 8, 16, 16, 16, 16, 16, 8, 8)),
    "AnyCostGenerator": lambda: AnyCostGenerator(16, 0.05, n_mlp=8, style_channels=512),
    "ResnetGenerator": lambda: ResnetGenerator((4, 2, 4, 2, 3, 4, 2, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network_and_its_sizes_are_recognised(name: str) -> None:
    network = NETWORKS[name]()
    found = convert(network.state_dict(), "file")
    assert found.network == name
    assert found.state.keys() == network.state_dict().keys()


@pytest.mark.parametrize("task", ["det", "seg"])
@pytest.mark.parametrize("modality", ["camera+lidar", "camera", "lidar"])
def test_bevfusion_variants_are_recognised(task: str, modality: str) -> None:
    with torch.device("meta"):
        state = build_bevfusion(released_config(task, modality)).state_dict()  # type: ignore[arg-type]
    found = convert(state, "file")
    assert (found.network, found.config) == ("BEVFusion", {"task": task, "modality": modality})
    assert len(found.classes) == (6 if task == "seg" else 10)


def renamed_for_mmdet3d(network: nn.Module) -> dict[str, torch.Tensor]:
    """The names and the kernel layout of mmdetection3d."""
    state = {}
    for key, value in network.state_dict().items():
        for theirs, ours in MMDET3D_PARTS.items():
            if key.startswith(ours):
                key = theirs + key.removeprefix(ours)
                break
        if ".decoder." in key:
            for theirs, ours in MMDET3D_ATTENTION.items():
                key = key.replace(ours, theirs)
        state[key] = value.permute(4, 0, 1, 2, 3) if value.ndim == 5 else value
    return state


def test_mmdetection3d_names_and_sparse_kernels_are_brought_into_order() -> None:
    torch.manual_seed(0)
    network = build_bevfusion(released_config("det", "lidar"))
    found = convert(renamed_for_mmdet3d(network), "file")
    assert found.notes == {"boxes": "length, width, height; standard yaw"}
    for key, value in network.state_dict().items():
        assert torch.equal(found.state[key], value), key


def test_misfits_are_all_listed() -> None:
    state = NETWORKS["OnlineTSMMobileNetV2"]().state_dict()
    del state["features.3.conv.0.weight"]
    state["features.99.weight"] = torch.zeros(1)
    state["features.0.0.weight"] = torch.zeros(32, 4, 3, 3)
    with pytest.raises(ModelError) as caught:
        convert(state, "broken.pth")
    expected = (
        "broken.pth",
        "missing ['features.3.conv.0.weight']",
        "['features.99.weight']",
        "(32, 4, 3, 3)",
    )
    for part in expected:
        assert part in str(caught.value)


def test_six_channel_depth_is_refused_as_ill_shaped() -> None:
    with torch.device("meta"):
        state = build_bevfusion(released_config("det", "camera+lidar")).state_dict()
        state["encoders.camera.vtransform.dtransform.0.weight"] = torch.zeros(8, 6, 1, 1)
    with pytest.raises(ModelError, match=r"dtransform\.0\.weight \(8, 6, 1, 1\) instead of \(8, 1, 1, 1\)"):
        convert(state, "file")


def test_unknown_network_is_refused() -> None:
    with pytest.raises(ModelError, match="network of file"):
        convert({"backbone.weight": torch.zeros(1)}, "file")


@pytest.mark.parametrize("container", [None, "state_dict", "model", "g_ema"])
def test_weights_are_found_in_their_container(tmp_path: Path, container: str | None) -> None:
    weights = {"module.a": torch.ones(2)}
    torch.save(weights if container is None else {"epoch": 3, container: weights}, tmp_path / "file.pth")
    assert torch.equal(read_checkpoint(tmp_path / "file.pth")["a"], torch.ones(2))


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    torch.save({"state_dict": Attack(tmp_path / "executed")}, tmp_path / "file.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Attack(tmp_path / "executed")))
    for name in ("file.pth", "plain.pth"):
        with pytest.raises(ModelError, match=r"plain weights"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_what_would_be_executed_is_named_and_not_recommended(tmp_path: Path) -> None:
    torch.save({"state_dict": Attack(tmp_path / "executed")}, tmp_path / "file.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    for name, code in (("file.pth", "mkdir"), ("module.pth", r"torch\.nn\.modules\.linear\.Linear")):
        with pytest.raises(
            ModelError, match=rf"expected a checkpoint of plain weights, found code, .*{code}$"
        ):
            read_checkpoint(tmp_path / name)


NO_PICKLES = [b"", b"no checkpoint", b"hello world", b"e", b"0", b"\x80\x02a", b"\x80\x02X\x01", bytes(600)]


@pytest.mark.parametrize("content", NO_PICKLES)
def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(ModelError, match=r"file\.pth"):
        read_checkpoint(tmp_path / "file.pth")
    with pytest.raises(ModelError, match=r"none\.pth"):
        read_checkpoint(tmp_path / "none.pth")


def test_a_checkpoint_cut_at_any_place_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    for zipped in (False, True):
        torch.save({"a": torch.randn(4), "b": torch.ones(3)}, whole, _use_new_zipfile_serialization=zipped)
        content = whole.read_bytes()
        for length in range(0, len(content) - 1, 7):
            (tmp_path / "file.pth").write_bytes(content[:length])
            with pytest.raises(ModelError, match=r"file\.pth"):
                read_checkpoint(tmp_path / "file.pth")


def test_values_that_are_no_plain_floating_point_are_refused() -> None:
    state = NETWORKS["SPVCNN"]().state_dict()
    key = "classifier.0.weight"
    for wrong in (state[key].to(torch.int8), state[key].to(torch.complex64), state[key].to_sparse()):
        with pytest.raises(
            ModelError, match=rf"ill-shaped \['{key} torch\..* instead of dense floating point"
        ):
            convert({**state, key: wrong}, "file")
    assert convert({name: value.half() for name, value in state.items()}, "file").network == "SPVCNN"


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("OnlineTSMMobileNetV2", {"classifier.weight": torch.tensor(1.0)}),
        ("AnyCostGenerator", {"noises.noise_0": None}),
        ("ResnetGenerator", {"model.13.conv_block.1.weight": torch.zeros(0)}),
    ],
)
def test_shapes_that_tell_no_size_are_refused(name: str, wrong: dict[str, torch.Tensor | None]) -> None:
    changed = {**NETWORKS[name]().state_dict(), **wrong}
    if name == "AnyCostGenerator":
        changed = {key: value for key, value in changed.items() if not key.startswith("noises.")}
    with pytest.raises(ModelError, match="file"):
        convert({key: value for key, value in changed.items() if value is not None}, "file")


def test_a_net_config_that_is_no_object_is_refused(tmp_path: Path) -> None:
    torch.save(NETWORKS["SPVCNN"]().state_dict(), tmp_path / "init")
    (tmp_path / "net.config").write_text("[1]")
    arguments = [str(tmp_path / "init"), str(tmp_path / "out.safetensors")]
    options = ["--net-config", str(tmp_path / "net.config")]
    result = CliRunner().invoke(build_app(), ["convert-checkpoint", *arguments, *options])
    assert isinstance(result.exception, ModelError)
    assert "net.config: expected a JSON object, found list" in str(result.exception)


def test_command_writes_weights_that_load_unchanged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = OnlineTSMMobileNetV2(27)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "jester.pth.tar")
    arguments = ["convert-checkpoint", str(tmp_path / "jester.pth.tar"), str(tmp_path / "out.safetensors")]
    result = CliRunner().invoke(build_app(), arguments)
    assert result.exit_code == 0, result.output
    state, manifest = load(tmp_path / "out.safetensors")
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert manifest.network == "OnlineTSMMobileNetV2"
    assert json.loads((tmp_path / "out.json").read_text())["training"]["converted_from"] == "jester.pth.tar"


def test_command_does_not_replace_a_json_file_that_is_no_manifest(tmp_path: Path) -> None:
    torch.save({"state_dict": OnlineTSMMobileNetV2(27).state_dict()}, tmp_path / "jester.pth.tar")
    (tmp_path / "package.json").write_text('{"name": "of somebody else"}')
    arguments = [str(tmp_path / "jester.pth.tar"), str(tmp_path / "package.safetensors")]
    result = CliRunner().invoke(build_app(), ["convert-checkpoint", *arguments])
    assert isinstance(result.exception, InputError)
    assert (tmp_path / "package.json").read_text() == '{"name": "of somebody else"}'
