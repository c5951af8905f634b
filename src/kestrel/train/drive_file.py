# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What ``drive.json`` says of a drive, and what a manifest says of many."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from kestrel.errors import ConfigError, InputError, describe
from kestrel.sim.splits import DriveSpec, drives, scored_drives
from kestrel.train import cache

SIMULATED: Final = "kestrel.sim, simulated drives only"
"""The source of drives that name none but a town."""

UNKNOWN: Final = "unknown"

POINTS_ALONE: Final = "points"
"""The ``sensors`` of imported clouds: the class of each point is known, boxes and maps are not."""


def read(drive: Path) -> dict[str, Any]:
    """Return what is said of a complete drive.

    Raises:
        InputError: the file is damaged.
    """
    path = drive / cache.DONE
    try:
        told = json.loads(path.read_text())
        if not isinstance(told, dict):
            raise TypeError(f"a {type(told).__name__}")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(describe(str(path), expected="a JSON object", found=error)) from error
    return told


def is_of(spec: DriveSpec, told: Mapping[str, Any]) -> bool:
    """Return whether ``told`` is of the drive that ``spec`` names; any weather is right where it is drawn."""
    wanted = asdict(spec)
    if spec.weather is None:
        del wanted["weather"]
    return all(told.get(name) == value for name, value in wanted.items())


def why_not_split(folder: Path, split: str) -> str | None:
    """Return in what the drives below ``folder`` are not those of a split, or None.

    Of ``test`` they have to be all, of a split without an end the first so many.
    """
    found = [read(drive) for drive in cache.finished_drives(folder)]
    try:
        wanted = scored_drives() if split == "test" else drives(split, len(found))
    except ConfigError as error:
        return str(error)
    missing = [spec.name for spec in wanted if not any(is_of(spec, told) for told in found)]
    if not missing and len(found) == len(wanted):
        return None
    others = [told for told in found if not any(is_of(spec, told) for spec in wanted)]
    expected = f"the {'' if split == 'test' else 'first '}{len(wanted)} of {split}"
    lacks = f", without {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}" if missing else ""
    besides = f", {len(others)} of them other ones" if others else ""
    return describe(f"drives below {folder}", expected=expected, found=f"{len(found)}{lacks}{besides}")


def expect_boxes(folders: Sequence[Path]) -> None:
    """Check that all drives say where objects are and what the ground is.

    Raises:
        InputError: of one the points alone are labelled.
    """
    for drive in (drive for folder in folders for drive in cache.finished_drives(folder)):
        if read(drive).get("sensors") == POINTS_ALONE:
            expected = "frames with boxes and maps (of labelled points alone only Kestrel-Seg learns)"
            raise InputError(describe(str(drive), expected=expected, found="labelled points alone"))


def summary(folders: Sequence[Path]) -> dict[str, Any]:
    """Return what a manifest says of the drives below ``folders``: how many, their towns, rigs and seeds.

    What a drive does not say, as imported ones do not have a town, is left out.
    """
    told = [read(drive) for folder in folders for drive in cache.finished_drives(folder)]
    sources = {str(drive.get("source", SIMULATED if "town" in drive else UNKNOWN)) for drive in told}
    return {
        "source": "; ".join(sorted(sources)),
        "splits": [folder.name for folder in folders],
        "drives": len(told),
        "seconds": sum(drive.get("seconds", 0) for drive in told),
        "key_frames": sum(drive.get("frames", 0) for drive in told),
        **{
            f"{key}s": sorted({drive[key] for drive in told if key in drive})
            for key in ("town", "rig", "seed")
        },
    }
