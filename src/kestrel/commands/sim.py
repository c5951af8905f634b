# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`kestrel sim`: make a drive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sim(
    out: Annotated[Path, typer.Option("--out", help="Folder to make (a rosbag2 bag); must not exist.")],
    rig: Annotated[
        str, typer.Option(help="nuscenes, kitti, robotaxi, drawn:SEED or a YAML file.")
    ] = "nuscenes",
    scene: Annotated[str, typer.Option(help="Kind of place: urban, suburban or highway.")] = "urban",
    town: Annotated[
        str,
        typer.Option(
            help="alder, birch, cedar, dogwood, elm or fir; with streets as they have grown hazel, juniper, "
            "larch or maple."
        ),
    ] = "elm",
    seconds: Annotated[float, typer.Option(help="Length of the drive.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Same seed, same drive.")] = 7,
    weather: Annotated[str | None, typer.Option(help="day, dusk, fog or rain; default: by the seed.")] = None,
    image_size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT; default: that of the rig.")] = None,
    lidar_hz: Annotated[
        float | None, typer.Option(help="Sweeps per second; default: that of the rig.")
    ] = None,
    cameras: Annotated[str | None, typer.Option(help="Names with commas between; default: all.")] = None,
) -> None:
    """Simulate a drive with cameras, LiDAR and complete ground truth, and write it as a bag."""
    from kestrel.errors import InputError, describe
    from kestrel.sim.progress import drive_progress
    from kestrel.sim.record import write_drive
    from kestrel.sim.rig import load_rig, parse_size
    from kestrel.sim.workers import Plan, Workers
    from kestrel.sim.world import build_world

    if out.exists():
        raise InputError(describe("--out", expected="a path that does not exist", found=out))
    size = None if image_size is None else parse_size(image_size)
    chosen = load_rig(rig).select(None if cameras is None else tuple(cameras.split(",")), lidar_hz)
    try:
        with Workers() as workers, drive_progress(seconds, f"{town} {scene} {seed}") as progress:
            world = build_world(scene, town, seed, seconds, weather)
            samples = workers.drive(Plan(world, chosen, seconds, size, seed))
            write_drive(samples, out, rig=chosen, progress=progress)
    except KeyboardInterrupt:
        typer.echo(f"stopped; {out} was not made", err=True)
        raise typer.Exit(130) from None
    typer.echo(str(out))
