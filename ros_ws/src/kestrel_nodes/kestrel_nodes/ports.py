# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Inputs and outputs of a node: what arrived, what became of it, and whether anybody listens."""

from __future__ import annotations

import statistics
import time
from collections import deque
from itertools import pairwise
from typing import Any

from rclpy.lifecycle import LifecyclePublisher
from rclpy.subscription import Subscription

from kestrel.errors import InputError
from kestrel_nodes.health import Concern, Level
from kestrel_nodes.stamps import StampGuard

PERIODS_UNTIL_LATE = 2.0
LATE_AT_LEAST_S = 0.1
"""Messages that come in bursts have no period to be late by."""


class Output:
    """A topic that the node publishes, and only while it is active."""

    def __init__(self, topic: str, publisher: LifecyclePublisher, *, latched: bool) -> None:
        self.topic = topic
        self.publisher = publisher
        self.latched = latched
        self.published = 0

    @property
    def wanted(self) -> bool:
        """Whether anybody subscribes; what nobody wants is not computed."""
        return bool(self.publisher.get_subscription_count() > 0)

    def publish(self, message: Any) -> None:
        """Send ``message``; the caller has set the header of the data that caused it."""
        self.publisher.publish(message)
        self.published += 1


class Input:
    """A topic that the node subscribes to, with the count of what became of each message.

    ``received = answered + superseded + rejected + dropped + unwanted + waiting``:
    superseded by newer data while waiting, rejected as malformed, dropped for its stamp (counted by reason),
    unwanted because nobody subscribed to what would have come of it.
    """

    def __init__(
        self, topic: str, concern: Concern, guard: StampGuard, *, required: bool, single_source: bool
    ) -> None:
        self.topic = topic
        self.concern = concern
        self.guard = guard
        self.required = required
        self.single_source = single_source
        self.subscription: Subscription | None = None
        self.outputs: tuple[Output, ...] = ()
        self.frame_id: str | None = None
        self._since = time.monotonic()
        self._arrivals: deque[float] = deque(maxlen=11)
        for counter in ("received", "answered", "superseded", "rejected", "unwanted"):
            concern.count(counter, 0)

    def arrived(self) -> None:
        """Note that a message came."""
        self._arrivals.append(time.monotonic())
        self.concern.count("received")

    def answered(self) -> None:
        """Note that the answer to a message was published; ends what was wrong with earlier ones."""
        self.concern.count("answered")
        self.accept()

    def accept(self) -> None:
        """Note that a message was well-formed; ends what was wrong with earlier ones."""
        self.concern.clear("message")

    def superseded(self) -> None:
        """Note that a message gave way to a newer one."""
        self.concern.count("superseded")

    def unwanted(self) -> None:
        """Note that a message was not looked at because nobody subscribes to its results."""
        self.concern.count("unwanted")

    def reject(self, error: Exception, *, blamed: bool = True) -> None:
        """Note that a message could not be used; ERROR until a good one if the message is to blame.

        Args:
            error: why.
            blamed: False if the error is of another message, which it came with.
        """
        self.concern.count("rejected")
        self.concern.count(reason_of(error))
        if blamed and isinstance(error, InputError):
            self.concern.error("message", str(error))

    def drop(self, reason: str, text: str) -> None:
        """Note that a message was dropped for ``reason`` (its stamp); WARN until the next good one."""
        self.concern.count("dropped")
        self.concern.count(reason)
        self.concern.warn("stamp", text)

    def restart(self) -> None:
        """Begin to expect messages now (activation, or time restarted)."""
        self._since = time.monotonic()
        self._arrivals.clear()
        self.guard.forget()
        self.frame_id = None

    @property
    def silent_s(self) -> float:
        """Seconds since the last message, or since messages are expected."""
        return time.monotonic() - (self._arrivals[-1] if self._arrivals else self._since)

    @property
    def period_s(self) -> float | None:
        """Median time between the last messages; None before the third."""
        arrivals = list(self._arrivals)
        gaps = [later - earlier for earlier, later in pairwise(arrivals)]
        return statistics.median(gaps) if len(gaps) >= 2 else None

    def check_silence(self, timeout_s: float, *, paused: bool) -> None:
        """Say whether the input is late: WARN after two periods, ERROR after ``timeout_s``."""
        period, silent = self.period_s, self.silent_s
        if period is not None:
            self.concern.set("period_s", f"{period:.3f}")
        late_s = max(PERIODS_UNTIL_LATE * period, LATE_AT_LEAST_S) if period is not None else timeout_s
        if paused or not self.required or silent <= late_s:
            self.concern.clear("late")
        elif silent > max(timeout_s, late_s):
            text = "nothing received" if not self._arrivals else "no message"
            self.concern.check("late", f"{text} for {silent:.1f} s", level=Level.ERROR)
        else:
            self.concern.warn("late", f"no message for {silent:.2f} s, expected every {period or 0:.2f} s")


def reason_of(error: Exception) -> str:
    """Return the short name under which ``error`` is counted: the input it names, or its type."""
    name, separator, _ = str(error).partition(":")
    return name.strip().replace(" ", "_")[:40] if separator else type(error).__name__
