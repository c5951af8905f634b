# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Training data: simulated ones, and labelled clouds and recordings of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kestrel.commands.train.options import DATA, Data


def prepare(
    data: Data = DATA,
    split: Annotated[str, typer.Option(help="A name in kestrel/sim/drives.yaml.")] = "train",
    drives: Annotated[int, typer.Option(min=1, help="How many drives of the split.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Drives at a time.")] = 2,
) -> None:
    """Simulate training drives."""
    from kestrel.sim.splits import drives as first
    from kestrel.train.prepare import prepare as make

    make(first(split, drives), data / split, workers)


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of .npz files with points (N, 4) and label (N,), a sequence of SemanticKITTI, or a "
            "recording with true boxes."
        ),
    ],
    data: Data = DATA,
    split: Annotated[str, typer.Option(help="A name in kestrel/sim/drives.yaml.")] = "train_lidar",
    classes: Annotated[
        str | None,
        typer.Option(
            help="Of a recording: the classes that were labelled, with commas between them.",
            show_default="those of its boxes",
        ),
    ] = None,
    params: Annotated[
        Path | None,
        typer.Option(
            help="With a recording: parameter file of the fusion node; its cameras, intensity_max, "
            "rectified, sensor_offsets_s and own_vehicle_box_m are used."
        ),
    ] = None,
) -> None:
    """Make training data of labelled clouds or a recording."""
    from kestrel.data.rig_parameters import read_rig_parameters
    from kestrel.errors import ConfigError, describe
    from kestrel.train.own_clouds import import_clouds
    from kestrel.train.own_recordings import import_recording, is_recording

    if is_recording(source):
        named = None if classes is None else classes.split(",")
        drive = import_recording(source, data, split, named, read_rig_parameters(params))
    elif classes is not None:
        expected = "none for labelled clouds, which have a class for every point"
        raise ConfigError(describe("--classes", expected=expected, found=classes))
    elif params is not None:
        expected = "none for labelled clouds, whose intensity is theirs"
        raise ConfigError(describe("--params", expected=expected, found=params))
    else:
        drive = import_clouds(source, data, split)
    print(f"drive: {drive}")
