# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs one node as a process: every way to stop it ends with exit code 0 in under three seconds."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kestrel_nodes import NODES, transport

if TYPE_CHECKING:
    from kestrel_nodes.managed import ManagedNode
    from kestrel_nodes.parameters import NodeParameters

SPIN_TIMEOUT_S = 0.1


def main(name: str) -> None:
    """Run the node ``name`` until SIGINT or SIGTERM, then exit the process."""
    transport.prepare()
    module, _, kind = NODES[name].partition(":")
    run(lambda: getattr(importlib.import_module(module), kind)(name))


def run(make_node: Callable[[], ManagedNode[NodeParameters]], arguments: Sequence[str] | None = None) -> None:
    """Spin the node that ``make_node`` returns until SIGINT or SIGTERM, then exit the process with code 0.

    rclpy's own signal handlers race with the destruction of what they wake; here they are not installed, and
    the context is shut down after the executor and the node are gone.
    """
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    stop = threading.Event()
    executor = SingleThreadedExecutor()

    def on_signal(*_: object) -> None:
        stop.set()
        executor.wake()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    node = make_node()
    executor.add_node(node)
    while not stop.is_set():
        node.guard.call(lambda: executor.spin_once(timeout_sec=SPIN_TIMEOUT_S), node.health["life cycle"])
    node.shut_down()
    executor.shutdown(timeout_sec=0.5)
    node.destroy_node()
    rclpy.try_shutdown()
    _leave(clean=node.finished)


def _leave(*, clean: bool) -> None:
    """Exit; without the interpreter's clean-up where a native call is still busy in the worker thread."""
    sys.stdout.flush()
    sys.stderr.flush()
    if not clean:
        os._exit(0)
    sys.exit(0)
