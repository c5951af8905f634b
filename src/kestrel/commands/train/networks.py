# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Trainings, one command per network."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Annotated

import typer

from kestrel.commands.train.options import DATA, RUNS, Data, Json, Out, Rate, Resume, Seed, Start, Steps


def _training_of(network: str, text: str) -> Callable[..., None]:
    """Return the command that runs the training of ``kestrel.train.NETWORK``, which has one stage."""

    def train(
        data: Data = DATA,
        out: Out = RUNS,
        resume: Resume = False,
        steps: Steps = None,
        seed: Seed = 0,
        lr: Rate = None,
        start: Start = None,
    ) -> None:
        from kestrel.train.plan import scaled

        _check(resume=resume, start=start, lr=lr)
        module = importlib.import_module(f"kestrel.train.{network}")
        exported = module.train(data, out, scaled(module.PLAN, steps, seed, lr), resume=resume, start=start)
        print(f"weights: {exported}")

    train.__doc__ = text
    return train


seg = _training_of("seg", "Train Kestrel-Seg: the class of every point.")
video = _training_of("video", "Train Kestrel-Video: what goes on ahead.")
augment = _training_of("augment", "Train Kestrel-Augment: pictures from labels.")


def fusion(
    data: Data = DATA,
    out: Out = RUNS,
    resume: Resume = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps of each stage.", show_default="the plan's")
    ] = None,
    seed: Seed = 0,
    start: Start = None,
    hop: Annotated[
        float,
        typer.Option(min=0, help="Seconds that pictures look back (temporal shift); 0: each stands alone."),
    ] = 0.5,
) -> None:
    """Train Kestrel-Fusion: objects and map, in six stages with learning rates of their own."""
    from kestrel.models.kestrel_fusion_types import FusionConfig
    from kestrel.train import fusion as network

    _check(resume=resume, start=start, lr=None)
    plans = network.PLANS.scaled(steps, seed)
    exported = network.train(data, out, plans, FusionConfig(hop_s=hop), resume=resume, start=start)
    print(f"weights: {exported}")


def point_networks(
    data: Data = DATA,
    out: Out = RUNS,
    resume: Resume = False,
    steps: Steps = None,
    seed: Seed = 0,
    lr: Rate = None,
    json: Json = False,
) -> None:
    """Compare what PointNet, a dense grid, PVCNN and SPVCNN of equal size learn of sweeps."""
    from kestrel.report import Report
    from kestrel.train import point_networks as networks
    from kestrel.train.plan import scaled

    _check(resume=resume, start=None, lr=lr)
    figures = networks.compare(data, out, scaled(networks.PLAN, steps, seed, lr), resume=resume)
    Report("train point-networks", figures).print(as_json=json)


def _check(*, resume: bool, start: str | None, lr: float | None) -> None:
    """Raise ConfigError for options that do not go together, or a rate that is none."""
    from kestrel.errors import ConfigError, describe

    if resume and start is not None:
        expected = "--resume, which goes on from a checkpoint, or --start"
        raise ConfigError(describe("training", expected=expected, found="both"))
    if lr is not None and not 0 < lr < 1:
        raise ConfigError(describe("--lr", expected="a rate between 0 and 1", found=lr))
