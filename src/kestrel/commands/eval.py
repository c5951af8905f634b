# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`kestrel eval`: score a recording against the truth in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def eval(
    recording: Annotated[Path, typer.Argument(help="What `kestrel replay --record` has written.")],
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Score the trivial baseline on the same drive, beside it.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Score detections, point classes, map, events, latency and lost frames of a recording."""
    from kestrel.errors import InputError, describe
    from kestrel.eval.recording import read_recording
    from kestrel.eval.score import figures, why_no_events, why_no_scores
    from kestrel.report import Report

    read = read_recording(recording)
    answers = None
    if baseline:
        from kestrel.eval.baseline import answer_drive

        answers = answer_drive(recording)
    scores = figures(read, answers)
    if scores:
        Report("eval", scores).print(as_json=json)
    for reason in (why_no_scores(read) if scores else None, why_no_events(read.truth, read.predicted)):
        if reason:
            typer.echo(reason, err=True)
    read.raise_if_damaged()
    if not scores:
        expected = "sensor messages and outputs of nodes"
        raise InputError(describe(f"recording {recording}", expected=expected, found="neither"))
