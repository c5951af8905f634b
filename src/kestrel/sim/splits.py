# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Which simulated drives are for training, for validation and for the final test (drives.yaml)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import yaml

from kestrel.errors import ConfigError, describe

SENSORS: Final = {
    "all": {"cameras", "lidar", "video"},
    "cameras": {"cameras", "lidar"},
    "lidar": {"lidar"},
    "video": {"video"},
}
"""By the name that drives.yaml uses, what a drive has: key frames with pictures, with sweeps, a video."""


@dataclass(frozen=True)
class DriveSpec:
    """One drive: arguments of `kestrel sim`, and a name. weather None: drawn by the seed.

    sensors: what of it becomes training data: a key of SENSORS.
    """

    name: str
    rig: str
    scene: str
    town: str
    seed: int
    seconds: float
    weather: str | None
    sensors: str = "all"


def scored_drives() -> list[DriveSpec]:
    """Return the drives that networks are scored on."""
    return [DriveSpec(**entry) for entry in _file()["test"]]


def drives(split: str, count: int) -> list[DriveSpec]:
    """Return the first ``count`` drives of a split: of ``test`` there are eleven, of the others no end.

    Raises:
        ConfigError: There is no such split.
    """
    known = _file()
    if split not in known:
        raise ConfigError(describe("split", expected=f"one of {', '.join(known)}", found=split))
    if split == "test":
        return scored_drives()[:count]
    entry = known[split]
    return [_numbered(entry, split, number) for number in range(count)]


def split_names(purpose: str, sensors: str) -> list[str]:
    """Return the splits for a purpose ("train" or "validation") whose drives have ``sensors``.

    Args:
        purpose: the first word of their names.
        sensors: "cameras", "lidar" or "video".
    """
    entries = {name: entry for name, entry in _file().items() if name.split("_")[0] == purpose}
    return [name for name, entry in entries.items() if sensors in SENSORS[entry["sensors"]]]


def _numbered(entry: dict[str, Any], split: str, number: int) -> DriveSpec:
    towns, scenes, rigs = entry["towns"], entry["scenes"], entry["rigs"]
    rig, seed = rigs[number % len(rigs)], entry["first_seed"] + number
    return DriveSpec(
        name=f"{split}_{number:04d}",
        rig=f"{rig}:{seed}" if rig == "drawn" else rig,
        scene=scenes[number % len(scenes)],
        town=towns[number % len(towns)],
        seed=seed,
        seconds=float(entry["seconds"]),
        weather=None,
        sensors=entry["sensors"],
    )


def _file() -> dict[str, Any]:
    entries: dict[str, Any] = yaml.safe_load((resources.files("kestrel.sim") / "drives.yaml").read_text())
    return entries
