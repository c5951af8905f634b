# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`kestrel bench`: measure one named thing on this machine."""

from __future__ import annotations

from typing import Annotated

import typer


def bench(
    name: Annotated[str | None, typer.Argument(help="What to measure; see --list.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name all benchmarks and end.")] = False,
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
        raise ConfigError(describe("benchmark", expected=f"one of {sorted(BENCHMARKS)}", found=name))
    Report(f"bench {name}", run(name)).print(as_json=json)
