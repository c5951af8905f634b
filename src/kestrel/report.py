# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Measured figures, printed alike by every command: a table for people, one JSON object for programs."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One measured value.

    ratio: how many times better than ``against`` (a peer or a reference measured in the same run);
        above 1 is better. None where there is nothing to compare with.
    """

    value: float
    unit: str
    ratio: float | None = None
    against: str | None = None


@dataclass(frozen=True)
class Report:
    """What one command measured on this machine; ``figures`` by name, in the order to print."""

    command: str
    figures: Mapping[str, Figure]
    machine: Mapping[str, object] = field(default_factory=lambda: describe_machine())

    def to_json(self) -> str:
        """Return the report as one JSON object; values that are not finite become null."""
        figures = {
            name: {
                "value": _finite(figure.value),
                "unit": figure.unit,
                "ratio": _finite(figure.ratio),
                "against": figure.against,
            }
            for name, figure in self.figures.items()
        }
        return json.dumps({"command": self.command, "machine": dict(self.machine), "figures": figures})

    def print(self, *, as_json: bool) -> None:
        """Print the report on standard output, as JSON or as a table."""
        if as_json:
            print(self.to_json())
            return
        table = Table(title=self.command, title_justify="left")
        for heading in ("figure", "value", "unit", "ratio", "against"):
            table.add_column(
                heading,
                justify="right" if heading in ("value", "ratio") else "left",
                no_wrap=heading in ("figure", "value", "ratio"),
            )
        for name, figure in self.figures.items():
            ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}x"
            table.add_row(name, f"{figure.value:.4g}", figure.unit, ratio, figure.against or "")
        console = Console()
        console.print(table)
        console.print(", ".join(f"{key} {value}" for key, value in self.machine.items()), style="dim")


def describe_machine() -> dict[str, object]:
    """Return CPU name, usable cores, kernel dispatch level and torch version.

    The last two are None where torch cannot be imported.
    """
    dispatch = version = None
    try:
        import torch

        from kestrel.ops import dispatch_level

        dispatch, version = dispatch_level(), torch.__version__
    except (ImportError, OSError):  # the doctor says why
        pass
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "dispatch": dispatch,
        "torch": version,
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
