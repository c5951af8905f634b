# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`kestrel calibrate`: int8 models of Kestrel-Fusion from recorded frames."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="BAG_OR_DRIVES", help="A bag, or a folder of drives by `kestrel train prepare`."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to make; must not exist.")],
    weights: Annotated[
        str, typer.Option(help="Name of shipped weights of a Kestrel-Fusion, or a path.")
    ] = "kestrel-fusion",
    frames: Annotated[int, typer.Option(min=1, help="How many frames to calibrate with.")] = 64,
    params: Annotated[
        Path | None,
        typer.Option(
            help="With a bag: parameter file of the fusion node; its cameras, intensity_max, rectified, "
            "sensor_offsets_s and own_vehicle_box_m are used."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Quantize the camera branch of Kestrel-Fusion to int8, and say what that changes on other frames."""
    from kestrel.data.rig_parameters import read_rig_parameters
    from kestrel.report import Figure, Report
    from kestrel.train.calibration import calibrate

    models = calibrate(weights, source, out, frames, read_rig_parameters(params))
    figures = {f"error/{name}": Figure(value, "relative") for name, value in models.difference.items()}
    Report(f"calibrate {source} --weights {weights} --out {out}", figures).print(as_json=json)
