# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A progress bar over the seconds of a drive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kestrel.sim.record import Encoded
from kestrel.sim.samples import EPOCH_NS


@contextmanager
def drive_progress(seconds: float, name: str) -> Iterator[Callable[[Encoded], None]]:
    """Show how far a drive is on standard error; yields what to call with each finished sample."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.1f}/{task.total:.1f} s of drive, {task.fields[sweeps]} sweeps"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"building {name}", total=seconds, sweeps=0)
        sweeps = 0

        def advance(sample: Encoded) -> None:
            nonlocal sweeps
            sweeps += sample.sweep
            done = (sample.stamp_ns - EPOCH_NS) / 1e9
            bar.update(task, description=f"driving {name}", completed=done, sweeps=sweeps)

        yield advance
        bar.update(task, completed=seconds)
