# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes scores into the manifest of the weights that have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from kestrel.files import write_whole
from kestrel.train.drive_file import why_not_split
from kestrel.weights import read_manifest, resolve

DRIVES: Final = "drives"
"""Name of the figure that says on how many drives the others are."""

ROUNDED: Final = ("bfloat16/", "float32/")
"""How the figures of a comparison in bfloat16 begin: on drives of its own number."""


def remember(weights: str | Path, folder: Path, split: str, figures: Mapping[str, float]) -> str | None:
    """Write the figures of a split into the manifest; return why that was not done, or None.

    It is done for the drives of the split alone. Figures that are there on another number of them go.

    Args:
        weights: name of shipped weights or path.
        folder: finished drives.
        split: its name, with which the figures begin.
        figures: those of :mod:`kestrel.train.score` with their number of drives: all, in bfloat16 the first.

    Raises:
        InputError: the manifest cannot be written.
    """
    reason = why_not_split(folder, split)
    if reason is not None:
        return reason
    manifest = read_manifest(weights)
    rounded = all(_is_rounded(name, split) for name in figures)
    count = f"{split}/bfloat16/{DRIVES}" if rounded else f"{split}/{DRIVES}"
    same = manifest.metrics.get(count) == figures[count]
    kept = {
        name: value
        for name, value in manifest.metrics.items()
        if same or not name.startswith(f"{split}/") or _is_rounded(name, split) != rounded
    }
    updated = replace(manifest, metrics={**kept, **figures})
    write_whole(resolve(weights).with_suffix(".json"), updated.to_json().encode())
    return None


def _is_rounded(name: str, split: str) -> bool:
    return name.removeprefix(f"{split}/").startswith(ROUNDED)
