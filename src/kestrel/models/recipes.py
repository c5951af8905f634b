# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The released networks: by which key each is recognised, its sizes from the shapes, how it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from torch import Tensor, nn

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS, SEMANTIC_KITTI_CLASSES
from kestrel.models.anycost import BASE_CHANNELS, AnyCostGenerator
from kestrel.models.bevfusion_config import build_bevfusion, config_of
from kestrel.models.bevfusion_released import CENTER_TASKS
from kestrel.models.gan_compression import ResnetGenerator
from kestrel.models.minkunet import MinkUNet
from kestrel.models.mobilenetv2 import OnlineTSMMobileNetV2
from kestrel.models.point_checkpoints import minkunet_config, pvcnn_config, spvnas_config, supernet_config
from kestrel.models.pvcnn import PVCNN, S3DIS_CLASSES
from kestrel.models.spvcnn import SPVCNN
from kestrel.models.spvnas import SPVNAS
from kestrel.models.spvnas_space import SearchSpace
from kestrel.models.spvnas_supernet import SPVNASSuperNet
from kestrel.models.tsm import TSM

State: TypeAlias = dict[str, Tensor]
Config: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """How to build one kind of network from the shapes of its checkpoint, which has the key ``marker``.

    configure: from the weights (and the net.config of a release, with ``takes_net_config``) to the arguments.
    build: from the arguments, also after they were JSON, to the network with random weights.
    classes: names in the order of the outputs.
    """

    marker: str
    network: str
    configure: Callable[..., Config]
    build: Callable[[Config], nn.Module]
    classes: Callable[[Config], tuple[str, ...]] = lambda config: ()
    takes_net_config: bool = False


RESNET_STEM: Final = "encoders.camera.backbone.conv1.weight"
"""By it a BEVFusion is told whose cameras are looked at by a ResNet; a Swin begins with a patch embedding."""


def _configure_bevfusion(state: State) -> Config:
    sensors = [
        name for name in ("camera", "lidar") if any(key.startswith(f"encoders.{name}.") for key in state)
    ]
    task = "seg" if any(key.startswith("heads.map.") for key in state) else "det"
    config = {"task": task, "modality": "+".join(sensors)}
    if RESNET_STEM in state:
        config["backbone"] = "resnet50"
    return config


def _build_bevfusion(config: Config) -> nn.Module:
    return build_bevfusion(config_of(config))


def _bevfusion_classes(config: Config) -> tuple[str, ...]:
    if config["task"] == "seg":
        return MAP_LAYERS
    if config["modality"] == "camera":
        return tuple(name for task in CENTER_TASKS for name in task)
    return DETECTION_CLASSES


def _configure_tsm(state: State) -> Config:
    if "base_model.features.0.0.weight" in state:
        base = "mobilenetv2"
    else:
        deep = any(key.startswith("base_model.layer3.22.") for key in state)
        base = "resnet101" if deep else "resnet50"
    non_local = any(".nl." in key for key in state)
    return {"base": base, "num_classes": len(state["new_fc.weight"]), "non_local": non_local}


def _configure_online_tsm(state: State) -> Config:
    return {"num_classes": len(state["classifier.weight"])}


def _build_supernet(config: Config) -> nn.Module:
    arguments = dict(config)
    space: Config = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in arguments.pop("space").items()
    }
    return SPVNASSuperNet(space=SearchSpace(**space), **arguments)


def _kitti_classes(config: Config) -> tuple[str, ...]:
    known = SEMANTIC_KITTI_CLASSES
    return known if config["num_classes"] == len(known) else ()


def _s3dis_classes(config: Config) -> tuple[str, ...]:
    return S3DIS_CLASSES if config["num_classes"] == len(S3DIS_CLASSES) else ()


def _configure_anycost(state: State) -> Config:
    resolution = max(value.shape[-1] for key, value in state.items() if key.startswith("noises."))
    # Widths halve with the resolution, so the finest picture layer tells the multiplier.
    finest = [key for key in state if key.startswith("to_rgbs.") and key.endswith("modulation.bias")]
    width = len(state[max(finest, key=lambda key: int(key.split(".")[1]))])
    return {"resolution": resolution, "channel_multiplier": width * resolution / BASE_CHANNELS}


def _configure_resnet_generator(state: State) -> Config:
    separable = "model.10.conv_block.1.conv.0.weight" in state
    inner = "conv_block.1.conv.2.weight" if separable else "conv_block.1.weight"
    return {
        "widths": [
            len(state["model.1.weight"]),
            len(state["model.4.weight"]) // 2,
            len(state["model.7.weight"]) // 4,
            *(len(state[f"model.{block}.{inner}"]) // 4 for block in (10, 13, 16)),
            state["model.19.weight"].shape[1] // 2,
            state["model.22.weight"].shape[1],
        ],
        "in_channels": state["model.1.weight"].shape[1],
        "out_channels": len(state["model.26.weight"]),
        "separable": separable,
    }


_BEVFUSION = ("BEVFusion", _configure_bevfusion, _build_bevfusion, _bevfusion_classes)

RECIPES = (
    Recipe("decoder.neck.deblocks.0.0.weight", *_BEVFUSION),
    Recipe("decoder.neck.fuse.0.weight", *_BEVFUSION),
    Recipe("new_fc.weight", "TSM", _configure_tsm, lambda config: TSM(**config)),
    Recipe(
        "features.18.0.weight",
        "OnlineTSMMobileNetV2",
        _configure_online_tsm,
        lambda config: OnlineTSMMobileNetV2(**config),
    ),
    Recipe(
        "downsample.0.transition.net.bn.bn.weight",
        "SPVNASSuperNet",
        supernet_config,
        _build_supernet,
        _kitti_classes,
        takes_net_config=True,
    ),
    Recipe(
        "downsample.0.transition.net.bn.weight",
        "SPVNAS",
        spvnas_config,
        lambda config: SPVNAS(**config),
        _kitti_classes,
        takes_net_config=True,
    ),
    Recipe(
        "stage1.0.net.0.kernel",
        "SPVCNN",
        minkunet_config,
        lambda config: SPVCNN(**config),
        _kitti_classes,
        takes_net_config=True,
    ),
    Recipe(
        "stage1.0.net.0.kernel",
        "MinkUNet",
        minkunet_config,
        lambda config: MinkUNet(**config),
        _kitti_classes,
        takes_net_config=True,
    ),
    Recipe(
        "point_features.0.voxel_layers.0.weight",
        "PVCNN",
        pvcnn_config,
        lambda config: PVCNN(**config),
        _s3dis_classes,
    ),
    Recipe("input.input", "AnyCostGenerator", _configure_anycost, lambda config: AnyCostGenerator(**config)),
    Recipe(
        "model.26.weight",
        "ResnetGenerator",
        _configure_resnet_generator,
        lambda config: ResnetGenerator(**config),
    ),
)
"""What is recognised. A MinkUNet of SPVNAS has the keys of SPVCNN."""
