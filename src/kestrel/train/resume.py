# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint says of the run that may go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from kestrel.errors import ConfigError, InputError, describe
from kestrel.train.plan import Plan

SAME: Final = {"steps": "--steps", "seed": "--seed", "lr": "--lr"}
"""Parts of a plan that a run keeps to its end, and the options that set them.

The samples are drawn by the seed; the schedule that is in the checkpoint has the rate, which falls over the
steps.
"""

NETWORK_OPTIONS: Final = {"hop_s": "--hop"}
"""The same of what builds a network, all of which a run keeps; what no option sets goes by its own name."""


def last_checkpoint(out: Path) -> Path:
    """Return where the last checkpoint of a run is."""
    return out / "checkpoints" / "last.ckpt"


def kept(plan: Plan) -> dict[str, float]:
    """Return what a checkpoint says of the plan."""
    return {name: getattr(plan, name) for name in SAME}


def moves_done(out: Path, plan: Plan, network: Mapping[str, Any] | None = None) -> int:
    """Return how many moves of its optimisers the run in ``out`` has made, which is to go on.

    Args:
        out: folder of the run.
        plan: by which it is to go on.
        network: what builds the network that is to go on; None: nobody knows yet.

    Raises:
        InputError: it has no checkpoint, or a damaged one.
        ConfigError: it had another length, seed, learning rate or network, as far as its checkpoint says so.
    """
    checkpoint = _read(last_checkpoint(out))
    wanted = {option: (name, getattr(plan, name)) for name, option in SAME.items()}
    _refuse_others(out, checkpoint.get("plan", {}), wanted)
    sizes = {NETWORK_OPTIONS.get(name, name): (name, value) for name, value in (network or {}).items()}
    _refuse_others(out, checkpoint.get("network", {}), sizes)
    return int(checkpoint["global_step"])


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise InputError(describe("--resume", expected=f"a checkpoint {path}", found="none"))
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint can raise any
        raise _damaged(path, (str(error) or type(error).__name__).splitlines()[0]) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("global_step"), int):
        raise _damaged(path, "something else")
    return checkpoint


def _damaged(path: Path, found: str) -> InputError:
    expected = "the checkpoint of a run (begin it again without --resume, which replaces this one)"
    return InputError(describe(str(path), expected=expected, found=found))


def _refuse_others(out: Path, before: Mapping[str, Any], wanted: Mapping[str, tuple[str, Any]]) -> None:
    """Raise ConfigError for the first of ``wanted``, by what the user calls it, that was another before."""
    for option, (name, value) in wanted.items():
        if before.get(name, value) != value:
            expected = f"{before[name]}, that of the run in {out}, to go on with it"
            raise ConfigError(describe(option, expected=expected, found=value))
