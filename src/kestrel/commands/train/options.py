# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Options that several commands of `kestrel train` have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

Data = Annotated[Path, typer.Option(help="Training data: a folder for each split.")]
Out = Annotated[Path, typer.Option(help="Where runs go: checkpoints, metrics, weights.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimiser steps.", show_default="the plan's")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Of the initial weights and the order of samples.")
]
Rate = Annotated[float | None, typer.Option(help="Peak of the learning rate.", show_default="the plan's")]
Start = Annotated[
    str | None, typer.Option(help="Name or path of weights to start from.", show_default="random ones")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]

DATA: Final = Path("runs/data")
RUNS: Final = Path("runs")
