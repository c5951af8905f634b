# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`kestrel demo`: simulate a drive, replay it through all nodes, score what they saw, make pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the drive, the recording, the score and the pictures.")
    ],
    seconds: Annotated[float, typer.Option(help="Length of the drive.")] = 10.0,
    town: Annotated[
        str, typer.Option(help="Town of the drive; elm and fir are not in the training data.")
    ] = "elm",
    seed: Annotated[int, typer.Option(help="Seed of the drive.")] = 7,
    rate: Annotated[str, typer.Option(help="Replay rate, or max for what this machine sustains.")] = "max",
) -> None:
    """Simulate a drive, replay it through all four nodes, score what they saw and make pictures."""
    from kestrel_nodes.demo import Demo

    Demo(out.resolve(), seconds=seconds, town=town, seed=seed, rate=rate).run()
