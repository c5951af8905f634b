# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A part of the library imports those below it, never one above."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import kestrel

ROOT = Path(kestrel.__file__).parent
LAYERS = (
    *("__init__", "errors", "types", "classes", "files", "label_maps", "road_view", "weights"),
    *("ops", "report", "nn", "engine", "models", "data", "sim", "pipelines", "eval", "train"),
    *("show", "bench", "commands", "cli", "__main__"),
)
"""From the lowest to the highest."""


def imports(path: Path) -> Iterator[str]:
    """Yield the parts of the library that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name.name}" for name in node.names]
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "kestrel" and len(parts) > 1:
                yield parts[1] if parts[1] in LAYERS else "__init__"


def test_every_part_imports_only_what_is_below_it() -> None:
    upward = []
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT)
        own = LAYERS.index(place.parts[0].removesuffix(".py"))
        upward += [f"{place} imports {name}" for name in imports(path) if LAYERS.index(name) > own]
    assert not upward
