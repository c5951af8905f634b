# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint says of the run that may go on from it."""

from __future__ import annotations

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


def last_checkpoint(out: Path) -> Path:
    """Return where the last checkpoint of a run is."""
    return out / "checkpoints" / "last.ckpt"


def kept(plan: Plan) -> dict[str, float]:
    """Return what a checkpoint says of the plan."""
    return {name: getattr(plan, name) for name in SAME}


def moves_done(out: Path, plan: Plan) -> int:
    """Return how many moves of its optimisers the run in ``out`` has made, which is to go on by ``plan``.

    Raises:
        InputError: it has no checkpoint.
        ConfigError: it had another length, seed or learning rate, as far as its checkpoint says so.
    """
    path = last_checkpoint(out)
    if not path.exists():
        raise InputError(describe("--resume", expected=f"a checkpoint {path}", found="none"))
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    before = checkpoint.get("plan", {})
    for name, option in SAME.items():
        value = getattr(plan, name)
        if before.get(name, value) != value:
            expected = f"{before[name]}, that of the run in {out}, to go on with it"
            raise ConfigError(describe(option, expected=expected, found=value))
    return int(checkpoint["global_step"])
