# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Convert released checkpoints (recognise the network, rename the keys, refuse what does not fit); load them.

The files are read by :mod:`kestrel.models.checkpoint_files`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from kestrel.errors import ConfigError, ModelError, describe
from kestrel.models.bevfusion_config import check_constants
from kestrel.models.checkpoint_files import Checkpoint
from kestrel.models.checkpoint_files import read_checkpoint as read_checkpoint
from kestrel.models.point_checkpoints import MMDET3D_MARKERS, from_mmdet3d
from kestrel.models.recipes import RECIPES, Config, Recipe, State
from kestrel.weights import Manifest, assign, load

STANDARD_BOXES = "length, width, height; standard yaw"
RELEASED_BOXES = "width, length, height; yaw = -yaw_standard - pi / 2"
"""What the boxes of a BEVFusion mean: the entry ``boxes`` in the notes of a conversion."""

N_SEGMENT: Final = 8
"""Frames per clip of a TSM where nothing tells: those of most released ones."""

COUNTER: Final = ".num_batches_tracked"
"""Of a batch norm: how many batches it saw, which files of before torch 0.4.1 lack and no answer needs."""


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


def convert(
    state: State,
    source: str,
    *,
    net_config: Config | None = None,
    network: str | None = None,
    n_segment: int | None = None,
) -> Conversion:
    """Bring the weights of a released checkpoint into the form that Kestrel loads.

    Args:
        state: what read_checkpoint returned; counters of batch norms may be missing, which are 0 then.
        source: file, named in errors. Its name, or else that of its folder, tells the frames per clip of a
            TSM ("segment16"), and of networks whose keys are alike which one it is.
        net_config: content of the net.config of an SPVNAS release.
        network: what to take the checkpoint for where its keys fit several, as those of MinkUNet and SPVCNN.
        n_segment: frames per clip of a TSM, where the name does not tell.

    Raises:
        ModelError: the network is unknown, or keys are missing, unexpected, ill-shaped or no dense floating
            point where the network has that (all are listed).
        ConfigError: n_segment or net_config for a network that has none; or the name tells two networks.
    """
    notes = dict(state.notes) if isinstance(state, Checkpoint) else {}
    if any(key.startswith("pts_middle_encoder.") for key in state):
        state = {_from_mmdet3d(key): value for key, value in state.items()}
        notes["boxes"] = STANDARD_BOXES
    if any(marker in state for marker in MMDET3D_MARKERS):
        state = from_mmdet3d(state)
        notes["source"] = "mmdetection3d"
        network = network or ("SPVCNN" if "point_transforms.0.0.weight" in state else "MinkUNet")
    recipe = _chosen(_recognise(state, source, network), source, notes)
    if net_config is not None and not recipe.takes_net_config:
        raise ConfigError(describe("net_config", expected=f"none for {recipe.network}", found="one"))
    config, wanted = _configured(recipe, state, source, net_config)
    if recipe.network == "TSM":
        told = n_segment or _told_segments(source)
        config["n_segment"] = told or N_SEGMENT
        if told is None:
            notes["n_segment"] = f"{N_SEGMENT} assumed, since the file's name does not tell (--n-segment)"
    elif n_segment is not None:
        raise ConfigError(describe("n_segment", expected=f"none for {recipe.network}", found=n_segment))
    if recipe.network == "PVCNN":
        notes["resolution"] = "that of the S3DIS release assumed, since no weight tells the cells of a grid"
    state = {key: _layout(value, wanted.get(key)) for key, value in state.items()}
    # Averages and halves of whole states have floats there.
    state |= {key: value.to(torch.int64) for key, value in state.items() if key.endswith(COUNTER)}
    if uncounted := [key for key in wanted if key.endswith(COUNTER) and key not in state]:
        state |= {key: torch.zeros(wanted[key].shape, dtype=wanted[key].dtype) for key in uncounted}
        notes["num_batches_tracked"] = f"0 assumed in {len(uncounted)} batch norms, since the file has none"
    _refuse_misfits(state, wanted, f"{source} as {recipe.network}")
    if recipe.network == "BEVFusion":
        check_constants(state, config)
        notes.setdefault("boxes", RELEASED_BOXES)
    tensors = {key: value.contiguous() for key, value in state.items()}
    return Conversion(recipe.network, config, tensors, recipe.classes(config), notes)


