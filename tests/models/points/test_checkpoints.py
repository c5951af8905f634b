# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of SPVNAS and mmdetection3d, made from our networks by renaming back, answer as they do."""

from __future__ import annotations

import json
import random
import re

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from kestrel.cli import build_app
from kestrel.errors import ConfigError, ModelError
from kestrel.models.checkpoints import convert, load_network
from kestrel.models.minkunet import MinkUNet
from kestrel.models.pvcnn import PVCNN
from kestrel.models.recipes import RECIPES
from kestrel.models.spvcnn import SPVCNN
from kestrel.weights import Manifest, save
from tests.models.points.test_networks import SMALL, cloud
from tests.models.points.test_spvnas import TINY, supernet

RESOLUTION = {"pres": 1.0, "vres": 1.0}


def trained(network: nn.Module) -> nn.Module:
    """The network after its batch norms have seen data."""
    with torch.no_grad():
        network.train()(*cloud(600, seed=5))
    return network.eval()


def small(kind: type[MinkUNet], **options: object) -> nn.Module:
    torch.manual_seed(0)
    return trained(kind(19, channels=SMALL, **RESOLUTION, **options))


def assert_same_answers(state: dict[str, Tensor], built: nn.Module, name: str, **options: object) -> None:
    found = convert(state, "file", net_config=dict(RESOLUTION), **options)
    assert found.network == name
    recipe = next(recipe for recipe in RECIPES if recipe.network == name)
    rebuilt = recipe.build(found.config)
    rebuilt.load_state_dict(found.state)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(*cloud(300)), built(*cloud(300)))


def in_mmdet3d(key: str) -> str:
    """The name that mmdetection3d gives a weight, on torchsparse."""
    key = re.sub(
        r"^stem\.(\d)\.", lambda m: f"backbone.conv_input.{int(m[1]) // 3}.net.{int(m[1]) % 3}.", key
    )
    key = re.sub(r"^stage(\d)\.", lambda m: f"backbone.encoder.{int(m[1]) - 1}.", key)
    key = re.sub(r"^up(\d)\.", lambda m: f"backbone.decoder.{int(m[1]) - 1}.", key)
    key = re.sub(r"^point_transforms\.", "backbone.point_transforms.", key)
    return re.sub(r"^classifier\.0\.", "decode_head.conv_seg.", key)


def on_spconv(key: str, value: Tensor, version: int) -> tuple[str, Tensor]:
    """The name and layout of the same weight on spconv."""
    key = in_mmdet3d(key)
    key = key.replace("conv_input.0.net.", "conv_input.0.").replace("conv_input.1.net.", "conv_input.1.")
    key = re.sub(r"(encoder\.\d\.0|decoder\.\d\.0)\.net\.", r"\1.", key)
    for ours, theirs in (("net.0.", "conv1."), ("net.1.", "bn1."), ("net.3.", "conv2."), ("net.4.", "bn2.")):
        key = re.sub(rf"((?:encoder\.\d|decoder\.\d\.1)\.\d\.){re.escape(ours)}", rf"\g<1>{theirs}", key)
    if not key.endswith("kernel"):
        return key, value
    if value.ndim == 2:
        cube = value[None, None, None]
    else:
        size = round(len(value) ** (1 / 3))
        cube = value.reshape(size, size, size, *value.shape[1:])
        cube = cube.permute(2, 1, 0, 3, 4) if size == 3 else cube
    return key.replace("kernel", "weight"), cube.permute(4, 0, 1, 2, 3) if version == 2 else cube


@pytest.mark.parametrize("network", ["SPVCNN", "MinkUNet"])
def test_spvnas_checkpoints_of_both_networks_answer_alike(network):
    built = small({"SPVCNN": SPVCNN, "MinkUNet": MinkUNet}[network])
    assert_same_answers(built.state_dict(), built, network, network=network)


