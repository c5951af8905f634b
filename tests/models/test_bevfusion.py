# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""BEVFusion: built from configurations, whole frames through every combination of sensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kestrel.errors import ConfigError, InputError
from kestrel.models.bevfusion import BEVFusion
from kestrel.models.bevfusion_config import build_bevfusion
from kestrel.models.bevfusion_released import released_config
from kestrel.nn.camera_geometry import CameraGeometry

VARIANTS = [(task, sensors) for task in ("det", "seg") for sensors in ("camera+lidar", "camera", "lidar")]


def small_config(task: Any, sensors: Any, backbone: Any = "swin-t") -> dict[str, Any]:
    """A configuration of the released kind on a grid of 16 x 16 cells and pictures of 64 x 96."""
    config = released_config(task, sensors, backbone)
    half = 6.4
    if "camera" in config["encoders"]:
        camera = config["encoders"]["camera"]
        if backbone == "swin-t":
            camera["backbone"] |= {"embed_dims": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
            camera["neck"]["in_channels"] = [24, 48, 96]
        bound = [-half, half, 0.4]
        camera["vtransform"] |= {"image_size": [64, 96], "feature_size": [8, 12], "dbound": [1.0, 9.0, 1.0]}
        camera["vtransform"] |= {"xbound": bound, "ybound": bound}
    if "lidar" in config["encoders"]:
        lidar = config["encoders"]["lidar"]
        lidar["voxelize"] |= {"voxel_size": [0.1, 0.1, 0.2]}
        lidar["voxelize"]["point_cloud_range"] = [-half, -half, -5.0, half, half, 3.0]
        lidar["backbone"]["sparse_shape"] = [128, 128, 41]
    if "map" in config["heads"]:
        scope = {"input_scope": [[-half, half, 0.8]] * 2, "output_scope": [[-6.0, 6.0, 0.5]] * 2}
        config["heads"]["map"]["grid_transform"] = scope
    else:
        config["heads"]["object"]["bbox_coder"] |= {"pc_range": [-half, -half], "voxel_size": [0.1, 0.1]}
    return config


def small(task: Any, sensors: Any, backbone: Any = "swin-t") -> BEVFusion:
    """The network of small_config with random weights."""
    torch.manual_seed(0)
    return build_bevfusion(small_config(task, sensors, backbone)).eval()


def frame(batch: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    pose = torch.eye(4).repeat(batch, 2, 1, 1)
    optical = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    pose[:, 0, :3, :3] = optical
    pose[:, 1, :3, :3] = torch.diag(torch.tensor([-1.0, -1, 1])) @ optical
    intrinsics = torch.tensor([[60.0, 0, 48], [0, 60, 32], [0, 0, 1]]).repeat(batch, 2, 1, 1)
    cloud = torch.rand(batch, 500, 5, generator=generator) * torch.tensor([12.0, 12, 3, 255, 0])
    cloud -= torch.tensor([6.0, 6, 2, 0, 0])
    return {
        "images": torch.randn(batch, 2, 3, 64, 96, generator=generator),
        "cameras": CameraGeometry.from_calibration(pose, intrinsics),
        "clouds": list(cloud),
    }


@pytest.mark.parametrize(("task", "sensors"), VARIANTS)
def test_every_variant_answers_a_frame(task: Any, sensors: Any) -> None:
    network = small(task, sensors)
    with torch.no_grad():
        answers = network(**frame(batch=2))
    if task == "seg":
        assert answers["map"].shape == (2, 6, 24, 24)
        return
    boxes = network.decode(answers)
    assert len(boxes) == 2
    for found in boxes:
        assert found.boxes.shape == (len(found.scores), 9)
        assert found.boxes.isfinite().all()
        assert (found.boxes[:, 3:6] > 0).all()


def resnet50_keys() -> set[str]:
    """The names of a ResNet-50 without classifier as torchvision and mmdetection have them."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    layers = [("conv1", "bn1")]
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            path = f"layer{stage}.{block}"
            layers += [(f"{path}.conv{number}", f"{path}.bn{number}") for number in (1, 2, 3)]
            layers += [(f"{path}.downsample.0", f"{path}.downsample.1")] if block == 0 else []
    names = {f"{conv}.weight" for conv, _ in layers}
    return names | {f"{bn}.{part}" for _, bn in layers for part in norm}


def test_keys_of_the_resnet50_variant_differ_in_the_camera_backbone_alone() -> None:
    with torch.device("meta"):
        usual, variant = (
            build_bevfusion(released_config("det", "camera+lidar", name)).state_dict()
            for name in ("swin-t", "resnet50")
        )
    prefix = "encoders.camera.backbone."
    assert {key.removeprefix(prefix) for key in variant if key.startswith(prefix)} == resnet50_keys()
    rest = [{key for key in state if not key.startswith(prefix)} for state in (usual, variant)]
    assert rest[0] == rest[1]
    others = {key for key in rest[0] if usual[key].shape != variant[key].shape}
    lateral = "encoders.camera.neck.lateral_convs"
    assert others == {f"{lateral}.0.conv.weight", f"{lateral}.1.conv.weight"}
    shapes = [tuple(variant[f"{lateral}.{level}.conv.weight"].shape) for level in (0, 1)]
    assert shapes == [(256, 512 + 256, 1, 1), (256, 1024 + 2048, 1, 1)]


@pytest.mark.parametrize(("task", "sensors"), [("det", "camera+lidar"), ("seg", "camera")])
def test_resnet50_variant_answers_a_frame(task: Any, sensors: Any) -> None:
    network, inputs = small(task, sensors, "resnet50"), frame()
    others = {**inputs, "images": inputs["images"].flip(1)}
    answer = "dense_heatmap" if task == "det" else "map"
    with torch.no_grad():
        found, other = ({**each, **each.get("object", {})} for each in (network(**inputs), network(**others)))
    assert found[answer].isfinite().all()
    assert not torch.equal(found[answer], other[answer]), "the pictures have a say"


def test_samples_of_a_batch_do_not_mix() -> None:
    network, both = small("seg", "camera+lidar"), frame(batch=2)
    cameras = both["cameras"]
    with torch.no_grad():
        together = network(**both)["map"]
        alone = network(
            both["images"][1:],
            CameraGeometry.from_calibration(cameras.reference_from_camera[1:], cameras.intrinsics[1:]),
            both["clouds"][1:],
        )["map"]
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter() -> None:
    network = small("seg", "camera+lidar").train()
    network(**frame(batch=2))["map"].square().mean().backward()
    without = [name for name, value in network.named_parameters() if value.grad is None]
    assert not without


def test_missing_sensor_data_is_refused() -> None:
    with pytest.raises(InputError, match="LiDAR encoder"):
        small("seg", "lidar")(clouds=None)
    with pytest.raises(InputError, match="camera encoder"):
        small("seg", "camera")(clouds=frame()["clouds"])


def test_unknown_part_is_refused_by_name() -> None:
    config = released_config("det", "camera")
    config["encoders"]["camera"]["backbone"]["type"] = "VoVNet"
    with pytest.raises(ConfigError, match="VoVNet"):
        build_bevfusion(config)
