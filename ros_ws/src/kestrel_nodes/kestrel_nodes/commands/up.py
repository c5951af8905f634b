# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`kestrel up`: run the nodes and keep them running."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def up(
    rig: Annotated[
        str | None,
        typer.Option(help="Rig whose cameras and topics are used: a name in config/rigs or a file."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Folder whose files replace those of the installed config; files that it lacks come from "
            "there."
        ),
    ] = None,
    nodes: Annotated[str | None, typer.Option(help="Names with commas between; default: all.")] = None,
    use_sim_time: Annotated[
        bool, typer.Option("--use-sim-time", help="Follow /clock, as a replay publishes it.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Load and warm up every node, report, and exit.")
    ] = False,
    hang_timeout: Annotated[
        float, typer.Option(min=1.0, help="Restart a node without a heartbeat for so many seconds.")
    ] = 10.0,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="Give up when one node needs more restarts in two minutes.")
    ] = 5,
) -> None:
    """Run the nodes, one process each; restart one that dies or hangs; stop them all with Ctrl-C."""
    from rich.console import Console

    from kestrel.errors import ConfigError
    from kestrel_nodes.deployment import config_folder, node_config
    from kestrel_nodes.supervisor.display import Display
    from kestrel_nodes.supervisor.session import node_command, run
    from kestrel_nodes.supervisor.supervisor import Limits

    names = _chosen(nodes)
    folder = config if config is not None else config_folder()
    try:
        configs = {name: node_config(folder, name, rig) for name in names}
    except ValueError as error:
        raise ConfigError(str(error)) from None
    commands = {name: node_command(item, use_sim_time=use_sim_time) for name, item in configs.items()}
    console = Console(highlight=False)
    limits = Limits(hang_s=hang_timeout, restarts=max_restarts)
    with Display((*names, "up"), console) as display:
        loaded = run(commands, display, check=check, limits=limits)
    if check:
        for name, seconds in loaded.items():
            console.print(f"{name}: loaded and warm in {seconds:.1f} s")


def _chosen(text: str | None) -> tuple[str, ...]:
    """Return the chosen nodes in the order in which they are activated."""
    from kestrel.errors import ConfigError, describe
    from kestrel_nodes import NODES

    chosen = set(NODES) if text is None else {name.strip() for name in text.split(",")}
    unknown = sorted(chosen - set(NODES))
    if unknown or not chosen:
        raise ConfigError(
            describe("--nodes", expected=f"some of {', '.join(NODES)}", found=unknown or "none")
        )
    return tuple(name for name in NODES if name in chosen)
