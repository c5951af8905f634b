# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""How long and how a network is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from kestrel.train.optimizers import OptimizerName

WARM_UP: Final = 0.15


@dataclass(frozen=True)
class Plan:
    """How long and how to train one network.

    steps: optimiser steps. batch_size: samples a step. lr: peak of the one-cycle schedule.
    validate_every: steps between validations, about: the last one is at the end.
    validation_batches: samples of a validation, spread over its drives. optimizer: of
    :mod:`kestrel.train.optimizers`.
    """

    steps: int
    batch_size: int
    lr: float
    validate_every: int
    validation_batches: int = 60
    weight_decay: float = 0.01
    seed: int = 0
    workers: int = 1
    threads: int = 1
    optimizer: OptimizerName = "adamw"


def one_cycle(progress: float) -> float:
    """Return the share of the peak learning rate after ``progress`` (0..1) of a training.

    It rises for the first 15 percent and then falls along a cosine (Smith and Topin, 2018).
    """
    if progress < WARM_UP:
        return 0.1 + 0.9 * progress / WARM_UP
    return 0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - WARM_UP) / (1 - WARM_UP))))


def scaled(plan: Plan, steps: int | None, seed: int, lr: float | None = None) -> Plan:
    """Return ``plan`` with another length, seed and peak of the learning rate; None: those of the plan."""
    return replace(
        plan,
        steps=steps or plan.steps,
        seed=seed,
        lr=plan.lr if lr is None else lr,
        validate_every=min(plan.validate_every, steps or plan.steps),
    )
