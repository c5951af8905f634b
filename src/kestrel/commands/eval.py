# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`kestrel eval`: score a recording, or weights on recordings, against the truth in them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Sensors(StrEnum):
    """What weights may look at."""

    all = "all"
    lidar = "lidar"
    camera = "camera"


def eval(
    recordings: Annotated[
        list[Path],
        typer.Argument(
            help="What `kestrel replay --record` has written; with --weights any number of recordings."
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            help="Score these instead of the answers of nodes: a converted BEVFusion, or kestrel-fusion."
        ),
    ] = None,
    sensors: Annotated[Sensors, typer.Option(help="With --weights: what they may look at.")] = Sensors.all,
    results: Annotated[
        Path | None,
        typer.Option(
            help="With --weights: file for nuscenes-devkit, of what `kestrel import nuscenes` made."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="With --weights: where they compute, cpu or cuda.")] = "cpu",
    params: Annotated[
        Path | None,
        typer.Option(
            help="With --weights: parameter file of the fusion node; its cameras, intensity_max, rectified, "
            "sensor_offsets_s and own_vehicle_box_m are used."
        ),
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Score the trivial baseline on the same drive, beside it.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Score detections, point classes, map, events, latency and lost frames of a recording.

    With --weights: detections and map of a network at all moments with truth, without nodes and ROS.
    """
    from kestrel.errors import ConfigError, describe

    if weights is not None:
        if baseline:
            expected = "one without --weights"
            raise ConfigError(describe("--baseline", expected=expected, found=f"--weights {weights}"))
        _score_weights(weights, recordings, sensors, results, device, params, json=json)
        return
    given = {"--sensors": sensors is not Sensors.all, "--results": results is not None}
    given |= {"--device": device != "cpu", "--params": params is not None}
    for option, there in given.items():
        if there:
            raise ConfigError(describe(option, expected="--weights beside it", found="no --weights"))
    if len(recordings) != 1:
        raise ConfigError(
            describe("recordings", expected="one, or --weights to score", found=len(recordings))
        )
    _score_answers(recordings[0], baseline=baseline, json=json)


def _score_weights(
    weights: str,
    recordings: list[Path],
    sensors: Sensors,
    results: Path | None,
    device: str,
    params: Path | None,
    *,
    json: bool,
) -> None:
    from kestrel.data.bag import BagReader
    from kestrel.data.rig_parameters import read_rig_parameters
    from kestrel.errors import ConfigError, describe
    from kestrel.eval.detector_score import SENSORS, DetectorScore
    from kestrel.pipelines import load_detector
    from kestrel.report import Report
    from kestrel.weights import read_manifest

    if (network := read_manifest(weights).network) not in ("BEVFusion", "KestrelFusion"):
        expected = "a BEVFusion or KestrelFusion"
        raise ConfigError(describe(f"network of {weights}", expected=expected, found=network))
    rig = read_rig_parameters(params)
    # What is wrong with the last of them shall not be found after hours.
    for path in recordings:
        BagReader(path).raise_if_damaged()
    if results is not None:
        _expect_writable(results)
    # All boxes take part in the average precision, however unsure they are.
    detector = load_detector(weights, score_threshold=0.0, precision="float32", device=device)
    if results is not None and not detector.classes:
        raise ConfigError(describe("--results", expected="weights that answer with boxes", found=weights))
    looked_at = SENSORS if sensors is Sensors.all else (sensors.value,)
    score = DetectorScore(detector, looked_at, results=results is not None, rig=rig)
    for path in recordings:
        score.add(path)
    Report(f"eval --weights {weights}", score.figures()).print(as_json=json)
    if missing := score.missing_sensors():
        typer.echo(missing, err=True)
    if results is not None:
        score.write_results(results)


def _expect_writable(results: Path) -> None:
    """Raise InputError where no file could be written."""
    import tempfile

    from kestrel.errors import InputError, describe

    expected = "a file that can be written"
    if results.is_dir():
        raise InputError(describe("--results", expected=expected, found=f"a folder, {results}"))
    try:
        results.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=results.parent):
            pass
    except OSError as error:
        raise InputError(describe("--results", expected=expected, found=error)) from error


def _score_answers(recording: Path, *, baseline: bool, json: bool) -> None:
    from kestrel.errors import InputError, describe
    from kestrel.eval.recording import read_recording
    from kestrel.eval.score import figures, unanswered, why_no_events, why_no_scores
    from kestrel.report import Report

    read = read_recording(recording)
    answers = None
    if baseline:
        from kestrel.eval.baseline import answer_drive

        answers = answer_drive(recording)
    scores = figures(read, answers)
    if scores:
        Report("eval", scores).print(as_json=json)
    for line in unanswered(read):
        typer.echo(f"not answered in full: {line}", err=True)
    for reason in (why_no_scores(read) if scores else None, why_no_events(read.truth, read.predicted)):
        if reason:
            typer.echo(reason, err=True)
    read.raise_if_damaged()
    if not scores:
        expected = "sensor messages and outputs of nodes"
        raise InputError(describe(f"recording {recording}", expected=expected, found="neither"))
