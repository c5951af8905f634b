# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`kestrel replay`: publish a bag into the ROS graph and record what the nodes answer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from kestrel_nodes.replay.session import Options, Outcome

MAX_RATE = "max"


def replay(
    bag: Annotated[Path, typer.Argument(help="rosbag2 folder or .mcap file.")],
    rate: Annotated[
        str,
        typer.Option(help="Seconds of the bag per second, or max: as fast as all nodes keep up, at most 1."),
    ] = "1",
    loop: Annotated[bool, typer.Option(help="Start over at the end, until stopped.")] = False,
    record: Annotated[
        Path | None, typer.Option(help="Record inputs, outputs and truth in this .mcap.")
    ] = None,
    topics: Annotated[list[str] | None, typer.Option(help="Only these topics (repeat).")] = None,
    start: Annotated[float, typer.Option(min=0.0, help="Skip so many seconds of the bag.")] = 0.0,
    duration: Annotated[float | None, typer.Option(min=0.0, help="Seconds of the bag to replay.")] = None,
    publish_truth: Annotated[bool, typer.Option(help="Publish /truth/... too.")] = False,
    labels: Annotated[
        str, typer.Option(help="Give the augment node the true label images of this camera (simulation).")
    ] = "",
    wait_for: Annotated[
        list[str] | None, typer.Option(help="Begin when this node (or topic) takes an input (repeat).")
    ] = None,
    exclude: Annotated[
        str, typer.Option(help="Regular expression: outputs not to subscribe to, nor to record.")
    ] = "",
    wait_timeout: Annotated[float, typer.Option(help="How long to wait for them, seconds.")] = 60.0,
) -> None:
    """Publish a bag with /clock; with --record, write inputs, outputs and truth into one file."""
    from rich.console import Console

    from kestrel_nodes import transport

    transport.prepare()
    from kestrel_nodes.replay.player import Selection
    from kestrel_nodes.replay.session import Options

    lockstep = rate == MAX_RATE
    options = Options(
        bag=bag,
        rate=1.0 if lockstep else _positive(rate),
        lockstep=lockstep,
        loop=loop,
        record=record,
        selection=Selection(frozenset(topics) if topics else None, start, duration, publish_truth, labels),
        wait_for=tuple(wait_for or ()),
        wait_timeout_s=wait_timeout,
        exclude=_pattern(exclude),
    )
    outcome = _with_progress(options, Console(stderr=True))
    _print(outcome, record)
    if outcome.damage:
        from kestrel.errors import InputError, describe

        raise InputError(describe(f"bag {bag}", expected="a complete bag", found=outcome.damage))


def _pattern(text: str) -> re.Pattern[str] | None:
    from kestrel.errors import ConfigError, describe

    try:
        return re.compile(text) if text else None
    except re.error as error:
        expected = f"a regular expression ({error})"
        raise ConfigError(describe("--exclude", expected=expected, found=text)) from None


def _positive(text: str) -> float:
    from kestrel.errors import ConfigError, describe

    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1000:
        raise ConfigError(describe("--rate", expected=f"a positive number or {MAX_RATE}", found=text))
    return value


def _with_progress(options: Options, console: Console) -> Outcome:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from kestrel_nodes.replay.session import replay as run

    columns = (
        TextColumn("replay"),
        BarColumn(),
        TextColumn("{task.completed:5.1f} / {task.total:.1f} s, rate {task.fields[rate]:.2f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("replay", total=1.0, rate=0.0)

        def progress(done_s: float, total_s: float, rate: float) -> None:
            bar.update(task, completed=done_s, total=total_s, rate=rate)

        return run(options, say=lambda text: bar.console.print(text, highlight=False), progress=progress)


def _print(outcome: Outcome, record: Path | None) -> None:
    played = outcome.played
    print(
        f"published {sum(played.counts.values())} messages on {len(played.counts)} topics: "
        f"{played.bag_s:.1f} s in {played.wall_s:.1f} s, rate {played.rate:.2f}"
    )
    if not outcome.acknowledged:
        print("some subscribers have not acknowledged everything")
    for node, (answered, sent) in sorted(outcome.answered.items()):
        share = answered / sent if sent else 0.0
        print(f"{node} answered {answered} of {sent} inputs ({share:.1%})")
    if record is not None:
        print(f"recorded {outcome.recorded} messages in {record}")
