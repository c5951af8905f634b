# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes parameter files and their schema in config/ and tables in docs/nodes.md from the nodes' parameters.

`python -m kestrel_nodes.parameter_files` writes them; with ``--check`` it only says which are out of date.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import textwrap
from pathlib import Path
from typing import Final

from kestrel_nodes import NODES
from kestrel_nodes.parameter_schema import schema
from kestrel_nodes.parameters import NodeParameters, ParameterSpec, Value, specs

ROOT: Final = Path(__file__).resolve().parents[4]
TABLES: Final = "docs/nodes.md"
SCHEMA: Final = "kestrel.param.schema.json"
BEGIN: Final = "<!-- parameters of {node}: written by `python -m kestrel_nodes.parameter_files` -->"
END: Final = "<!-- end of the parameters of {node} -->"
WIDTH: Final = 100


def parameters_of(node: str) -> type[NodeParameters]:
    """Return the parameter class of a node."""
    module, _, kind = NODES[node].partition(":")
    found: type[NodeParameters] = getattr(importlib.import_module(module), kind).parameters_type
    return found


def yaml_text(node: str, kind: type[NodeParameters]) -> str:
    """Return the parameter file of ``node`` with every default and what it means."""
    lines = [
        "# SPDX-FileCopyrightText: The Kestrel Authors",
        "# SPDX-License-Identifier: Apache-2.0",
        f"# yaml-language-server: $schema={SCHEMA}",
        f"# All parameters of the {node} node, written by `python -m kestrel_nodes.parameter_files`.",
        "# What a vehicle needs otherwise belongs into a file of its own that is loaded after this one.",
        f"{node}:",
        "  ros__parameters:",
    ]
    for spec in specs(kind):
        text = f"{spec.description} ({spec.allowed})"
        lines += [f"    # {line}" for line in textwrap.wrap(text, WIDTH - 6)]
        # [] has no type in YAML, and ROS takes it for a parameter that is not set; [""] is one of strings.
        bare = spec.default == () and spec.type_name == "double[]"
        lines.append(
            f"    # {spec.name}: [0.0, ...]" if bare else f"    {spec.name}: {literal(spec.default)}"
        )
    return "\n".join(lines) + "\n"


def literal(value: Value) -> str:
    """Return ``value`` as ROS reads it from YAML with the right type."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(literal(item) for item in value)}]" if value else '[""]'
    return repr(value)


def table(kind: type[NodeParameters]) -> str:
    """Return the parameters as a Markdown table."""
    rows = ["| parameter | default | allowed | meaning |", "|---|---|---|---|"]
    rows += [_row(spec) for spec in specs(kind)]
    return "\n".join(rows)


def _row(spec: ParameterSpec) -> str:
    default = "`[]`" if spec.default == () else f"`{literal(spec.default)}`"
    return f"| `{spec.name}` | {default} | {spec.allowed} | {spec.description} |"


def with_tables(text: str) -> str:
    """Return a document with the tables between its markers replaced by what is true now."""
    for node in NODES:
        begin, end = BEGIN.format(node=node), END.format(node=node)
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{TABLES}: expected the markers {begin} and {end}")
        text = f"{before}{begin}\n{table(parameters_of(node))}\n{end}{after}"
    return text


def files(root: Path = ROOT) -> dict[Path, str]:
    """Return what every generated file should hold."""
    wanted = {root / "config" / f"{node}.param.yaml": yaml_text(node, parameters_of(node)) for node in NODES}
    kinds = {node: parameters_of(node) for node in NODES}
    wanted[root / "config" / SCHEMA] = json.dumps(schema(kinds), indent=2, ensure_ascii=False) + "\n"
    wanted[root / TABLES] = with_tables((root / TABLES).read_text(encoding="utf-8"))
    return wanted


def main() -> int:
    """Write or check the files; return the exit code."""
    parser = argparse.ArgumentParser(description="Write the parameter files and tables of all nodes.")
    parser.add_argument("--check", action="store_true", help="only say which are out of date")
    check = parser.parse_args().check
    stale = [
        (path, text)
        for path, text in files().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in stale:
        print(f"{'out of date' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(text, encoding="utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
