# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A picture of a training: its losses and its validation scores."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LOGGED: Final = "metrics.csv"
"""What the logger writes, and begins anew when a run is resumed."""

METRICS: Final = "metrics*.csv"
"""That, and what it wrote before."""

PICTURE: Final = "curves.png"

SMOOTHED: Final = 15
"""Values, one every ten steps, over which the strong line of a loss is averaged."""

Curves: TypeAlias = dict[str, list[tuple[int, float]]]


def draw_curves(run: Path) -> Path:
    """Draw the curves of the run in folder ``run`` into its ``curves.png``; return that.

    Losses are drawn faintly as they were and strongly as running means; of the scores those of the whole, not
    those of single classes.
    """
    curves = read_metrics(run)
    figure = Figure(figsize=(11, 4), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for name, curve in curves.items():
        if not name.startswith("val/"):
            _draw_loss(losses, name, curve)
        elif name.count("/") == 1:
            steps, values = zip(*curve, strict=True)
            scores.plot(steps, values, "o-", label=name.removeprefix("val/"))
    losses.set(title="losses", xlabel="step", yscale="log")
    scores.set(title="validation", xlabel="step")
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.suptitle(run.name)
    figure.savefig(run / PICTURE, dpi=110)
    return run / PICTURE


def read_metrics(run: Path) -> Curves:
    """Return what the run in folder ``run`` logged: steps and values by name, in the order of the steps."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for path in sorted(run.glob(METRICS), key=lambda path: path.stat().st_mtime_ns):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name, text in row.items():
                    if text and name not in ("step", "epoch"):
                        found[name][int(row["step"])] = float(text)
    return {name: sorted(values.items()) for name, values in found.items()}


def keep_metrics(run: Path, *, resumed: bool) -> None:
    """Put aside what the run in folder ``run`` logged if it is resumed, or remove what another one logged."""
    earlier = list(run.glob(METRICS))
    if not resumed:
        for path in earlier:
            path.unlink()
    elif (run / LOGGED).exists():
        (run / LOGGED).rename(run / f"metrics-{len(earlier)}.csv")


def _draw_loss(axes: Axes, name: str, curve: list[tuple[int, float]]) -> None:
    steps, values = np.array(curve).T
    (line,) = axes.plot(steps, values, alpha=0.2)
    width = min(SMOOTHED, len(values))
    mean = np.convolve(values, np.ones(width) / width, "valid")
    axes.plot(steps[width - 1 :], mean, color=line.get_color(), label=name)
