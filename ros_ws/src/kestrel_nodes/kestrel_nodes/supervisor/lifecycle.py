# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""How the supervisor talks to a node: its life-cycle services, heartbeat and diagnostics."""

from __future__ import annotations

import math
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.task import Future
from std_msgs.msg import Header

CONFIGURE = Transition.TRANSITION_CONFIGURE
LOST_REQUEST_S = 2.0
"""A node that beats unchanged for longer after a request has not got it."""


class NodeLink:
    """The supervisor's end of one managed node."""

    def __init__(self, node: Node, name: str) -> None:
        self.name = name
        self._client = node.create_client(ChangeState, f"/{name}/change_state")
        node.create_subscription(Header, f"/{name}/heartbeat", self._on_heartbeat, 10)
        self._answer: Future | None = None
        self._requested = CONFIGURE
        self.heard: float | None = None
        self.state = "unknown"
        self.problems: dict[str, tuple[int, str]] = {}
        """By concern, level and text of what the node reported last and is not OK."""

    @property
    def there(self) -> bool:
        """Whether the node beats and its life-cycle services are discovered.

        The services alone do not tell: those of a killed process stay in the graph for a while.
        """
        return self.heard is not None and bool(self._client.service_is_ready())

    def request(self, transition: int) -> None:
        """Ask for a transition; `answer` tells the outcome."""
        self.forget_request()
        self._requested = transition
        self._answer = self._client.call_async(ChangeState.Request(transition=Transition(id=transition)))

    @property
    def answer(self) -> bool | None:
        """Whether the requested transition succeeded; None while it is not known."""
        if self._answer is None or not self._answer.done():
            return None
        response = self._answer.result()
        return bool(response is not None and response.success)

    def forget(self) -> None:
        """The process is gone: nothing that it said counts any more."""
        self.forget_request()
        self.heard, self.state = None, "unknown"
        self.problems.clear()

    def forget_request(self) -> None:
        """Wait for no answer any more."""
        if self._answer is not None:
            self._client.remove_pending_request(self._answer)
        self._answer = None

    def silent_s(self, now: float) -> float:
        """Seconds since the last heartbeat, infinite before the first."""
        return math.inf if self.heard is None else now - self.heard

    @property
    def reached(self) -> bool:
        """Whether the node beats in the state after the requested transition."""
        return self.state == ("inactive" if self._requested == CONFIGURE else "active")

    def ignored(self, since: float) -> bool:
        """Whether the node still beats in the state before the transition that was requested at ``since``."""
        before = "unconfigured" if self._requested == CONFIGURE else "inactive"
        return self.state == before and self.heard is not None and self.heard > since + LOST_REQUEST_S

    def _on_heartbeat(self, message: Header) -> None:
        self.heard = time.monotonic()
        self.state = message.frame_id


class Links:
    """A ROS node with a link to each managed node; everything happens inside `spin`."""

    def __init__(self, names: tuple[str, ...]) -> None:
        import rclpy
        from rclpy.signals import SignalHandlerOptions

        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node("kestrel_supervisor")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self.links = {name: NodeLink(self._node, name) for name in names}
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 50)

    def spin(self, seconds: float) -> None:
        """Handle what arrives for ``seconds``."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left)

    def close(self) -> None:
        """Leave the graph."""
        import rclpy

        self._executor.shutdown(timeout_sec=0.5)
        self._node.destroy_node()
        rclpy.try_shutdown()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            name, _, concern = status.name.partition(": ")
            if name in self.links:
                self._note(self.links[name], concern, status)

    def _note(self, link: NodeLink, concern: str, status: Any) -> None:
        level = int.from_bytes(status.level, "little")
        if level:
            link.problems[concern] = level, status.message
        else:
            link.problems.pop(concern, None)
