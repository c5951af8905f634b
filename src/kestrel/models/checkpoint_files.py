# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Files of released checkpoints: the weights in them are found, what else is there is passed over or refused.

A checkpoint is a pickle; it is read with ``weights_only=True`` and nothing in it is executed.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from kestrel.errors import ModelError, describe

AVERAGED: Final = ("state_dict_ema", "model_ema", "params_ema", "ema")
CONTAINERS: Final = ("state_dict", "model", "g_ema", "params", "net", *AVERAGED)
"""Entries under which training code stores weights.

The first of them that holds any is taken: trained weights before their averages, of a GAN the averaged
generator.
"""

DEPTH: Final = 3
"""How many of them may lie within one another."""

PREFIXES: Final = ("module.", "_orig_mod.")
"""What data-parallel training and torch.compile put before the names of weights."""


class _Ignored:
    """Stands in for what is no weight: whatever is made of it holds nothing, and does nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Entries:
    """Stands in for other kinds of dict: what is made of it holds the entries, and no more.

    torch fills only what it takes for a dict, and makes objects of classes alone; so this one makes another.
    """

    # To mypy a class makes itself.
    def __new__(cls, *_: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _Items:
    """The same for other kinds of list."""

    # As above.
    def __new__(cls, *_: object) -> list[Any]:  # type: ignore[misc]
        return []


_PATHS: Final = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")

IGNORED: Final = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",  # by which the methods of a HistoryBuffer are stored
    "builtins.bytes",  # by which no bytes are stored, those of an empty array
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    "argparse.Namespace",
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
    # What a defaultdict makes of a key that is not there.
    *(f"builtins.{name}" for name in ("int", "float", "bool", "str", "list", "dict", "tuple")),
    # What the configuration in a checkpoint of PVCNN names.
    *("models.s3dis.pvcnn.PVCNN", "datasets.s3dis.S3DIS", "meters.s3dis.MeterS3DIS"),
    *("evaluate.s3dis.eval.evaluate", "torch.nn.modules.loss.CrossEntropyLoss", "torch.optim.adam.Adam"),
    "torch.optim.lr_scheduler.CosineAnnealingLR",
)
"""Names in a checkpoint that are read as _Ignored, never as what they name: logs and options of trainers."""

STAND_INS: Final = (
    *((_Ignored, name) for name in IGNORED),
    *((_Entries, name) for name in ("collections.defaultdict", "utils.config.Config")),
    (_Items, "collections.deque"),
)


class Checkpoint(dict[str, Tensor]):
    """The weights in a file, by key; ``notes``: what a user of them has to know of where they were."""

    def __init__(self, weights: dict[str, Tensor], notes: dict[str, str]) -> None:
        super().__init__(weights)
        self.notes = notes


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the weights in a .pth or .pt file, without PREFIXES.

    Where several of CONTAINERS hold weights, or averaged ones alone, the notes say which were taken.

    Raises:
        ModelError: there is no such file, it is no checkpoint, it holds code other than STAND_INS, or what
            holds its weights is not known, or holds something else too.
    """
    content, taken = _loaded(path), ""
    left: list[str] = []
    for _ in range(DEPTH):
        holders = [name for name in CONTAINERS if _holds_weights(_entry(content, name))]
        if not holders:
            break
        taken, left = holders[0], left + holders[1:]
        content = _entry(content, taken)
    weights = _weights(content, f"{path}: {taken}" if taken else str(path))
    notes = {}
    if left or taken in AVERAGED:
        others = f"; there are others under {', '.join(left)}" if left else ""
        notes["weights"] = f"those under {taken}{others}"
    return Checkpoint(weights, notes)


def _loaded(path: Path) -> object:
    try:
        with torch.serialization.safe_globals(list(STAND_INS)):
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle can raise any
        raise ModelError(
            describe(str(path), expected="a checkpoint of plain weights", found=_reason(error))
        ) from error
    return content


def _reason(error: Exception) -> str:
    """Return in a few words why torch refuses a file, without its advice to execute what is in it."""
    code = re.search(r"GLOBAL (\S+)", str(error))
    if code:
        return f"code, {code[1]}"
    if isinstance(error, OSError | EOFError | RuntimeError):
        return (str(error) or type(error).__name__).splitlines()[0].split(" In PyTorch 2.6")[0]
    return "another kind of file, or a damaged one"


def _entry(content: object, name: str) -> object:
    # A file may set attributes of an OrderedDict, ``get`` for one: what the type has is asked.
    return dict.get(content, name) if isinstance(content, dict) else None


def _holds_weights(content: object, depth: int = DEPTH) -> bool:
    """Return whether there are tensors in a container, or in one within it."""
    if not isinstance(content, dict) or not depth:
        return False
    return any(isinstance(value, Tensor) for value in dict.values(content)) or any(
        _holds_weights(_entry(content, name), depth - 1) for name in CONTAINERS
    )


def _weights(content: object, where: str) -> dict[str, Tensor]:
    """Return what should be weights and nothing else, without PREFIXES; raise ModelError naming the rest."""
    entries = list(dict.items(content)) if isinstance(content, dict) else []
    tensors = [(str(key), value) for key, value in entries if isinstance(value, Tensor)]
    others = [(str(key), value) for key, value in entries if not isinstance(value, Tensor)]
    if not tensors:
        expected = f"weights, bare or under one of {', '.join(CONTAINERS)}"
        found = _listed(others) if others else _kind(content)
        raise ModelError(describe(where, expected=expected, found=found))
    if others:
        found = f"{_listed(others)} beside {len(tensors)} tensors"
        raise ModelError(describe(where, expected="weights and nothing else", found=found))
    weights = {_bare(key): value for key, value in tensors}
    if len(weights) < len(tensors):
        keys = {key for key, _ in tensors}
        twice = sorted(key for key in keys if _bare(key) != key and _bare(key) in keys)
        expected = f"keys that differ without {' and '.join(PREFIXES)}"
        raise ModelError(describe(where, expected=expected, found=(twice or sorted(keys))[:5]))
    return weights


def _bare(key: str) -> str:
    while key.startswith(PREFIXES):
        key = key.partition(".")[2]
    return key


def _listed(entries: list[tuple[str, object]]) -> str:
    listed = ", ".join(f"{key} ({_kind(value)})" for key, value in entries[:8])
    return f"{listed}, and {len(entries) - 8} more" if len(entries) > 8 else listed


def _kind(value: object) -> str:
    if isinstance(value, dict):
        told = "" if any(isinstance(entry, Tensor) for entry in dict.values(value)) else ", none a tensor"
        return f"{len(value)} entries{told}" if value else "empty"
    return "no tensor" if isinstance(value, _Ignored) else type(value).__name__
