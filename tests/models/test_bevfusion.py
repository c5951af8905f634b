# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""BEVFusion: built from configurations, whole frames through every combination of sensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from kestrel.errors import ConfigError, InputError
from kestrel.models.bevfusion import BEVFusion
from kestrel.models.bevfusion_config import build_bevfusion
from kestrel.models.bevfusion_released import released_config
from kestrel.nn.camera_geometry import CameraGeometry

PARITY = Path(__file__).resolve().parents[2] / os.environ.get("KESTREL_PARITY", "../shared/parity")
KEY_LISTS = PARITY.parent / "reference" / "state_dict_keys"
VARIANTS = [(task, sensors) for task in ("det", "seg") for sensors in ("camera+lidar", "camera", "lidar")]


@pytest.mark.parametrize(("task", "sensors"), VARIANTS)
def test_keys_and_shapes_are_those_of_the_released_checkpoint(task: Any, sensors: Any) -> None:
    name = sensors if sensors == "camera+lidar" else f"{sensors}-only"
    path = KEY_LISTS / f"bevfusion_{task}_{name}.json"
    if not path.is_file():
        pytest.skip(f"no key list: {path}")
    with torch.device("meta"):
        network = build_bevfusion(released_config(task, sensors))
    found = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert found == json.loads(path.read_text())["keys"]


def small_config(task: Any, sensors: Any) -> dict[str, Any]:
    """A configuration of the released kind on a grid of 16 x 16 cells and pictures of 64 x 96."""
    config = released_config(task, sensors)
    half = 6.4
    if "camera" in config["encoders"]:
        camera = config["encoders"]["camera"]
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


def small(task: Any, sensors: Any) -> BEVFusion:
    """The network of small_config with random weights."""
    torch.manual_seed(0)
    return build_bevfusion(small_config(task, sensors)).eval()


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
