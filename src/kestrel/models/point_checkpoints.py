# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Released checkpoints of the point-cloud networks: sizes from shapes, names and layouts of mmdetection3d."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kestrel.errors import ModelError, describe
from kestrel.models.minkunet import STAGES
from kestrel.models.pvcnn import POINT_CHANNELS
from kestrel.models.spvnas_space import POINT_WIDTHS, NetConfig, stage_name

MMDET3D_MARKERS = ("backbone.conv_input.0.net.0.kernel", "backbone.conv_input.0.0.weight")
"""A key that a MinkUNet or SPVCNN of mmdetection3d has: on torchsparse, on spconv."""

_PARTS = (
    (re.compile(r"backbone\.encoder\.(\d)\.(\d)\."), lambda m: f"stage{int(m[1]) + 1}.{m[2]}."),
    (re.compile(r"backbone\.decoder\.(\d)\.(\d)\."), lambda m: f"up{int(m[1]) + 1}.{m[2]}."),
    (re.compile(r"backbone\.point_transforms\."), lambda m: "point_transforms."),
    (re.compile(r"decode_head\.conv_seg\."), lambda m: "classifier.0."),
)
_SPCONV_BLOCK = {"conv1.": "net.0.", "bn1.": "net.1.", "conv2.": "net.3.", "bn2.": "net.4."}


