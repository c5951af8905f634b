# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`kestrel bench`: measure one named thing on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench(
    name: Annotated[str | None, typer.Argument(help="What to measure; see --list.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name all benchmarks and end.")] = False,
    int8: Annotated[
        Path | None, typer.Option(help="fusion: with the int8 models of `kestrel calibrate`.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Measure one named thing on this machine and print it beside its reference of the same run."""
    from kestrel.bench import BENCHMARKS, run
    from kestrel.errors import ConfigError, describe
    from kestrel.report import Report

    if list_:
        for known in sorted(BENCHMARKS):
            print(known)
        return
    if name not in BENCHMARKS:
        found = "none" if name is None else name
        raise ConfigError(describe("benchmark", expected=f"one of {sorted(BENCHMARKS)}", found=found))
    if int8 is not None and name != "fusion":
        raise ConfigError(describe("--int8", expected="the benchmark fusion", found=name))
    options = {} if int8 is None else {"int8": int8}
    Report(f"bench {name}", run(name, **options)).print(as_json=json)
