# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What a person sees of `kestrel up`: the nodes' output with their name before it, and one line of status."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from kestrel_nodes.supervisor.supervisor import Managed, Phase

NODE_COLOURS = ("cyan", "magenta", "yellow", "blue", "green")
LEVEL_COLOURS = {0: "green", 1: "yellow", 2: "red"}


class Display:
    """Prints lines above a status line that stays at the bottom of a terminal; elsewhere lines alone."""

    def __init__(self, names: Sequence[str], console: Console) -> None:
        self._console = console
        self._width = max(len(name) for name in names)
        self._colours = {name: NODE_COLOURS[i % len(NODE_COLOURS)] for i, name in enumerate(names)}
        self._live = Live(Text(""), console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def line(self, name: str, text: str) -> None:
        """Print a line that the node ``name`` wrote."""
        prefix = Text(f"{name:>{self._width}} | ", style=self._colours.get(name, "white"))
        self._console.print(prefix + Text.from_ansi(text), soft_wrap=True)

    def event(self, name: str, text: str) -> None:
        """Print what the supervisor did."""
        self.line(name, f"\x1b[1m{text}\x1b[0m" if self._console.is_terminal else text)

    def status(self, nodes: Sequence[Managed]) -> None:
        """Show the state of all nodes."""
        if not self._console.is_terminal:
            return
        parts = []
        for node in nodes:
            level = max((level for level, _ in node.link.problems.values()), default=0)
            style = LEVEL_COLOURS.get(level, "red") if node.phase is Phase.ACTIVE else "dim"
            restarts = f" ({node.total_restarts} restarts)" if node.total_restarts else ""
            parts.append(Text(f"{node.name} {node.phase.value}{restarts}", style=style))
        self._live.update(Text("  ").join(parts))
