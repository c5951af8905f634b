# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`kestrel train`: training data from the simulator, and the networks from it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class What(StrEnum):
    """What can be made."""

    prepare = "prepare"
    seg = "seg"
    fusion = "fusion"
    video = "video"
    augment = "augment"


def train(
    what: Annotated[What, typer.Argument(help="prepare: simulate training data; or a network to train.")],
    data: Annotated[Path, typer.Option(help="Training data: DATA/train and DATA/val.")] = Path("runs/data"),
    out: Annotated[Path, typer.Option(help="Where runs go: checkpoints, metrics, weights.")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps, instead of the plan's.")] = None,
    seed: Annotated[int, typer.Option(help="Of the initial weights and the order of samples.")] = 0,
    split: Annotated[str, typer.Option(help="Drives to simulate: train, val or test (prepare).")] = "train",
    workers: Annotated[int, typer.Option(min=1, help="Drives simulated at a time (prepare).")] = 2,
) -> None:
    """Simulate training drives (prepare), or train one network on them; an interrupted run resumes."""
    import os

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if what is What.prepare:
        from kestrel.train.prepare import drives_of, prepare

        prepare(drives_of(split), data / split, workers)
        return
    from kestrel.train import augment, fusion, seg, video
    from kestrel.train.loop import scaled

    if what is What.fusion:
        weights = fusion.train(
            data,
            out,
            scaled(fusion.LIDAR_PLAN, steps, seed),
            scaled(fusion.PLAN, steps, seed),
            resume=resume,
        )
    else:
        module = {What.seg: seg, What.video: video, What.augment: augment}[what]
        weights = module.train(data, out, scaled(module.PLAN, steps, seed), resume=resume)
    print(f"weights: {weights}")
