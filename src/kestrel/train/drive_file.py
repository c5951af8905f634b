# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What ``drive.json`` says of a drive, and what a manifest says of many."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from kestrel.errors import ConfigError, InputError, describe
from kestrel.sim.splits import SENSORS, DriveSpec, drives, scored_drives
from kestrel.train import cache

SIMULATED: Final = "kestrel.sim, simulated drives only"
"""The source of drives that name none but a town."""

UNKNOWN: Final = "unknown"


class Holds(StrEnum):
    """What the key frames of a drive may have; all but pictures is truth."""

    PICTURES = "pictures"
    BOXES = "boxes"
    VELOCITIES = "velocities"
    MAPS = "maps"
    POINT_CLASSES = "classes of points"


TRUTH: Final = frozenset(Holds) - {Holds.PICTURES}
"""What simulated key frames tell, and those that do not say what they tell: imported ones have ``truth``."""


def holds(told: Mapping[str, Any]) -> frozenset[str]:
    """Return what of Holds the key frames of a drive have, by what its ``drive.json`` says."""
    pictures = {Holds.PICTURES} if "cameras" in SENSORS[_sensors(told)] else set()
    return TRUTH.intersection(told.get("truth", TRUTH)) | pictures


def held(folders: Sequence[Path]) -> frozenset[str]:
    """Return what of Holds at least one of the drives below ``folders`` has."""
    return frozenset().union(*(holds(read(drive)) for drive in _below(folders)))


def drives_with(folders: Sequence[Path], needed: Holds) -> list[Path]:
    """Return those drives below ``folders`` that have what is needed; how many are left out is said.

    Raises:
        InputError: no drive has it, or there is none.
    """
    drives = _below(folders)
    chosen = [drive for drive in drives if needed in holds(read(drive))]
    if not chosen:
        where = ", ".join(str(folder) for folder in folders)
        raise InputError(describe(where, expected=f"drives with {needed}", found=f"{len(drives)} without"))
    if len(chosen) < len(drives):
        left_out = f"{len(drives) - len(chosen)} of {len(drives)} drives have no {needed}"
        print(f"{left_out}; they are left out", file=sys.stderr)
    return chosen


def frames_with(folders: Sequence[Path], needed: Holds) -> list[Path]:
    """Return the key frames of :func:`drives_with`.

    Raises:
        InputError: as there, or a drive is of an earlier version.
    """
    return [path for drive in drives_with(folders, needed) for path in cache.key_frames(drive)]


def _below(folders: Sequence[Path]) -> list[Path]:
    return [drive for folder in folders for drive in cache.finished_drives(folder)]


def read(drive: Path) -> dict[str, Any]:
    """Return what is said of a complete drive.

    Raises:
        InputError: the file is damaged, or names sensors that no drive has.
    """
    path = drive / cache.DONE
    try:
        told = json.loads(path.read_text())
        if not isinstance(told, dict):
            raise TypeError(f"a {type(told).__name__}")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            describe(str(path), expected=f"a JSON object ({cache.AGAIN})", found=error)
        ) from error
    if _sensors(told) not in SENSORS:
        expected = f"one of {', '.join(SENSORS)} (re-import labelled clouds that an earlier version imported)"
        raise InputError(describe(f"sensors of {path}", expected=expected, found=_sensors(told)))
    return told


def _sensors(told: Mapping[str, Any]) -> str:
    """Return the key of SENSORS that a drive names, that of all where it names none."""
    return str(told.get("sensors", "all"))


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
    """Check that all drives say where objects are.

    Raises:
        InputError: of one the points alone are labelled.
    """
    for drive in _below(folders):
        if Holds.BOXES not in holds(read(drive)):
            expected = "frames with boxes (of labelled points alone only Kestrel-Seg learns)"
            raise InputError(describe(str(drive), expected=expected, found="labelled points alone"))


def summary(folders: Sequence[Path], needed: Holds | None = None) -> dict[str, Any]:
    """Return what a manifest says of the drives below ``folders``: how many, their towns, rigs and seeds.

    It does so of all, or of those that have what is needed.

    What a drive does not say, as imported ones do not have a town, is left out.
    """
    every = [read(drive) for drive in _below(folders)]
    told = [drive for drive in every if needed is None or needed in holds(drive)]
    sources = {str(drive.get("source", SIMULATED if "town" in drive else UNKNOWN)) for drive in told}
    return {
        "source": "; ".join(sorted(sources)),
        "splits": [folder.name for folder in folders],
        "drives": len(told),
        "seconds": sum(drive.get("seconds", 0) for drive in told),
        "key_frames": sum(drive.get("frames", 0) for drive in told),
        "towns": sorted({drive["town"] for drive in told if "town" in drive}),
        "rigs": sorted({_kind_of_rig(drive["rig"]) for drive in told if "rig" in drive}),
        "seeds": sorted({drive["seed"] for drive in told if "seed" in drive}),
    }


def _kind_of_rig(rig: str) -> str:
    """Return the name of a rig; those that a seed draws, that of their drive, have one together."""
    return "drawn" if rig.startswith("drawn:") else rig
