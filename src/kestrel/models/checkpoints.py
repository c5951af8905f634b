# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Read released checkpoints: recognise the network, rename the keys, refuse what does not fit.

A checkpoint is a pickle; it is read with ``weights_only=True`` and nothing in it is executed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS, SEMANTIC_KITTI_CLASSES
from kestrel.errors import ModelError, describe
from kestrel.models.anycost import BASE_CHANNELS, AnyCostGenerator
from kestrel.models.bevfusion_config import build_bevfusion, config_of
from kestrel.models.bevfusion_released import CENTER_TASKS
from kestrel.models.gan_compression import ResnetGenerator
from kestrel.models.minkunet import MinkUNet
from kestrel.models.mobilenetv2 import OnlineTSMMobileNetV2
from kestrel.models.point_checkpoints import (
    MMDET3D_MARKERS,
    from_mmdet3d,
    minkunet_config,
    spvnas_config,
    supernet_config,
)
from kestrel.models.spvcnn import SPVCNN
from kestrel.models.spvnas import SPVNAS
from kestrel.models.spvnas_space import SearchSpace
from kestrel.models.spvnas_supernet import SPVNASSuperNet
from kestrel.models.tsm import TSM

State: TypeAlias = dict[str, Tensor]
Config: TypeAlias = dict[str, Any]

STANDARD_BOXES = "length, width, height; standard yaw"
RELEASED_BOXES = "width, length, height; yaw = -yaw_standard - pi / 2"
"""What the boxes of a BEVFusion mean: the entry ``boxes`` in the notes of a conversion."""

CONTAINERS = ("state_dict", "model", "g_ema")
"""Entries under which training code stores the weights."""


@dataclass(frozen=True)
class Conversion:
    """A checkpoint in the form that Kestrel loads.

    network: name of the class. config: arguments that build it. state: weights; every key and shape fits.
    classes: in the order of the outputs, empty if not known. notes: what a user of the weights has to know.
    """

    network: str
    config: Config
    state: State
    classes: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)


def read_checkpoint(path: Path) -> State:
    """Return the weights in a .pth or .pt file, without the prefix of data-parallel training.

    Raises:
        ModelError: there is no such file, it is no checkpoint, or it holds more than plain weights.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle can raise any
        raise ModelError(
            describe(str(path), expected="a checkpoint of plain weights", found=_reason(error))
        ) from error
    while isinstance(content, Mapping):
        inner = [content[name] for name in CONTAINERS if isinstance(content.get(name), Mapping)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping) or not content or not _all_tensors(content):
        expected = f"weights, bare or under one of {CONTAINERS}"
        raise ModelError(describe(str(path), expected=expected, found=type(content).__name__))
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _reason(error: Exception) -> str:
    """Return in a few words why torch refuses a file, without its advice to execute what is in it."""
    code = re.search(r"GLOBAL (\S+)", str(error))
    if code:
        return f"code, {code[1]}"
    if isinstance(error, OSError | EOFError | RuntimeError):
        return (str(error) or type(error).__name__).splitlines()[0].split(" In PyTorch 2.6")[0]
    return "another kind of file, or a damaged one"


def _all_tensors(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(value, Tensor) for value in content.values())


def convert(
    state: State, source: str, *, net_config: Config | None = None, network: str | None = None
) -> Conversion:
    """Bring the weights of a released checkpoint into the form that Kestrel loads.

    Args:
        state: what read_checkpoint returned.
        source: named in errors.
        net_config: content of the net.config of an SPVNAS release.
        network: what to take the checkpoint for where its keys fit several, as those of MinkUNet and SPVCNN.

    Raises:
        ModelError: the network is unknown, or keys are missing, unexpected, ill-shaped or no dense floating
            point where the network has that (all are listed).
    """
    notes = {}
    if any(key.startswith("pts_middle_encoder.") for key in state):
        state = {_from_mmdet3d(key): value for key, value in state.items()}
        notes["boxes"] = STANDARD_BOXES
    if any(marker in state for marker in MMDET3D_MARKERS):
        state = from_mmdet3d(state)
        notes["source"] = "mmdetection3d"
        network = network or (None if "point_transforms.0.0.weight" in state else "MinkUNet")
    recipe = _recognise(state, source, network)
    try:
        config = recipe.configure(state, net_config) if recipe.takes_net_config else recipe.configure(state)
        with torch.device("meta"):
            wanted = recipe.build(config).state_dict()
    except KeyError as error:
        expected = f"the key that tells a size of {recipe.network}"
        raise ModelError(describe(source, expected=expected, found=f"no {error}")) from error
    except (ArithmeticError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        expected = f"shapes that tell the sizes of {recipe.network}"
        raise ModelError(describe(source, expected=expected, found=error)) from error
    state = {key: _layout(value, wanted.get(key)) for key, value in state.items()}
    _refuse_misfits(state, wanted, f"{source} as {recipe.network}")
    if recipe.network == "BEVFusion":
        notes.setdefault("boxes", RELEASED_BOXES)
    tensors = {key: value.contiguous() for key, value in state.items()}
    return Conversion(recipe.network, config, tensors, recipe.classes(config), notes)


def _recognise(state: State, source: str, network: str | None) -> _Recipe:
    fitting = [recipe for recipe in RECIPES if recipe.marker in state]
    chosen = [recipe for recipe in fitting if network in (None, recipe.network)]
    if not chosen:
        known = sorted({recipe.network for recipe in fitting or RECIPES})
        found = sorted(state)[:5] if not fitting else network
        raise ModelError(describe(f"network of {source}", expected=known, found=found))
    return chosen[0]


def _layout(value: Tensor, wanted: Tensor | None) -> Tensor:
    """Bring a sparse kernel of spconv 2 (out, k, k, k, in) into the order (k, k, k, in, out)."""
    if wanted is not None and value.ndim == 5 and value.shape != wanted.shape:
        turned = value.permute(1, 2, 3, 4, 0)
        return turned if turned.shape == wanted.shape else value
    return value


def _refuse_misfits(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    ill_shaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & state.keys())
        if state[key].shape != wanted[key].shape
    ]
    ill_shaped += [
        f"{key} {state[key].dtype} {state[key].layout} instead of dense floating point"
        for key in sorted(wanted.keys() & state.keys())
        if state[key].layout != torch.strided
        or (wanted[key].is_floating_point() and not state[key].is_floating_point())
    ]
    if missing or unexpected or ill_shaped:
        found = f"missing {missing}; unexpected {unexpected}; ill-shaped {ill_shaped}"
        raise ModelError(describe(what, expected=f"its {len(wanted)} keys", found=found))


MMDET3D_PARTS = {
    "img_backbone.": "encoders.camera.backbone.",
    "img_neck.": "encoders.camera.neck.",
    "view_transform.": "encoders.camera.vtransform.",
    "pts_middle_encoder.": "encoders.lidar.backbone.",
    "fusion_layer.": "fuser.",
    "pts_backbone.": "decoder.backbone.",
    "pts_neck.": "decoder.neck.",
    "bbox_head.": "heads.object.",
}
"""Parts of mmdetection3d's BEVFusion and their released names."""