def test_a_spvnas_sub_network_is_rebuilt_from_its_shapes_alone():
    alone = supernet().determinize(TINY.sample(random.Random(1)))
    found = convert(alone.state_dict(), "init")
    assert found.network == "SPVNAS"
    rebuilt = next(r for r in RECIPES if r.network == "SPVNAS").build({**found.config, **RESOLUTION})
    rebuilt.load_state_dict(found.state)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(*cloud(300)), alone(*cloud(300)))


def test_a_net_config_that_is_not_that_of_the_weights_is_refused_with_the_keys():
    alone = supernet().determinize(TINY.sample(random.Random(1)))
    other = TINY.sample(random.Random(2))
    with pytest.raises(ModelError, match=r"ill-shaped \['.*transition"):
        convert(alone.state_dict(), "init", net_config=other)


@pytest.mark.parametrize("kind", [SPVCNN, MinkUNet])
def test_mmdetection3d_on_torchsparse_answers_alike(kind):
    built = small(kind) if kind is SPVCNN else small(kind, point_transforms=False)
    state = {in_mmdet3d(key): value for key, value in built.state_dict().items()}
    assert_same_answers(state, built, kind.__name__)


@pytest.mark.parametrize("version", [1, 2])
def test_mmdetection3d_on_spconv_with_deeper_stages_answers_alike(version):
    built = small(MinkUNet, point_transforms=False, blocks=(2, 3, 4, 6, 2, 2, 2, 2))
    state = dict(on_spconv(key, value, version) for key, value in built.state_dict().items())
    assert_same_answers(state, built, "MinkUNet")


def test_a_head_on_joined_features_is_refused_as_ill_shaped():
    """mmdetection3d's second MinkUNet classifies features of three levels; it is another network."""
    built = small(MinkUNet, point_transforms=False)
    state = {in_mmdet3d(key): value for key, value in built.state_dict().items()}
    state["decode_head.conv_seg.weight"] = torch.zeros(19, 52)
    del state["backbone.encoder.2.1.net.0.kernel"]
    state["decode_head.extra"] = torch.zeros(1)
    with pytest.raises(ModelError, match=r"stage3\.1\.net\.0\.kernel"):
        convert(state, "file")
    state["backbone.encoder.2.1.net.0.kernel"] = built.stage3[1].net[0].kernel
    with pytest.raises(ModelError, match=r"unexpected \['decode_head\.extra'\].*\(19, 52\) instead of"):
        convert(state, "file")


def test_of_a_checkpoint_that_may_be_either_of_two_networks_it_is_said_which_was_taken():
    state = small(MinkUNet).state_dict()
    for name, taken in (
        ("init", "SPVCNN"),
        ("minkunet_cr0.5.pth", "MinkUNet"),
        ("MinkUNet/init", "MinkUNet"),
    ):
        found = convert(state, name)
        assert found.network == taken
        assert found.notes["network"].startswith(f"{taken}, ")
        assert "--network SPVCNN or MinkUNet" in found.notes["network"]
        assert "network" not in convert(state, name, network="SPVCNN").notes


@pytest.mark.parametrize(
    ("name", "taken", "place"),
    [
        ("/runs/minkunet/SPVCNN@119GMACs.pth", "SPVCNN", "file"),
        ("/runs/spvcnn/MinkUNet@114GMACs.pth", "MinkUNet", "file"),
        ("/runs/SemanticKITTI_val_SPVCNN@119GMACs/init", "SPVCNN", "folder"),
        ("/runs/minkunet_and_spvcnn/SPVCNN.pth", "SPVCNN", "file"),
    ],
)
def test_the_name_of_the_file_counts_before_that_of_its_folder(name, taken, place):
    found = convert(small(MinkUNet).state_dict(), name)
    assert found.network == taken
    assert found.notes["network"].startswith(f"{taken}, by the {place}'s name")


@pytest.mark.parametrize("name", ["/runs/minkunet_and_spvcnn/init", "/runs/minkunet/SPVCNN_not_MinkUNet.pth"])
def test_a_name_that_tells_both_networks_tells_neither(name):
    state = small(MinkUNet).state_dict()
    with pytest.raises(
        ConfigError, match=r"--network: expected SPVCNN or MinkUNet, since the name .* tells both"
    ):
        convert(state, name)
    assert convert(state, name, network="MinkUNet").network == "MinkUNet"