def load_network(path: str | Path) -> tuple[nn.Module, Manifest]:
    """Return a converted network with its weights, in evaluation mode, and what the weights are.

    Args:
        path: a .safetensors file that ``kestrel convert-checkpoint`` wrote.

    Raises:
        ModelError: a file is missing, damaged or does not fit, or the network is none of RECIPES: Kestrel's
            own are what the pipelines run.
    """
    state, manifest = load(path)
    recipe = next((recipe for recipe in RECIPES if recipe.network == manifest.network), None)
    if recipe is None:
        expected = f"one of {_names(RECIPES)} (kestrel.pipelines has Kestrel's own)"
        raise ModelError(describe(f"network of {path}", expected=expected, found=manifest.network))
    try:
        network = recipe.build(manifest.config)
    except _CANNOT_BUILD as error:
        expected = f"arguments of {recipe.network}"
        raise ModelError(describe(f"config of {path}", expected=expected, found=repr(error))) from error
    assign(network, state, path)
    return network.eval(), manifest


_CANNOT_BUILD = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What building a network from sizes that cannot be raises, besides errors of Kestrel."""


def _recognise(state: State, source: str, network: str | None) -> list[Recipe]:
    """Return what fits; more than one where the keys do not tell."""
    fitting = [recipe for recipe in RECIPES if recipe.marker in state]
    chosen = [recipe for recipe in fitting if network in (None, recipe.network)]
    if not chosen:
        found = sorted(state)[:5] if not fitting else network
        raise ModelError(describe(f"network of {source}", expected=_names(fitting or RECIPES), found=found))
    # Both markers of BEVFusion lead to one network.
    return list({recipe.network: recipe for recipe in reversed(chosen)}.values())[::-1]


def _chosen(fitting: Sequence[Recipe], source: str, notes: dict[str, str]) -> Recipe:
    """Return one of the recipes whose keys a checkpoint has; of several the notes say why it is this one.

    Raises:
        ConfigError: the name of the checkpoint tells several.
    """
    names = [each.network for each in fitting]
    if len(names) == 1:
        return fitting[0]
    # Those of SPVNAS tell it by their names alone.
    named, place = _told_network(source, names)
    recipe = next((each for each in fitting if each.network == named), fitting[0])
    reason = f"by the {place}'s name" if named else "the keys are those of both"
    notes["network"] = f"{recipe.network}, {reason} (--network {' or '.join(names)})"
    return recipe


def _names(recipes: Iterable[Recipe]) -> list[str]:
    return sorted({recipe.network for recipe in recipes})


def _told_network(source: str, names: Sequence[str]) -> tuple[str | None, str]:
    """Return which network the name of a checkpoint tells, or else that of its folder, and which of the two.

    Raises:
        ConfigError: one name tells several.
    """
    for part, place in zip(reversed(Path(source).parts[-2:]), ("file", "folder"), strict=False):
        told = [name for name in names if name.lower() in part.lower()]
        if len(told) > 1:
            expected = f"{' or '.join(names)}, since the name {part} tells both"
            raise ConfigError(describe("--network", expected=expected, found="none"))
        if told:
            return told[0], place
    return None, ""


def _told_segments(source: str) -> int | None:
    """Return the frames per clip that the name of a TSM checkpoint tells, or that of its folder."""
    told = re.findall(r"segment([1-9]\d*)", "/".join(Path(source).parts[-2:]))
    return int(told[-1]) if told else None


def _configured(
    recipe: Recipe, state: State, source: str, net_config: Config | None
) -> tuple[Config, Mapping[str, Tensor]]:
    """Return the arguments that the shapes tell, and the weights of such a network, without their values."""
    try:
        config = recipe.configure(state, net_config) if recipe.takes_net_config else recipe.configure(state)
        with torch.device("meta"):
            return config, recipe.build(config).state_dict()
    except KeyError as error:
        expected = f"the key that tells a size of {recipe.network}"
        raise ModelError(describe(source, expected=expected, found=f"no {error}")) from error
    except _CANNOT_BUILD as error:
        expected = f"shapes that tell the sizes of {recipe.network}"
        raise ModelError(describe(source, expected=expected, found=error)) from error


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
        f"{key} {state[key].dtype} {state[key].layout} instead of dense {wanted[key].dtype}"
        for key in sorted(wanted.keys() & state.keys())
        if state[key].layout != torch.strided
        or wanted[key].is_floating_point() != state[key].is_floating_point()
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
