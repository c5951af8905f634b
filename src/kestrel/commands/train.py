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
    import_ = "import"
    seg = "seg"
    fusion = "fusion"
    video = "video"
    augment = "augment"
    point_networks = "point-networks"
    score = "score"


def train(
    what: Annotated[
        What,
        typer.Argument(
            help="prepare: simulate training data; import: labelled clouds of your own; score: judge "
            "weights; point-networks: what four networks of equal size learn of sweeps; "
            "else the network to train."
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Argument(help="import: .npz files with points (N, 4) and label (N,).", show_default=False),
    ] = None,
    data: Annotated[Path, typer.Option(help="Training data: DATA/train and DATA/validation.")] = Path(
        "runs/data"
    ),
    out: Annotated[Path, typer.Option(help="Where runs go: checkpoints, metrics, weights.")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps, instead of the plan's.")] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of the initial weights and the order of samples.")
    ] = 0,
    lr: Annotated[
        float | None,
        typer.Option(help="Peak of the learning rate, instead of the plan's; not for fusion's six stages."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="Name or path of weights to start from instead of random ones."),
    ] = None,
    hop: Annotated[
        float,
        typer.Option(
            min=0,
            help="fusion: seconds that pictures look back (temporal shift); 0: each stands alone.",
        ),
    ] = 0.5,
    split: Annotated[
        str | None,
        typer.Option(
            help="prepare, import, score: a name in kestrel/sim/drives.yaml; prepare: train unless given, "
            "import: train_lidar."
        ),
    ] = None,
    drives: Annotated[int, typer.Option(min=1, help="prepare: how many drives of the split.")] = 64,
    weights: Annotated[
        str, typer.Option(help="score: name or path of the weights, or baseline.")
    ] = "kestrel-seg",
    bag: Annotated[
        Path | None,
        typer.Option(help="score: a bag with true boxes instead of a split; kestrel-seg and kestrel-fusion."),
    ] = None,
    sensors_out: Annotated[
        bool,
        typer.Option(
            "--sensors-out",
            help="score: also what kestrel-fusion loses where cameras or the LiDAR are out.",
        ),
    ] = False,
    bfloat16: Annotated[
        int | None,
        typer.Option(
            min=1, help="score: what kestrel-fusion loses in bfloat16, on the first so many drives, instead."
        ),
    ] = None,
    int8: Annotated[
        Path | None,
        typer.Option(
            help="score: what kestrel-fusion loses with the int8 models of `kestrel calibrate`, instead."
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="score, point-networks: print one JSON object instead of a table.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="prepare: drives at a time.")] = 2,
) -> None:
    """Simulate training drives, train one network on them, or score weights.

    An interrupted training goes on with --resume; without it, it begins anew. prepare goes on by itself.
    """
    import os

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _check(what, folder, resume=resume, start=start, lr=lr)
    if what is What.prepare:
        from kestrel.sim.splits import drives as first
        from kestrel.train.prepare import prepare

        prepare(first(split or "train", drives), data / (split or "train"), workers)
        return
    if what is What.import_:
        from kestrel.train.own_clouds import import_clouds

        assert folder is not None
        print(f"drive: {import_clouds(folder, data, split or 'train_lidar')}")
        return
    if what is What.score:
        from kestrel.report import Report
        from kestrel.train.score import BASELINE, as_figures

        found = _score(weights, data, split, bag, sensors_out=sensors_out, bfloat16=bfloat16, int8=int8)
        Report(f"train score --weights {weights}", as_figures(found)).print(as_json=json)
        if split is not None and int8 is None and weights != BASELINE:
            _remember(weights, data / split, split, found)
        return
    if what is What.point_networks:
        from kestrel.report import Report
        from kestrel.train import point_networks
        from kestrel.train.plan import scaled

        plan = scaled(point_networks.PLAN, steps, seed, lr)
        figures = point_networks.compare(data, out, plan, resume=resume)
        Report("train point-networks", figures).print(as_json=json)
        return
    from kestrel.models.kestrel_fusion_types import FusionConfig
    from kestrel.train import augment, fusion, seg, video
    from kestrel.train.plan import scaled

    if what is What.fusion:
        plans, config = fusion.PLANS.scaled(steps, seed), FusionConfig(hop_s=hop)
        exported = fusion.train(data, out, plans, config, resume=resume, start=start)
    else:
        module = {What.seg: seg, What.video: video, What.augment: augment}[what]
        exported = module.train(data, out, scaled(module.PLAN, steps, seed, lr), resume=resume, start=start)
    print(f"weights: {exported}")


def _check(what: What, folder: Path | None, *, resume: bool, start: str | None, lr: float | None) -> None:
    """Raise ConfigError for options that do not go together."""
    from kestrel.errors import ConfigError, describe

    if (folder is not None) != (what is What.import_):
        expected = "a folder of labelled clouds" if what is What.import_ else "no folder"
        raise ConfigError(describe(f"train {what}", expected=expected, found=folder))
    if resume and start is not None:
        expected = "--resume, which goes on from a checkpoint, or --start"
        raise ConfigError(describe(f"train {what}", expected=expected, found="both"))
    if lr is not None and what is What.fusion:
        expected = "none for fusion, whose stages have rates of their own"
        raise ConfigError(describe("--lr", expected=expected, found=lr))
    if lr is not None and not 0 < lr < 1:
        raise ConfigError(describe("--lr", expected="a rate between 0 and 1", found=lr))


def _remember(weights: str, folder: Path, split: str, figures: dict[str, float]) -> None:
    """Write printed scores into the manifest of the weights, or say on standard error why not."""
    from kestrel.train.score_memory import remember

    reason = remember(weights, folder, split, figures)
    if reason is not None:
        typer.echo(f"the manifest of {weights} was not changed: {reason}", err=True)


def _score(
    weights: str,
    data: Path,
    split: str | None,
    bag: Path | None,
    *,
    sensors_out: bool,
    bfloat16: int | None,
    int8: Path | None,
) -> dict[str, float]:
    """Return the scores that were asked for; options of which only one would be heeded are refused."""
    from kestrel.errors import ConfigError, describe
    from kestrel.train.score import score, score_bag, score_int8, score_precision

    options = {"--bag": bag, "--sensors-out": sensors_out or None, "--bfloat16": bfloat16, "--int8": int8}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        expected = f"at most one of {', '.join(options)}"
        raise ConfigError(describe("train score", expected=expected, found=" and ".join(given)))
    if bag is not None:
        if split is not None:
            expected = "--bag or --split, what to score on"
            raise ConfigError(describe("train score", expected=expected, found="both"))
        return score_bag(weights, bag)
    if split is None:
        expected = "a split to score on, for one test, or --bag"
        raise ConfigError(describe("--split", expected=expected, found="none"))
    if bfloat16 is not None:
        return score_precision(weights, data / split, split, bfloat16)
    if int8 is not None:
        return score_int8(weights, int8, data / split, split)
    return score(weights, data / split, split, sensors_out=sensors_out)