@pytest.mark.parametrize("width", [0.125, 0.25, 1.0])
def test_a_pvcnn_is_recognised_with_its_sizes(width):
    torch.manual_seed(0)
    state = PVCNN(13, width=width).state_dict()
    found = convert(state, "s3dis.pvcnn.area5.pth.tar")
    assert (found.network, found.config) == ("PVCNN", {"num_classes": 13, "in_channels": 9, "width": width})
    assert found.classes[:3] == ("clutter", "ceiling", "floor")
    assert "S3DIS" in found.notes["resolution"]
    assert found.state.keys() == state.keys()
    del state["cloud_features.1.0.weight"]
    with pytest.raises(ModelError, match=r"missing \['cloud_features\.1\.0\.weight'\]"):
        convert(state, "file")


def test_a_pvcnn_of_other_data_is_refused_by_what_it_lacks():
    """That for ShapeNet has no features of the whole cloud."""
    state = {k: v for k, v in PVCNN(13, width=0.125).state_dict().items() if not k.startswith("cloud")}
    with pytest.raises(ModelError, match=r"the key that tells a size of PVCNN, found no 'cloud_features"):
        convert(state, "shapenet.pvcnn.pth.tar")


def test_a_converted_pvcnn_answers_as_before(tmp_path):
    torch.manual_seed(0)
    network, points = PVCNN(5, in_channels=6, width=0.125), torch.randn(1, 6, 200)
    with torch.no_grad():
        network.train()(torch.randn(3, 6, 200))
        wanted = network.eval()(points)
    weights = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"model": weights, "epoch": 3}, tmp_path / "pvcnn.pth.tar")
    arguments = ["convert-checkpoint", str(tmp_path / "pvcnn.pth.tar"), str(tmp_path / "out.safetensors")]
    result = CliRunner().invoke(build_app(), arguments)
    assert result.exit_code == 0, result.output
    assert "resolution: that of the S3DIS release assumed" in result.output
    loaded, manifest = load_network(tmp_path / "out.safetensors")
    assert manifest.classes == ()
    with torch.no_grad():
        assert torch.equal(loaded(points), wanted)


def test_a_network_that_does_not_fit_the_keys_is_refused():
    with pytest.raises(ModelError, match="SPVCNN"):
        convert(small(SPVCNN).state_dict(), "file", network="TSM")


def test_the_command_reads_a_released_pair_of_net_config_and_init(tmp_path):
    network = supernet()
    config = TINY.sample(random.Random(3))
    torch.save({"model": network.determinize(config).state_dict()}, tmp_path / "init")
    (tmp_path / "net.config").write_text(json.dumps({**config, "num_classes": 5, **RESOLUTION}))
    arguments = ["convert-checkpoint", str(tmp_path / "init"), str(tmp_path / "out.safetensors")]
    arguments += ["--net-config", str(tmp_path / "net.config")]
    result = CliRunner().invoke(build_app(), arguments)
    assert result.exit_code == 0, result.output
    loaded, manifest = load_network(tmp_path / "out.safetensors")
    assert manifest.network == "SPVNAS"
    assert manifest.config["vres"] == 1.0
    with torch.no_grad():
        assert torch.equal(loaded(*cloud(300)), network.determinize(config)(*cloud(300)))


def test_a_super_network_is_recognised_with_its_widths():
    found = convert(supernet().state_dict(), "init")
    assert found.network == "SPVNASSuperNet"
    assert found.config["space"]["widths"] == list(TINY.widths)


def test_a_converted_super_network_is_loaded(tmp_path):
    network = supernet()
    found = convert(network.state_dict(), "init")
    path = tmp_path / "out.safetensors"
    save(path, found.state, Manifest("out", found.network, found.config, found.classes), exact=True)
    loaded, _ = load_network(path)
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in network.state_dict().items())
