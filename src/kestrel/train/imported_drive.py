# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Drives that are imported: where they go, and that they appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kestrel.errors import ConfigError, InputError, describe
from kestrel.files import appearing
from kestrel.sim.splits import split_names
from kestrel.train import cache


def imported_drive(data: Path, split: str, name: str) -> Path:
    """Return the folder of a drive of a split that is to be imported.

    Splits whose drives have a video as well are none: other networks learn from these.

    Raises:
        ConfigError: no such split.
        InputError: the drive is there already.
    """
    purposes = "train", "validation"
    splits = [
        split
        for purpose in purposes
        for split in split_names(purpose, "lidar")
        if split not in split_names(purpose, "video")
    ]
    if split not in [*splits, "test"]:
        raise ConfigError(describe("--split", expected=f"one of {', '.join(splits)}, test", found=split))
    drive = data / split / name
    if drive.exists():
        raise InputError(describe("imported drive", expected="a path that does not exist", found=drive))
    return drive


def write_drive(drive: Path, frames: Iterable[tuple[int, cache.CachedFrame]], told: dict[str, Any]) -> None:
    """Write key frames with their numbers as a drive.

    Args:
        drive: of :func:`imported_drive`.
        frames: made while they are written.
        told: what ``drive.json`` says of the drive beside its name, format and number of frames.

    Raises:
        InputError: it cannot be written; nothing of it remains, as where ``frames`` raises.
    """
    with appearing(drive, "imported drive") as unfinished:
        unfinished.mkdir()
        count = 0
        for number, frame in frames:
            cache.write(unfinished / f"frame_{number:04d}.npz", frame)
            count += 1
        cache.finish(unfinished, {"name": drive.name, "frames": count, "format": cache.FORMAT, **told})