MMDET3D_ATTENTION = {
    ".self_attn.attn.": ".self_attn.",
    ".cross_attn.attn.": ".multihead_attn.",
    ".ffn.layers.0.0.": ".linear1.",
    ".ffn.layers.1.": ".linear2.",
    ".norms.0.": ".norm1.",
    ".norms.1.": ".norm2.",
    ".norms.2.": ".norm3.",
}
"""The same for the layers of its transformer decoder."""


def _from_mmdet3d(key: str) -> str:
    for theirs, ours in MMDET3D_PARTS.items():
        if key.startswith(theirs):
            key = ours + key.removeprefix(theirs)
            break
    if key.startswith("heads.object.decoder."):
        for theirs, ours in MMDET3D_ATTENTION.items():
            key = key.replace(theirs, ours)
    return key


@dataclass(frozen=True)
class _Recipe:
    """How to build one kind of network from the shapes of its checkpoint, which has the key ``marker``."""

    marker: str
    network: str
    configure: Callable[..., Config]
    build: Callable[[Config], nn.Module]
    classes: Callable[[Config], tuple[str, ...]] = lambda config: ()
    takes_net_config: bool = False


def _configure_bevfusion(state: State) -> Config:
    sensors = [
        name for name in ("camera", "lidar") if any(key.startswith(f"encoders.{name}.") for key in state)
    ]
    task = "seg" if any(key.startswith("heads.map.") for key in state) else "det"
    return {"task": task, "modality": "+".join(sensors)}


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
    _Recipe("decoder.neck.deblocks.0.0.weight", *_BEVFUSION),
    _Recipe("decoder.neck.fuse.0.weight", *_BEVFUSION),
    _Recipe("new_fc.weight", "TSM", _configure_tsm, lambda config: TSM(**config)),
    _Recipe(
        "features.18.0.weight",
        "OnlineTSMMobileNetV2",
        _configure_online_tsm,
        lambda config: OnlineTSMMobileNetV2(**config),
    ),
    _Recipe(
        "downsample.0.transition.net.bn.bn.weight",
        "SPVNASSuperNet",
        supernet_config,
        _build_supernet,
        _kitti_classes,
        takes_net_config=True,
    ),
    _Recipe(
        "downsample.0.transition.net.bn.weight",
        "SPVNAS",
        spvnas_config,
        lambda config: SPVNAS(**config),
        _kitti_classes,
        takes_net_config=True,
    ),
    _Recipe(
        "stage1.0.net.0.kernel",
        "SPVCNN",
        minkunet_config,
        lambda config: SPVCNN(**config),
        _kitti_classes,
        takes_net_config=True,
    ),
    _Recipe(
        "stage1.0.net.0.kernel",
        "MinkUNet",
        minkunet_config,
        lambda config: MinkUNet(**config),
        _kitti_classes,
        takes_net_config=True,
    ),
    _Recipe("input.input", "AnyCostGenerator", _configure_anycost, lambda config: AnyCostGenerator(**config)),
    _Recipe(
        "model.26.weight",
        "ResnetGenerator",
        _configure_resnet_generator,
        lambda config: ResnetGenerator(**config),
    ),
)
"""What convert recognises; of those that fit, the first. A MinkUNet of SPVNAS has the keys of SPVCNN."""
