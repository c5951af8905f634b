# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`kestrel demo`: simulate a drive, replay it through all nodes, score what they saw, make pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kestrel_nodes.demo import Demo


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the drive, the recording, the score and the pictures.")
    ],
    seconds: Annotated[float, typer.Option(help="Length of the drive.")] = Demo.seconds,
    town: Annotated[
        str, typer.Option(help="Town of the drive; elm and fir are not in the training data.")
    ] = Demo.town,
    seed: Annotated[int, typer.Option(help="Seed of the drive.")] = Demo.seed,
    rate: Annotated[
        str, typer.Option(help="Replay rate, or max for what this machine sustains.")
    ] = Demo.rate,
) -> None:
    """Simulate a drive, replay it through all four nodes, score what they saw and make pictures."""
    Demo(out.resolve(), seconds=seconds, town=town, seed=seed, rate=rate).run()
