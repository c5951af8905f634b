# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""When the next message is due, and whether the nodes that need it are ready: pure logic on a given clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kestrel.data.messages import Source

ANSWER_TIMEOUT_S = 5.0
TIMES_THE_SLOWEST = 3.0
"""A node that needs long on this machine is given this many times its slowest answer so far."""
PATIENCE = 3
"""Answers in a row that may be missed before a node is not waited for any more (until it answers again)."""
PENDING_LIMIT = 200


class Pace:
    """Maps the time of the bag to the time of this machine at a constant rate, with pauses."""

    def __init__(self, rate: float, start_ns: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._now = now
        self._bag_ns = start_ns
        self._since = now()

    @property
    def bag_ns(self) -> int:
        """The time of the bag now."""
        return self._bag_ns + int((self._now() - self._since) * self.rate * 1e9)

    def left_s(self, bag_ns: int) -> float:
        """Seconds of this machine until ``bag_ns``; negative when it has passed."""
        return (bag_ns - self.bag_ns) / 1e9 / self.rate

    def resume(self, bag_ns: int) -> None:
        """Go on from ``bag_ns`` after a pause."""
        self._bag_ns, self._since = bag_ns, self._now()


@dataclass
class _Link:
    """One input of one node.

    by_frame: whether an answer carries the frame of its cause (images; a cloud may be answered in another).
    pending: messages without an answer and when they were sent, oldest first.
    newest: the last of them, if it is worth waiting for.
    slowest_s: the longest that an answer has taken.
    """

    by_frame: bool
    pending: dict[Source, float] = field(default_factory=dict)
    newest: Source | None = None
    missed: int = 0
    sent: int = 0
    answered: int = 0
    slowest_s: float = 0.0

    @property
    def hopeless(self) -> bool:
        return self.missed >= (PATIENCE if self.answered else 1)

    def send(self, key: Source, now: float) -> None:
        self.sent += 1
        self.newest = key
        self.pending[key] = now
        if len(self.pending) > PENDING_LIMIT:
            del self.pending[next(iter(self.pending))]

    def receive(self, answer: Source, now: float) -> None:
        for key in self.pending:
            if key.stamp_ns == answer.stamp_ns and (not self.by_frame or key.frame_id == answer.frame_id):
                self.slowest_s = max(self.slowest_s, now - self.pending.pop(key))
                self.newest = None if key == self.newest else self.newest
                self.missed = 0
                self.answered += 1
                return

    def left_s(self, timeout_s: float, now: float) -> float:
        if self.newest is None or self.newest not in self.pending:
            return 0.0
        patience_s = max(timeout_s, TIMES_THE_SLOWEST * self.slowest_s)
        left = self.pending[self.newest] + patience_s - now
        if left <= 0:
            self.newest = None
            self.missed += 1
        return 0.0 if self.hopeless else max(left, 0.0)


class Answers:
    """Which input messages the nodes have answered; a node answers with an output of the same stamp.

    Safe to use from the thread that publishes and the one that receives.
    """

    def __init__(
        self, *, timeout_s: float = ANSWER_TIMEOUT_S, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._timeout_s = timeout_s
        self._now = now
        self._links: dict[tuple[str, str], _Link] = {}
        self._changed = threading.Condition()

    def connect(self, node: str, inputs: Iterable[tuple[str, bool]]) -> None:
        """Note what a node answers: (topic, whether answers keep the frame)."""
        with self._changed:
            for topic, by_frame in inputs:
                self._links.setdefault((node, topic), _Link(by_frame))
            own = {key: link for key, link in self._links.items() if key[0] == node}
            if not all(link.by_frame for link in own.values()):
                # The graph shows the inputs of a node one by one: its images may have come first, but it
                # answers its cloud.
                for key, link in own.items():
                    if link.by_frame:
                        del self._links[key]

    def expected(self, topic: str) -> bool:
        """Whether any node answers ``topic``."""
        with self._changed:
            return any(name == topic for _, name in self._links)

    def sent(self, topic: str, key: Source) -> None:
        """Note that an input message is about to be published."""
        with self._changed:
            for (_, name), link in self._links.items():
                if name == topic:
                    link.send(key, self._now())

    def received(self, node: str, key: Source) -> None:
        """Note an output of ``node``."""
        with self._changed:
            for (name, _), link in self._links.items():
                if name == node:
                    link.receive(key, self._now())
            self._changed.notify_all()

    def wait(self, topic: str | None, stopped: Callable[[], bool]) -> bool:
        """Wait until all nodes that take ``topic`` (None: any) have answered; return whether it took time.

        A node that does not answer in time is not waited for; one that keeps silent no longer at all.
        """
        waited = False
        with self._changed:
            while not stopped():
                left = self._left_s(topic)
                if left <= 0:
                    break
                waited = True
                self._changed.wait(min(left, 0.1))
        return waited

    def _left_s(self, topic: str | None) -> float:
        links = (link for (_, name), link in self._links.items() if topic is None or name == topic)
        return max((link.left_s(self._timeout_s, self._now()) for link in links), default=0.0)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return (answered, sent) by node."""
        result: dict[str, tuple[int, int]] = {}
        with self._changed:
            for (node, _), link in self._links.items():
                answered, sent = result.get(node, (0, 0))
                result[node] = (answered + link.answered, sent + link.sent)
        return result
