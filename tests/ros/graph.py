# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A ROS graph in one process: nodes under test, and a node that sends, receives and reads diagnostics."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile

from kestrel_nodes.managed import ManagedNode

NodeT = TypeVar("NodeT", bound=ManagedNode[Any])

DEADLINE_S = 20.0
"""Far beyond what anything takes here; reached only when what is waited for will not come."""


def participants() -> int:
    """Return how many DDS participants this process has: each has a thread for its events."""
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return sum(name.startswith("dds.ev.") for name in names)


@dataclass
class StatusView:
    """The newest status of one concern, and everything it ever said."""

    level: int = -1
    message: str = ""
    values: dict[str, str] = field(default_factory=dict)
    history: list[tuple[int, str]] = field(default_factory=list)
    updates: int = 0

    def count(self, name: str) -> int:
        """Return a counter (0 where it is not published)."""
        return int(self.values.get(name, "0"))

    @property
    def sound(self) -> bool:
        """Whether nothing is said but, at most, that the next message is late, as on a busy machine."""
        return re.fullmatch("OK|no message for [^;]*", self.message) is not None

    def said(self, text: str, level: int) -> bool:
        """Whether it was ever published with ``text`` in its message at ``level``."""
        return any(text in message and level == was for was, message in self.history)


class Graph:
    """Context manager around a ROS context with one executor, spun by the test itself."""

    def __enter__(self) -> Graph:
        self.context = Context()
        self.context.init()
        self.executor = SingleThreadedExecutor(context=self.context)
        self.node = Node("tester", context=self.context)
        self.executor.add_node(self.node)
        self.managed: list[ManagedNode[Any]] = []
        self._statuses: dict[str, StatusView] = {}
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 100)
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.managed:
            node.shut_down()
            self.executor.remove_node(node)
            node.destroy_node()
        self.executor.shutdown(timeout_sec=1.0)
        self.node.destroy_node()
        self.context.try_shutdown()

    def add(
        self, make: Callable[..., NodeT], name: str, *, active: bool = True, **parameters: object
    ) -> NodeT:
        """Return the node ``make(name, ...)`` with ``parameters``, configured and activated."""
        overrides = [Parameter(key, value=value) for key, value in parameters.items()]
        node = make(name, context=self.context, parameter_overrides=overrides)
        self.managed.append(node)
        self.executor.add_node(node)
        if active:
            assert node.trigger_configure() is TransitionCallbackReturn.SUCCESS
            assert node.trigger_activate() is TransitionCallbackReturn.SUCCESS
        return node

    def publisher(
        self, kind: type, topic: str, qos: QoSProfile | int = 10, *, matched: bool = True
    ) -> Publisher:
        """Return a publisher that the node under test is already subscribed to."""
        publisher = self.node.create_publisher(kind, topic, qos)
        if matched:
            self.until(lambda: publisher.get_subscription_count() > 0, f"a subscriber of {topic}")
        return publisher

    def collect(
        self, kind: type, topic: str, qos: QoSProfile | int = 50, *, matched: bool = True
    ) -> list[Any]:
        """Return a list that grows with what is published on ``topic`` from now on."""
        messages: list[Any] = []
        subscription = self.node.create_subscription(kind, topic, messages.append, qos)
        if matched:
            self.until(lambda: subscription.get_publisher_count() > 0, f"a publisher of {topic}")
            for node in self.managed:
                for output in getattr(node, "outputs", {}).values():
                    if output.publisher.topic_name == subscription.topic_name:
                        self.until(lambda output=output: output.wanted, f"{topic} to be wanted")
        return messages

    def until(self, condition: Callable[[], object], what: str, *, within_s: float = DEADLINE_S) -> None:
        """Spin until ``condition()``; fail the test, saying ``what`` was awaited, after ``within_s``."""
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"waited {within_s} s in vain for {what}: {self._summary()}"
            self.executor.spin_once(timeout_sec=0.02)

    def spin_for(self, seconds: float) -> None:
        """Spin for a while: only to show that something does NOT happen."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.02)

    @property
    def statuses(self) -> dict[str, StatusView]:
        """The live views of all that was ever published."""
        return self._statuses

    def status(self, name: str) -> StatusView:
        """Return the live view of the status ``name`` (``<node>: <concern>``)."""
        return self._statuses.setdefault(name, StatusView())

    def await_status(self, name: str, condition: Callable[[StatusView], bool], what: str) -> StatusView:
        """Spin until a newly published status meets ``condition``."""
        view = self.status(name)
        before = view.updates
        self.until(lambda: view.updates > before and condition(view), f"{name}: {what}")
        return view

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            view = self._statuses.setdefault(status.name, StatusView())
            view.level = status.level[0]
            view.message = status.message
            view.values = {item.key: item.value for item in status.values}
            view.history.append((view.level, view.message))
            view.updates += 1

    def _summary(self) -> str:
        lines = (
            f"{name}: {view.level} {view.message} {view.values}" for name, view in self._statuses.items()
        )
        return "\n  ".join(["diagnostics:", *lines])
