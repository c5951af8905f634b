# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""BEVFusion: built from configurations, whole frames through every combination of sensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kestrel.errors import ConfigError, InputError, ModelError
from kestrel.models.bevfusion import BEVFusion
from kestrel.models.bevfusion_config import build_bevfusion, check_constants, config_of, network_of
from kestrel.models.bevfusion_released import released_config
from kestrel.nn.boxes import DecodedBoxes
from kestrel.nn.camera_geometry import CameraGeometry
from kestrel.nn.center_head import CenterHead

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


def found_twice(width: float, length: float, apart: float, label: int = 0) -> DecodedBoxes:
    """Two boxes beside each other."""
    boxes = torch.tensor([[x, 5.0, -1.0, width, length, 1.7, 0.0, 0, 0] for x in (10.0, 10.0 + apart)])
    return DecodedBoxes(boxes, torch.tensor([0.8, 0.7]), torch.tensor([label, label]))


@pytest.mark.parametrize(
    ("task", "found", "kept"),
    [
        ("car", found_twice(1.9, 4.5, 1.95), 1),  # 2 m: the circle of cars
        ("truck", found_twice(2.5, 8.0, 3.3), 2),
        ("bus", found_twice(2.9, 11.0, 3.0), 2),
        ("barrier", found_twice(2.5, 0.5, 0.9), 1),  # 1 m: the circle of barriers
        ("motorcycle", found_twice(0.8, 2.1, 0.5), 1),
        ("pedestrian", found_twice(0.7, 0.7, 0.6), 1),
        ("pedestrian", found_twice(0.7, 0.7, 1.5), 2),
        ("pedestrian", found_twice(0.4, 0.4, 1.0, label=1), 1),  # a traffic cone
    ],
)
def test_the_released_camera_detector_keeps_neighbours_and_drops_what_it_found_twice(
    task: str, found: DecodedBoxes, kept: int
) -> None:
    config = released_config("det", "camera")
    with torch.device("meta"):
        head = build_bevfusion(config).heads["object"]
    assert isinstance(head, CenterHead)
    number = next(number for number, names in enumerate(head.tasks) if task in names)
    assert len(head.suppress(number, found)) == kept


def test_one_kind_of_suppression_may_be_named_for_all_tasks() -> None:
    config = small_config("det", "camera")
    config["heads"]["object"]["test_cfg"] = {"nms_type": "rotate", "nms_scale": 2.0, "nms_thr": 0.3}
    head = build_bevfusion(config).heads["object"]
    assert isinstance(head, CenterHead)
    assert head.nms_type == ("rotate",) * 6
    assert head.nms_scale[1:3] == ((2.0, 2.0), (2.0, 2.0))
    assert head.nms_threshold == 0.3
    del config["heads"]["object"]["test_cfg"]
    assert build_bevfusion(config).heads["object"].nms_type == ("circle",) * 6


def test_floats_where_the_network_has_integers_are_refused() -> None:
    network = small("seg", "camera")
    state = network.state_dict()
    names = [name for name, value in state.items() if not value.is_floating_point()]
    for ending in ("nx", "relative_position_index"):
        name = next(name for name in names if name.endswith(ending))
        with pytest.raises(ModelError, match=rf"{name} torch\.float32 instead of torch\.int64"):
            network.load_state_dict({**state, name: state[name].float()})
    network.load_state_dict(state)


def test_constants_of_another_grid_are_found_without_the_network() -> None:
    manifest = {"network": small_config("seg", "camera+lidar")}
    state = small("seg", "camera+lidar").state_dict()
    check_constants(state, manifest)
    check_constants({}, {"task": "det", "modality": "lidar"})
    key = "encoders.camera.vtransform.bx"
    with pytest.raises(ModelError, match=rf"{key} of the weights: expected \[-6\.2, -6\.2, 0\.0\].*found"):
        check_constants({**state, key: state[key] + 0.2}, manifest)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"task": "detection", "modality": "lidar"}, r"task.*one of \('det', 'seg'\), found 'detection'"),
        ({"task": "det", "modality": "radar"}, r"modality.*'camera\+lidar'.*found 'radar'"),
        ({"task": "det", "modality": ["lidar"]}, r"modality.*found \['lidar'\]"),
        ({"task": "det", "modality": 3}, r"modality.*found 3"),
        ({"task": "det", "modality": "camera", "backbone": "vovnet"}, r"backbone.*found 'vovnet'"),
        ({"network": []}, r"network: expected an object.*found \[\]"),
        ({"network": {"encoders": None}}, r"network: encoders: expected an object.*found None"),
        ({"network": {"encoders": {"radar": {}}, "decoder": {}, "heads": {}}}, r"encoders.*camera or lidar"),
        (
            {"network": {"encoders": {"lidar": 5}, "decoder": {}, "heads": {}}},
            r"encoders.*found \{'lidar': 5\}",
        ),
        (
            {"network": {"encoders": {"lidar": {}}, "decoder": {}, "heads": {"map": None}}},
            r"heads.*object or map",
        ),
    ],
)
def test_what_is_no_configuration_is_refused(manifest: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        config_of(manifest)
    with pytest.raises(ModelError, match=f"det.safetensors.*{message}"):
        network_of(manifest, "det.safetensors")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("encoders", "lidar", "voxelize", "voxel_size"),
            None,
            r"det\.safetensors config: expected.*TypeError",
        ),
        (("decoder", "backbone"), [], r"det\.safetensors config: expected.*found"),
        (("heads", "object", "bbox_coder"), {}, r"det\.safetensors config: expected an entry 'pc_range'"),
    ],
)
def test_sizes_that_build_nothing_are_refused(path: tuple[str, ...], value: object, message: str) -> None:
    config = part = small_config("det", "lidar")
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    with pytest.raises(ModelError, match=message):
        network_of({"network": config}, "det.safetensors")


def test_the_first_layer_of_a_narrow_lidar_encoder_sees_metres_as_they_are() -> None:
    encoder = small("det", "lidar").encoders["lidar"]
    seen: list[torch.Tensor] = []
    encoder.backbone.conv_input.register_forward_hook(lambda *args: seen.append(args[2].features))
    later: list[torch.dtype] = []
    encoder.backbone.encoder_layers.register_forward_pre_hook(
        lambda *args: later.append(args[1][0].features.dtype)
    )
    clouds = frame()["clouds"]
    with torch.inference_mode():
        wide = encoder(clouds)
        narrow = encoder.backbone(*encoder.voxels(clouds), 1, torch.bfloat16)
    assert torch.equal(*seen)
    assert later == [torch.float32, torch.bfloat16]
    assert 0 < float((narrow.float() - wide).norm() / wide.norm()) < 0.05
