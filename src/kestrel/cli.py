# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The `kestrel` tool: a command, or a group, for each module of kestrel.commands and each extension."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import cast

import typer
from rich.console import Console
from rich.markup import escape

import kestrel.commands
from kestrel import __version__
from kestrel.errors import KestrelError, SetupError, describe

EXTENSION_GROUP = "kestrel.commands"
"""Entry-point group through which a distribution (kestrel_nodes, for one) adds commands."""

NEEDS_ROS = ("demo", "doctor", "replay", "up")


def _version(value: bool) -> None:
    if value:
        print(f"kestrel {__version__}")
        raise typer.Exit


def build_app() -> typer.Typer:
    """Return the tool with every command that is installed."""
    app = typer.Typer(
        name="kestrel",
        help="Perception for cars and robots: simulate, replay, run, score and look.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def main_options(
        version: bool = typer.Option(
            False, "--version", callback=_version, is_eager=True, help="Print the version."
        ),
    ) -> None:
        """Perception for cars and robots: simulate, replay, run, score and look."""

    for module in pkgutil.iter_modules(kestrel.commands.__path__):
        name = module.name.rstrip("_").replace("_", "-")
        command = getattr(importlib.import_module(f"kestrel.commands.{module.name}"), module.name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    extensions = {point.name: point for point in entry_points(group=EXTENSION_GROUP)}
    for name, point in sorted(extensions.items()):
        app.command(name)(_load(point))
    return app


def _load(point: EntryPoint) -> Callable[..., object]:
    """Return the function of an extension, or one that says why it cannot be loaded."""
    try:
        return cast("Callable[..., object]", point.load())
    except ImportError as error:
        reason = str(error)

    def unavailable() -> None:
        raise SetupError(describe(f"command {point.name}", expected=f"module {point.module}", found=reason))

    unavailable.__doc__ = f"Not available: {reason}"
    return unavailable


def main() -> None:
    """Run the tool; a KestrelError ends it with one line and exit code 2."""
    console = Console(stderr=True)
    installed = {point.name for point in entry_points(group=EXTENSION_GROUP)}
    if len(sys.argv) > 1 and sys.argv[1] in NEEDS_ROS and sys.argv[1] not in installed:
        console.print(f"kestrel {sys.argv[1]}: needs the ROS 2 nodes; install them with `make setup`")
        raise SystemExit(2)
    try:
        build_app()()
    except KestrelError as error:
        console.print("[bold red]error[/]", escape(str(error)), highlight=False)
        raise SystemExit(2) from None
