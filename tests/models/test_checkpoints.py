# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Released checkpoints: recognised by their keys, refused when anything does not fit, loaded bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from kestrel.cli import build_app
from kestrel.errors import ConfigError, InputError, ModelError
from kestrel.models.anycost import AnyCostGenerator
from kestrel.models.bevfusion import BEVFusion
from kestrel.models.bevfusion_config import build_bevfusion
from kestrel.models.bevfusion_released import released_config
from kestrel.models.checkpoints import (
    MMDET3D_ATTENTION,
    MMDET3D_PARTS,
    convert,
    load_network,
)
from kestrel.models.gan_compression import ResnetGenerator
from kestrel.models.mobilenetv2 import OnlineTSMMobileNetV2
from kestrel.models.spvcnn import SPVCNN
from kestrel.models.tsm import TSM
from kestrel.weights import Manifest, load, read_manifest, save

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
    found = convert(network.state_dict(), "file", network="SPVCNN" if name == "SPVCNN" else None)
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


@pytest.mark.parametrize("task", ["det", "seg"])
@pytest.mark.parametrize("modality", ["camera+lidar", "camera"])
def test_bevfusion_with_resnet50_cameras_is_recognised(task: str, modality: str) -> None:
    with torch.device("meta"):
        state = build_bevfusion(released_config(task, modality, "resnet50")).state_dict()  # type: ignore[arg-type]
    found = convert(state, "file")
    expected = {"task": task, "modality": modality, "backbone": "resnet50"}
    assert (found.network, found.config) == ("BEVFusion", expected)
    deeper = {**state, "encoders.camera.backbone.layer3.6.conv1.weight": torch.zeros(256, 1024, 1, 1)}
    with pytest.raises(ModelError, match=r"unexpected \['encoders\.camera\.backbone\.layer3\.6\.conv1"):
        convert(deeper, "file")


def test_resnet50_cameras_see_after_the_conversion_what_they_saw_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_bevfusion(released_config("det", "camera", "resnet50")).eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "bevfusion-det.pth")
    arguments = [str(tmp_path / "bevfusion-det.pth"), str(tmp_path / "out.safetensors")]
    result = CliRunner().invoke(build_app(), ["convert-checkpoint", *arguments])
    assert result.exit_code == 0, result.output
    assert "'backbone': 'resnet50'" in result.output
    loaded, _ = load_network(tmp_path / "out.safetensors")
    assert isinstance(loaded, BEVFusion)
    pictures = torch.randn(1, 2, 3, 64, 96)
    with torch.no_grad():
        found, wanted = (each.encoders["camera"].features(pictures) for each in (loaded, network))
    assert found.shape == (1, 2, 256, 8, 12)
    assert torch.equal(found, wanted)
    assert not torch.equal(found[:, 0], found[:, 1])


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


def test_values_that_are_no_plain_floating_point_are_refused() -> None:
    state = NETWORKS["SPVCNN"]().state_dict()
    key = "classifier.0.weight"
    for wrong in (state[key].to(torch.int8), state[key].to(torch.complex64), state[key].to_sparse()):
        with pytest.raises(ModelError, match=rf"ill-shaped \['{key} torch\..* instead of dense torch"):
            convert({**state, key: wrong}, "file", network="SPVCNN")
    halves = {name: value.half() for name, value in state.items()}
    assert convert(halves, "file", network="SPVCNN").network == "SPVCNN"


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


def test_a_net_config_for_a_network_that_takes_none_is_refused() -> None:
    state = OnlineTSMMobileNetV2(27).state_dict()
    with pytest.raises(ConfigError, match="net_config: expected none for OnlineTSMMobileNetV2, found one"):
        convert(state, "file", net_config={"vres": 0.05})
    assert (
        convert(NETWORKS["SPVCNN"]().state_dict(), "spvcnn", net_config={"vres": 0.1}).config["vres"] == 0.1
    )


def test_counters_of_batch_norms_may_be_missing() -> None:
    """Files of before torch 0.4.1 have none, and no answer needs them."""
    whole = OnlineTSMMobileNetV2(27).state_dict()
    state = {key: value for key, value in whole.items() if not key.endswith("num_batches_tracked")}
    found = convert(state, "file")
    assert found.state.keys() == whole.keys()
    counters = [key for key in whole if key not in state]
    assert all(found.state[key].dtype == torch.int64 and found.state[key] == 0 for key in counters)
    assert found.notes["num_batches_tracked"].startswith(f"0 assumed in {len(counters)} batch norms")
    assert "num_batches_tracked" not in convert(whole, "file").notes
    del state["features.0.1.running_mean"]
    with pytest.raises(ModelError, match=r"missing \['features\.0\.1\.running_mean'\]"):
        convert(state, "file")


