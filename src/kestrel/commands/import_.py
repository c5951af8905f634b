# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`kestrel import`: turn a public recording, or one of your own, into a bag as Kestrel reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

KINDS = ("bag", "kitti-raw", "kitti-tracking", "nuscenes", "nuscenes-sample")


def import_(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(KINDS)}.")],
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of the recording. bag: also an .mcap or .db3 file. "
            "kitti-raw: DATE_drive_NNNN_sync in the folder of its day; "
            "kitti-tracking: training. nuscenes: the one that holds samples and sweeps."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Bag to make: a folder, or a file that ends with .mcap.")],
    topics: Annotated[
        Path | None,
        typer.Option(help="bag: a file like config/topics.yaml, whose section fusion names your topics."),
    ] = None,
    sequence: Annotated[str, typer.Option(help="kitti-tracking: which sequence.")] = "0000",
    nuscenes_version: Annotated[str, typer.Option(help="nuscenes: folder of the tables.")] = "v1.0-mini",
    scene: Annotated[
        str | None, typer.Option(help="nuscenes: which scene, such as scene-0061.", show_default="the first")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="nuscenes-sample: how often to show the keyframe.")] = 40,
    rate: Annotated[float, typer.Option(min=0.1, help="nuscenes-sample: keyframes per second.")] = 10.0,
) -> None:
    """Write a recording of KITTI or nuScenes as the same kind of bag that the simulator writes.

    bag: copy a recording of your own, its sensors renamed as all commands that read recordings expect them.
    """
    from rich.console import Console

    from kestrel.data.bag import BagWriter
    from kestrel.data.kitti import raw_messages, tracking_messages
    from kestrel.data.nuscenes import keyframe_messages
    from kestrel.data.nuscenes_scene import scene_messages
    from kestrel.data.own_bag import import_bag
    from kestrel.errors import ConfigError, InputError, describe
    from kestrel.files import appearing

    if kind not in KINDS:
        raise ConfigError(describe("kind of recording", expected=f"one of {KINDS}", found=kind))
    if kind == "bag":
        if topics is None:
            raise ConfigError(describe("--topics", expected="a file like config/topics.yaml", found="none"))
        print(f"{out}: {import_bag(source, topics, out)} messages")
        return
    if not source.is_dir():
        raise InputError(describe("source", expected="a folder", found=source))
    if kind == "kitti-raw":
        stream = raw_messages(source)
    elif kind == "kitti-tracking":
        stream = tracking_messages(source, sequence)
    elif kind == "nuscenes":
        stream = scene_messages(source, version=nuscenes_version, scene=scene)
    else:
        stream = keyframe_messages(source, repeat=repeat, rate_hz=rate)
    count = 0
    with (
        appearing(out, "--out") as unfinished,
        Console(stderr=True).status(f"importing {source}") as status,
        BagWriter(unfinished) as bag,
    ):
        for log_time_ns, topic, message in stream:
            bag.write(topic, message, log_time_ns)
            count += 1
            if topic == "/lidar/points":
                status.update(f"importing {source}: {count} messages")
    print(f"{out}: {count} messages")
