# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The rules: when a node is configured, activated, restarted, given up. Pure logic on a given clock."""

from __future__ import annotations

import math
import signal
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from kestrel.errors import KestrelError, SetupError, describe


class Phase(Enum):
    """What a node is doing, as the supervisor sees it."""

    STARTING = "starting"
    CONFIGURING = "loading"
    INACTIVE = "ready"
    ACTIVATING = "activating"
    ACTIVE = "active"
    WAITING = "waiting to restart"
    STOPPED = "stopped"


class Process(Protocol):
    """What is used of a process."""

    last_lines: deque[str]

    @property
    def returncode(self) -> int | None:
        """Exit code, None while it runs."""

    def kill(self) -> None:
        """End it at once."""

    def wait(self, seconds: float) -> bool:
        """Wait for its end."""


class Link(Protocol):
    """What is used of the connection to a node."""

    problems: dict[str, tuple[int, str]]

    @property
    def there(self) -> bool:
        """Whether the node answers."""

    @property
    def answer(self) -> bool | None:
        """Whether the last transition succeeded."""

    def request(self, transition: int) -> None:
        """Ask for a transition."""

    def forget(self) -> None:
        """The process is gone."""

    def silent_s(self, now: float) -> float:
        """Seconds since the last heartbeat, infinite before the first."""

    @property
    def reached(self) -> bool:
        """Whether the node says that it is where the last transition leads."""

    def ignored(self, since: float) -> bool:
        """Whether the node is seen to do nothing about a request made at ``since``."""


@dataclass(frozen=True)
class Limits:
    """How patient the supervisor is; seconds.

    start_s: from the start of a process until its services are there. configure_s: loading and warm-up.
    hang_s: without a heartbeat. backoff_s: wait before the first restart; doubles up to max_backoff_s.
    restarts: more than these within window_s end everything.
    """

    start_s: float = 60.0
    configure_s: float = 180.0
    activate_s: float = 20.0
    hang_s: float = 10.0
    backoff_s: float = 0.5
    max_backoff_s: float = 15.0
    restarts: int = 5
    window_s: float = 120.0


REASON_S = 2.0
"""A node's reason for a failure comes another way than its answer; it is waited for this long."""

CONFIGURE, ACTIVATE = 1, 3
"""lifecycle_msgs/Transition."""
ERROR = 2
"""diagnostic_msgs/DiagnosticStatus."""


@dataclass
class Managed:
    """One node under supervision."""

    name: str
    start: Callable[[], Process]
    link: Link
    phase: Phase = Phase.STOPPED
    process: Process | None = None
    since: float = 0.0
    restarts: deque[float] = field(default_factory=deque)
    total_restarts: int = 0
    loaded_s: float | None = None
    refused: float | None = None


