# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Read released checkpoints (recognise the network, rename the keys, refuse what does not fit), load it.

A checkpoint is a pickle; it is read with ``weights_only=True`` and nothing in it is executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from kestrel.errors import ConfigError, ModelError, describe
from kestrel.models.point_checkpoints import MMDET3D_MARKERS, from_mmdet3d
from kestrel.models.recipes import RECIPES, Config, Recipe, State
from kestrel.weights import Manifest, assign, load

STANDARD_BOXES = "length, width, height; standard yaw"
RELEASED_BOXES = "width, length, height; yaw = -yaw_standard - pi / 2"
"""What the boxes of a BEVFusion mean: the entry ``boxes`` in the notes of a conversion."""

CONTAINERS = ("state_dict", "model", "g_ema")
"""Entries under which training code stores the weights."""


N_SEGMENT: Final = 8
"""Frames per clip of a TSM where nothing tells: those of most released ones."""


class _Ignored:
    """Stands in for what is no weight: whatever is made of it holds nothing, and does nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


IGNORED: Final = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",  # by which the methods of a HistoryBuffer are stored
    "builtins.bytes",  # by which no bytes are stored, those of an empty array
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
)
"""Names in a checkpoint that are read as _Ignored, never as what they name: logs and counters of trainers."""


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
        ModelError: there is no such file, it is no checkpoint, or it holds code other than IGNORED.
    """
    try:
        with torch.serialization.safe_globals([(_Ignored, name) for name in IGNORED]):
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
    state: State,
    source: str,
    *,
    net_config: Config | None = None,
    network: str | None = None,
    n_segment: int | None = None,
) -> Conversion:
    """Bring the weights of a released checkpoint into the form that Kestrel loads.

    Args:
        state: what read_checkpoint returned.
        source: file, named in errors. "segment16" in its name or that of its folder tells the frames per clip
            of a TSM.
        net_config: content of the net.config of an SPVNAS release.
        network: what to take the checkpoint for where its keys fit several, as those of MinkUNet and SPVCNN.
        n_segment: frames per clip of a TSM, where the name does not tell.

    Raises:
        ModelError: the network is unknown, or keys are missing, unexpected, ill-shaped or no dense floating
            point where the network has that (all are listed).
        ConfigError: n_segment for a network that has none.
    """
    notes = {}
    if any(key.startswith("pts_middle_encoder.") for key in state):
        state = {_from_mmdet3d(key): value for key, value in state.items()}
        notes["boxes"] = STANDARD_BOXES
    if any(marker in state for marker in MMDET3D_MARKERS):
        state = from_mmdet3d(state)
        notes["source"] = "mmdetection3d"
        network = network or ("SPVCNN" if "point_transforms.0.0.weight" in state else "MinkUNet")
    fitting = _recognise(state, source, network)
    recipe = fitting[0]
    if len(names := [each.network for each in fitting]) > 1:
        # Those of SPVNAS tell it by their names alone.
        by_name = "minkunet" in "/".join(Path(source).parts[-2:]).lower()
        recipe = next((each for each in fitting if by_name == (each.network == "MinkUNet")), recipe)
        reason = "by the file's name" if by_name else "the keys are those of both"
        notes["network"] = f"{recipe.network}, {reason} (--network {' or '.join(names)})"
    config, wanted = _configured(recipe, state, source, net_config)
    if recipe.network == "TSM":
        told = n_segment or _told_segments(source)
        config["n_segment"] = told or N_SEGMENT
        if told is None:
            notes["n_segment"] = f"{N_SEGMENT} assumed, since the file's name does not tell (--n-segment)"
    elif n_segment is not None:
        raise ConfigError(describe("n_segment", expected=f"none for {recipe.network}", found=n_segment))
    state = {key: _layout(value, wanted.get(key)) for key, value in state.items()}
    _refuse_misfits(state, wanted, f"{source} as {recipe.network}")
    if recipe.network == "BEVFusion":
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


def _names(recipes: Iterable[Recipe]) -> list[str]:
    return sorted({recipe.network for recipe in recipes})


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
