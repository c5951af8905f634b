# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`kestrel show`: pictures, a video and a Rerun recording of what the nodes saw."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def show(
    recording: Annotated[Path, typer.Argument(help="What `kestrel replay --record` has written, or a bag.")],
    out: Annotated[Path, typer.Option(help="Folder for what is made.")],
    title: Annotated[str, typer.Option(help="Text in the title strip.")] = "",
    video: Annotated[bool, typer.Option(help="Make overview.mp4.")] = True,
    rerun: Annotated[bool, typer.Option(help="Make kestrel.rrd for the Rerun viewer.")] = True,
) -> None:
    """Make PNGs, an MP4 and a Rerun recording: cameras with boxes and events, cloud, map, timings."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from kestrel.errors import InputError, SetupError, describe, extra

    try:
        from kestrel.eval.scene import Scene
        from kestrel.show import files
    except ImportError as error:
        raise SetupError(describe("pictures", expected=extra("show"), found=error)) from error

    console = Console(stderr=True)
    with console.status("reading the recording"):
        scene = Scene(recording)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(describe("--out", expected="a folder", found=error)) from error
    title = title or recording.stem
    made = files.write_pictures(scene, out, title)
    if rerun:
        from kestrel.show.viewer import write_rerun

        with console.status("writing kestrel.rrd"):
            write_rerun(scene, out / "kestrel.rrd")
        made.append(out / "kestrel.rrd")
    if video:
        columns = (TextColumn("video"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("video", total=len(scene))
            files.write_video(
                scene, out / "overview.mp4", title, lambda done: bar.update(task, completed=done)
            )
        made.append(out / "overview.mp4")
    for path in made:
        print(path)
    scene.recording.raise_if_damaged()