def from_mmdet3d(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a MinkUNet or SPVCNN of mmdetection3d under the names and layouts of SPVNAS.

    Kernels of spconv are (out, x, y, z, in) in version 2, (x, y, z, in, out) before.
    """
    renamed = {_name(key): value for key, value in state.items()}
    result = {}
    for key, value in renamed.items():
        if value.ndim == 5 and key.endswith(".weight"):
            layer, _, index = key.removesuffix(".weight").rpartition(".")
            norm = renamed.get(f"{layer}.{int(index) + 1}.bias") if index.isdigit() else None
            result[key.removesuffix("weight") + "kernel"] = _slices(value, norm)
        else:
            result[key] = value
    return result


def _name(key: str) -> str:
    stem = re.match(r"backbone\.conv_input\.(\d)\.(?:net\.)?(\d)\.", key)
    if stem:
        return f"stem.{3 * int(stem[1]) + int(stem[2])}.{key[stem.end() :]}"
    for pattern, ours in _PARTS:
        key = pattern.sub(ours, key, count=1)
    # A transition of spconv is the sequence itself, elsewhere it is named net.
    key = re.sub(r"^((?:stage|up)\d\.0\.)(\d\.)", r"\1net.\2", key)
    for theirs, mine in _SPCONV_BLOCK.items():
        key = re.sub(rf"^(stage\d\.\d\.|up\d\.1\.\d\.){re.escape(theirs)}", rf"\g<1>{mine}", key)
    return key


def _slices(kernel: Tensor, norm: Tensor | None) -> Tensor:
    """Return a spconv kernel as (K, in, out) slices in the order of torchsparse, (in, out) for size 1.

    norm: bias of the batch norm that follows, which tells the output channels.
    """
    if norm is not None and len(norm) == len(kernel) and len(set(kernel.shape[1:4])) == 1:
        kernel = kernel.permute(1, 2, 3, 4, 0)
    size, _, _, inputs, outputs = kernel.shape
    if size == 1:
        return kernel.reshape(inputs, outputs)
    # torchsparse counts x fastest in odd kernels, z fastest in even ones.
    ordered = kernel.permute(2, 1, 0, 3, 4) if size % 2 else kernel
    return ordered.reshape(-1, inputs, outputs)


def minkunet_config(state: Mapping[str, Tensor], net_config: NetConfig | None) -> dict[str, Any]:
    """Return the arguments of the MinkUNet or SPVCNN that has these weights."""
    firsts = [
        *(f"stage{n}.1.net.0.kernel" for n in range(1, 5)),
        *(f"up{n}.0.net.0.kernel" for n in range(1, 5)),
    ]
    config: dict[str, Any] = {
        "num_classes": len(state["classifier.0.bias"]),
        "channels": [state[key].shape[-1] for key in ("stem.0.kernel", *firsts)],
        "in_channels": state["stem.0.kernel"].shape[1],
    }
    blocks = [
        len({m[1] for key in state if (m := re.match(rf"{prefix}(\d)\.net\.0\.", key)) and m[1] != skipped})
        for prefix, skipped in STAGES
    ]
    if blocks != [2] * len(STAGES):
        config["blocks"] = blocks
    if not any(key.startswith("point_transforms.") for key in state):
        config["point_transforms"] = False
    return config | _resolution(net_config)


def pvcnn_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of the PVCNN for S3DIS that has these weights, but for the cells of its grids."""
    return {
        "num_classes": len(state["classifier.4.weight"]),
        "in_channels": state["point_features.0.voxel_layers.0.weight"].shape[1],
        "width": state["cloud_features.0.0.weight"].shape[1] / POINT_CHANNELS,
    }


def spvnas_config(state: Mapping[str, Tensor], net_config: NetConfig | None) -> dict[str, Any]:
    """Return the arguments of the SPVNAS sub-network that has these weights.

    net_config: the released file. Without it the configuration is read from the shapes.
    """
    return {
        "net_config": net_config or _net_config(state),
        "num_classes": len(state["classifier.linear.bias"]),
        "in_channels": state["stem.0.kernel"].shape[1],
        "classifier_inputs": state["classifier.linear.weight"].shape[1],
    } | _resolution(net_config)


def _net_config(state: Mapping[str, Tensor]) -> NetConfig:
    config: NetConfig = {"output_channels": [state["stem.0.kernel"].shape[-1]]}
    for stage in range(8):
        prefix = stage_name(stage)
        config[f"{prefix}.transition"] = state[f"{prefix}.transition.net.conv.kernel"].shape[-1]
        depth = sum(f"{prefix}.feature.{block}.net.0.net.conv.kernel" in state for block in range(2))
        config[f"{prefix}.feature"] = depth
        for block in range(depth):
            inner, outer = (
                state[f"{prefix}.feature.{block}.net.{layer}.net.conv.kernel"].shape[-1] for layer in (0, 1)
            )
            name = f"{prefix}.feature.layers.{block}"
            config |= {f"{name}.net": 2, f"{name}.net.layers.0": inner, f"{name}.net.layers.1": outer}
            if f"{prefix}.feature.{block}.downsample.net.conv.kernel" in state:
                config[f"{name}.downsample"] = outer
        config["output_channels"].append(state[f"{prefix}.feature.0.net.1.net.conv.kernel"].shape[-1])
    for number, index in enumerate(POINT_WIDTHS):
        config[f"point_transforms.{number}"] = config["output_channels"][index]
    return config


def supernet_config(state: Mapping[str, Tensor], net_config: NetConfig | None) -> dict[str, Any]:
    """Return the arguments of the SPVNAS super-network with these weights; least widths are halves."""
    layers = [f"{stage_name(s)}.feature.layers.0.net.layers.1.net.conv.kernel" for s in range(8)]
    stem = state["stem.0.kernel"].shape[-1]
    widths = [stem, *(state[key].shape[-1] for key in layers)]
    space: dict[str, Any] = {"widths": widths}
    if widths != [32, 48, 96, 192, 384, 384, 192, 128, 128]:
        space |= {"least": [stem, *(max(1, width // 2) for width in widths[1:])], "divisor": 4}
    return {
        "num_classes": len(state["classifier.linear.bias"]),
        "in_channels": state["stem.0.kernel"].shape[1],
        "space": space,
    } | _resolution(net_config)


def _resolution(net_config: NetConfig | None) -> dict[str, float]:
    """Return the point and voxel resolution [m] that a net.config names."""
    found = {name: (net_config or {}).get(name) for name in ("pres", "vres")}
    for name, value in found.items():
        if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
            raise ModelError(describe(f"net.config {name}", expected="a positive length [m]", found=value))
    return {name: float(value) for name, value in found.items() if value is not None}