class Supervisor:
    """Brings nodes up in order and keeps them up.

    Args:
        nodes: in the order in which they are activated.
        limits: how patient.
        say: called with (node, text) on every change that a person wants to read.
        activate: False: nodes stay configured (a check that they load).
    """

    def __init__(
        self,
        nodes: Sequence[Managed],
        limits: Limits,
        say: Callable[[str, str], None],
        *,
        activate: bool = True,
    ) -> None:
        self.nodes = nodes
        self._limits = limits
        self._say = say
        self._activate = activate
        self._goal = Phase.ACTIVE if activate else Phase.INACTIVE
        self._listening_since = -math.inf

    @property
    def up(self) -> bool:
        """Whether every node is where it should be."""
        return all(node.phase is self._goal for node in self.nodes)

    def overslept(self, now: float) -> None:
        """Note that this process itself was stopped until ``now``: what it has not heard proves nothing."""
        self._listening_since = now

    def step(self, now: float) -> None:
        """Look at every node once.

        Raises:
            KestrelError: a node cannot be configured, or was restarted too often; the reason is in the text.
        """
        for index, node in enumerate(self.nodes):
            if node.process is not None and node.process.returncode is not None:
                self._failed(node, f"ended with {_ending(node.process.returncode)}", now)
            elif node.phase in (Phase.ACTIVE, Phase.INACTIVE):
                self._watch(node, index, now)
            else:
                self._advance(node, now)

    def _advance(self, node: Managed, now: float) -> None:
        waited = now - self._since(node)
        match node.phase:
            case Phase.STOPPED:
                self._start(node, now)
            case Phase.WAITING:
                if waited >= self._backoff(node):
                    self._start(node, now)
            case Phase.STARTING:
                if node.link.there:
                    node.link.request(CONFIGURE)
                    self._enter(node, Phase.CONFIGURING, now)
                elif waited > self._limits.start_s:
                    self._failed(node, f"did not come up within {waited:.0f} s", now)
            case Phase.CONFIGURING:
                self._await(node, Phase.INACTIVE, self._limits.configure_s, now)
            case Phase.ACTIVATING:
                self._await(node, Phase.ACTIVE, self._limits.activate_s, now)

    def _watch(self, node: Managed, index: int, now: float) -> None:
        silent = min(node.link.silent_s(now), now - self._since(node))
        if silent > self._limits.hang_s:
            self._failed(node, f"hangs: no heartbeat for {silent:.1f} s", now)
        elif node.phase is Phase.INACTIVE and self._activate and self._earlier_are_up(index):
            node.link.request(ACTIVATE)
            self._enter(node, Phase.ACTIVATING, now)

    def _earlier_are_up(self, index: int) -> bool:
        """Whether the nodes before this one are active, or were and are being restarted."""
        return all(node.phase is Phase.ACTIVE or node.total_restarts for node in self.nodes[:index])

    def _await(self, node: Managed, then: Phase, limit_s: float, now: float) -> None:
        answer, waited = node.link.answer, now - self._since(node)
        # A request that seemed lost may only have been late: the one that was sent again is refused then.
        if answer or (answer is False and node.link.reached):
            if then is Phase.INACTIVE:
                node.loaded_s = now - node.since
            self._enter(node, then, now)
        elif answer is False:
            node.refused = now if node.refused is None else node.refused
            reason = self._reason(node)
            if reason or now - node.refused > REASON_S:
                raise SetupError(f"node {node.name}: {reason or 'could not be configured'}")
        elif node.link.ignored(self._since(node)):
            # Discovery had shown the service of a process that is gone: the request was lost.
            node.link.request(CONFIGURE if then is Phase.INACTIVE else ACTIVATE)
            node.since = now
        elif waited > limit_s:
            self._failed(node, f"{node.phase.value} took more than {limit_s:g} s", now)

    def _since(self, node: Managed) -> float:
        """Return since when the node has been listened to in its phase."""
        return max(node.since, self._listening_since)

    def _reason(self, node: Managed) -> str:
        """Return why a transition failed: what the node reported, else what it printed, "" before either."""
        level, reported = node.link.problems.get("life cycle", (0, ""))
        if level < ERROR:  # a warning (of a parameter that nobody knows) explains nothing
            reported = ""
        printed = [line for line in node.process.last_lines if "failed" in line] if node.process else []
        return reported or (printed[-1].partition("]: ")[2] or printed[-1] if printed else "")

    def _start(self, node: Managed, now: float) -> None:
        node.link.forget()
        node.process = node.start()
        self._enter(node, Phase.STARTING, now)

    def _enter(self, node: Managed, phase: Phase, now: float) -> None:
        node.phase, node.since, node.refused = phase, now, None
        self._say(node.name, phase.value)

    def _backoff(self, node: Managed) -> float:
        return min(self._limits.backoff_s * 2.0 ** (len(node.restarts) - 1), self._limits.max_backoff_s)

    def _failed(self, node: Managed, why: str, now: float) -> None:
        """Count a failure; restart after a while, or give up."""
        assert node.process is not None
        if node.process.returncode is None:
            node.process.kill()
        node.process.wait(1.0)  # for the last that it wrote too, which may not have been read yet
        last = next((line for line in reversed(node.process.last_lines) if line.strip()), "nothing")
        node.process = None
        node.link.forget()
        while node.restarts and now - node.restarts[0] > self._limits.window_s:
            node.restarts.popleft()
        if len(node.restarts) >= self._limits.restarts:
            expected = f"at most {self._limits.restarts} restarts in {self._limits.window_s:g} s"
            raise KestrelError(
                describe(f"node {node.name}", expected=expected, found=f"it {why}; its last line was: {last}")
            )
        node.restarts.append(now)
        node.total_restarts += 1
        self._say(node.name, f"{why}; restart in {self._backoff(node):.1f} s")
        node.phase, node.since = Phase.WAITING, now


def _ending(returncode: int) -> str:
    if returncode >= 0:
        return f"exit code {returncode}"
    known = {item.value: item.name for item in signal.Signals}
    return f"signal {known.get(-returncode, -returncode)}"
