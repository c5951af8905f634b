# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs one node as a process: every way to stop it ends with exit code 0 in under three seconds."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kestrel_nodes import NODES, transport

if TYPE_CHECKING:
    from kestrel_nodes.managed import ManagedNode

SPIN_TIMEOUT_S = 0.1
EXIT_WITHIN_S = 2.5
"""After this long the process exits whatever it is doing (loading a network, a native call)."""


def main(name: str) -> None:
    """Run the node ``name`` until SIGINT or SIGTERM, then exit the process."""
    module, _, kind = NODES[name].partition(":")
    run(lambda: getattr(importlib.import_module(module), kind)(name))


def run(make_node: Callable[[], ManagedNode[Any]], arguments: list[str] | None = None) -> None:
    """Spin the node that ``make_node`` returns until SIGINT or SIGTERM, then exit the process with code 0.

    rclpy's own signal handlers race with the destruction of what they wake, so they are not installed, and
    the context is shut down after the executor and the node are gone.
    """
    stop = _Stop()
    # Left-overs of crashes are the business of whoever starts nodes: one of these may be starting right now.
    os.environ.update(transport.environment())
    # Threads that wait for the others of their process sleep: spinning, they would take the cores from other
    # nodes. It is read when torch is loaded, which the node does.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    executor = SingleThreadedExecutor()
    stop.wake = executor.wake
    node = make_node()
    # Only now: it brings torch.
    from kestrel.pipelines.runtime import keep_what_is_loaded

    keep_what_is_loaded()
    executor.add_node(node)
    while not stop.requested and rclpy.ok():
        node.guard.call(lambda: executor.spin_once(timeout_sec=SPIN_TIMEOUT_S), node.health["life cycle"])
    node.shut_down()
    executor.shutdown(timeout_sec=0.2)
    node.destroy_node()
    rclpy.try_shutdown()
    _leave()


class _Stop:
    """SIGINT and SIGTERM from now on: the request to stop, and the promise that it is kept in time."""

    def __init__(self) -> None:
        self.requested = False
        self.wake: Callable[[], None] = lambda: None
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        if not self.requested:
            limit = threading.Timer(EXIT_WITHIN_S, _leave)
            limit.daemon = True
            limit.start()
        self.requested = True
        self.wake()


def _leave() -> None:
    """Exit without the interpreter's clean-up.

    Everything of ROS is closed by now, or hangs; unloading torch takes seconds on a busy machine, and may
    crash where a native call is still running in another thread.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