def test_command_says_which_of_several_weights_were_taken(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained, mean = (OnlineTSMMobileNetV2(27).state_dict() for _ in range(2))
    torch.save({"state_dict": trained, "state_dict_ema": mean}, tmp_path / "jester.pth.tar")
    arguments = [str(tmp_path / "jester.pth.tar"), str(tmp_path / "out.safetensors")]
    result = CliRunner().invoke(build_app(), ["convert-checkpoint", *arguments])
    assert "weights: those under state_dict; there are others under state_dict_ema" in result.output
    state, manifest = load(tmp_path / "out.safetensors")
    assert torch.equal(state["classifier.weight"], trained["classifier.weight"])
    assert manifest.training["weights"].startswith("those under state_dict")


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


SEGMENTS = {
    "TSM_kinetics_RGB_resnet50_shift8_blockres_avg_segment16_e50.pth": 16,
    "TSM_segment8_e50/ckpt.best.pth.tar": 8,
    "runs/segment32/TSM_segment16_e50.pth": 16,
}


@pytest.mark.parametrize("source", SEGMENTS)
def test_frames_per_clip_of_a_tsm_are_those_of_its_name(source: str) -> None:
    found = convert(NETWORKS["TSM"]().state_dict(), source)
    assert found.config["n_segment"] == SEGMENTS[source]
    assert not found.notes


def test_the_folder_tells_also_where_the_command_runs_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "TSM_segment16_e50"
    folder.mkdir()
    torch.save({"state_dict": NETWORKS["TSM"]().state_dict()}, folder / "ckpt.pth.tar")
    monkeypatch.chdir(folder)
    arguments = ["convert-checkpoint", "ckpt.pth.tar", "out.safetensors"]
    CliRunner().invoke(build_app(), arguments, catch_exceptions=False)
    assert read_manifest(folder / "out.safetensors").config["n_segment"] == 16


def test_frames_per_clip_that_are_given_count_more_than_the_name() -> None:
    state = NETWORKS["TSM"]().state_dict()
    assert convert(state, "TSM_segment16_e50.pth", n_segment=4).config["n_segment"] == 4
    assumed = convert(state, "tsm.pth")
    assert assumed.config["n_segment"] == 8
    assert assumed.notes["n_segment"].startswith("8 assumed")
    with pytest.raises(ConfigError, match="n_segment: expected none for OnlineTSMMobileNetV2, found 16"):
        convert(OnlineTSMMobileNetV2(27).state_dict(), "file", n_segment=16)


def test_command_takes_and_prints_the_frames_per_clip(tmp_path: Path) -> None:
    torch.save({"state_dict": NETWORKS["TSM"]().state_dict()}, tmp_path / "tsm.pth")
    arguments = ["convert-checkpoint", str(tmp_path / "tsm.pth"), str(tmp_path / "out.safetensors")]
    assumed = CliRunner().invoke(build_app(), arguments)
    assert "n_segment: 8 assumed" in assumed.output
    result = CliRunner().invoke(build_app(), [*arguments, "--n-segment", "16"])
    assert result.exit_code == 0, result.output
    assert "'n_segment': 16" in result.output
    assert "assumed" not in result.output
    network, _ = load_network(tmp_path / "out.safetensors")
    with torch.no_grad():
        assert network(torch.rand(2, 16, 3, 32, 32)).shape == (2, 11)


def converted(path: Path, network: nn.Module, name: str) -> Manifest:
    found = convert(network.state_dict(), "file", network="SPVCNN" if name == "SPVCNN" else None)
    manifest = Manifest(path.stem, found.network, found.config, found.classes)
    return save(path, found.state, manifest, exact=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_converted_network_is_loaded_as_it_was(tmp_path: Path, name: str) -> None:
    network = NETWORKS[name]()
    written = converted(tmp_path / "out.safetensors", network, name)
    loaded, manifest = load_network(tmp_path / "out.safetensors")
    assert type(loaded) is type(network)
    assert not loaded.training
    assert manifest == written
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_a_converted_bevfusion_is_loaded(tmp_path: Path) -> None:
    network = build_bevfusion(released_config("seg", "lidar"))
    converted(tmp_path / "out.safetensors", network, "BEVFusion")
    loaded, manifest = load_network(tmp_path / "out.safetensors")
    assert manifest.config == {"task": "seg", "modality": "lidar"}
    assert type(loaded) is type(network)


def test_kestrels_own_networks_are_left_to_the_pipelines() -> None:
    with pytest.raises(ModelError, match=r"network of kestrel-seg: .*kestrel\.pipelines.*found KestrelSeg"):
        load_network("kestrel-seg")


@pytest.mark.parametrize(
    "config", [{"num_classes": 5}, {"num_classes": 27, "depth": 3}, {"num_classes": "many"}]
)
def test_arguments_that_build_nothing_are_refused(tmp_path: Path, config: dict[str, object]) -> None:
    state = OnlineTSMMobileNetV2(27).state_dict()
    path = tmp_path / "out.safetensors"
    save(path, state, Manifest("out", "OnlineTSMMobileNetV2", config, ()))
    with pytest.raises(ModelError, match=r"out\.safetensors"):
        load_network(path)
