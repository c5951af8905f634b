# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""One run of `kestrel up`, from the first process to the last."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType

from kestrel.errors import KestrelError
from kestrel_nodes import transport
from kestrel_nodes.deployment import NodeConfig
from kestrel_nodes.supervisor.display import Display
from kestrel_nodes.supervisor.domain import claimed_domain, refuse
from kestrel_nodes.supervisor.lifecycle import Links
from kestrel_nodes.supervisor.process import SUPERVISOR_VARIABLE, NodeProcess, stop_in_order
from kestrel_nodes.supervisor.supervisor import Limits, Managed, Supervisor

STEP_S = 0.1
LATE_S = 2.0
"""A step that comes this late was held up from outside: Ctrl-Z, a paused container, a suspended machine."""
STOP_S = 3.5
"""All nodes have ended after this long; each alone needs less than a second when it is idle."""

ALREADY_THERE_S = 1.2
"""Longer than two heartbeats: a node that runs in this ROS domain is heard once it is discovered."""


class _Stop:
    """Whether SIGINT or SIGTERM came."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


@contextmanager
def _signals() -> Iterator[_Stop]:
    stop = _Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def node_command(config: NodeConfig, *, use_sim_time: bool) -> list[str]:
    """Return the command that runs one node."""
    arguments = config.arguments(use_sim_time=use_sim_time)
    return [sys.executable, "-m", "kestrel_nodes", config.name, *arguments]


def run(
    commands: Mapping[str, Sequence[str]],
    display: Display,
    *,
    check: bool = False,
    limits: Limits | None = None,
) -> dict[str, float]:
    """Keep the nodes up until SIGINT or SIGTERM; with ``check`` only until all are loaded.

    Args:
        commands: by node, the command of its process, in the order of activation.
        display: told of everything that happens.
        check: end when every node is loaded and warm.
        limits: how patient, by default as `Limits` says.

    Returns:
        By node, how long it took to load and warm up, seconds.

    Raises:
        KestrelError: a node cannot be brought up, or not kept up; all nodes are stopped then. With ``check``
            also when it is stopped before all are loaded.
    """
    with claimed_domain():
        return _run(commands, display, check=check, limits=limits or Limits())


def _run(
    commands: Mapping[str, Sequence[str]], display: Display, *, check: bool, limits: Limits
) -> dict[str, float]:
    transport.prepare()
    environment = {**transport.environment(), SUPERVISOR_VARIABLE: str(os.getpid())}
    links = Links(tuple(commands))
    nodes = [
        Managed(
            name, partial(NodeProcess, command, environment, partial(display.line, name)), links.links[name]
        )
        for name, command in commands.items()
    ]
    supervisor = Supervisor(nodes, limits, display.event, activate=not check)
    with _signals() as stop:
        try:
            refuse_unsupervised(links)
            _supervise(supervisor, links, display, stop, check=check)
        finally:
            running = [node.process for node in reversed(nodes) if isinstance(node.process, NodeProcess)]
            display.event("up", "stopping")
            stop_in_order(running, STOP_S)
            links.close()
    if check and not supervisor.up:
        raise KestrelError("kestrel up --check: stopped before all nodes were loaded")
    return {node.name: node.loaded_s for node in nodes if node.loaded_s is not None}


def refuse_unsupervised(links: Links) -> None:
    """Refuse to start beside nodes that somebody runs without a supervisor."""
    links.spin(ALREADY_THERE_S)
    refuse([name for name, link in links.links.items() if link.heard is not None])


def _supervise(supervisor: Supervisor, links: Links, display: Display, stop: _Stop, *, check: bool) -> None:
    was_up, now = False, time.monotonic()
    while not stop.requested:
        before, now = now, time.monotonic()
        if now - before > LATE_S:
            supervisor.overslept(now)
        supervisor.step(now)
        display.status(supervisor.nodes)
        if supervisor.up and not was_up:
            display.event("up", "all nodes are loaded" if check else "all nodes are active")
            if check:
                return
        was_up = supervisor.up
        links.spin(STEP_S)
