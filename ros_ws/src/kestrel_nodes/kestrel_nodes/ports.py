# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Inputs and outputs of a node: what arrived, what became of it, and whether anybody listens."""

from __future__ import annotations

import statistics
import time
from collections import deque
from itertools import pairwise
from typing import Any

from rclpy.exceptions import InvalidHandle
from rclpy.lifecycle import LifecyclePublisher
from rclpy.subscription import Subscription

from kestrel.errors import InputError
from kestrel_nodes.health import Concern, Level
from kestrel_nodes.pace import Pace
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
        try:
            return bool(self.publisher.get_subscription_count() > 0)
        except InvalidHandle:  # by a cleanup, which the message in work may outlast
            return False

    def publish(self, message: Any) -> None:
        """Send ``message``; the caller has set the header of the data that caused it.

        Of a node that was deactivated while the message was in work it is not sent, nor counted.
        """
        if self.publisher.is_activated:
            self.publisher.publish(message)
            self.published += 1


class Input:
    """A topic that the node subscribes to, with the count of what became of each message.

    ``received = answered + superseded + rejected + dropped + unwanted + waiting``:
    superseded by newer data while waiting, rejected as malformed, dropped for its stamp (counted by reason),
    unwanted because nobody subscribed to what would have come of it. What is not an input to be answered
    (transforms, CameraInfo: ``stamped`` is False) counts as ``received`` alone.

    Args:
        topic: name below ``~/input/``.
        concern: what is said of it in /diagnostics.
        guard: judges its stamps.
        timeout_s: without a usable message for longer it is an ERROR.
        required: whether silence is a fault.
        single_source: whether a second publisher is a fault.
        stamped: whether its messages are answered, each by its stamp.
        lasting: whether a message holds until the next one: then silence after the first is no fault.
    """

    def __init__(
        self,
        topic: str,
        concern: Concern,
        guard: StampGuard,
        *,
        timeout_s: float,
        required: bool,
        single_source: bool,
        stamped: bool = True,
        lasting: bool = False,
    ) -> None:
        self.topic = topic
        self.concern = concern
        self.guard = guard
        self.timeout_s = timeout_s
        self.required = required
        self.single_source = single_source
        self.lasting = lasting
        self.subscription: Subscription | None = None
        self.outputs: tuple[Output, ...] = ()
        self.frame_id: str | None = None
        self._known = False
        self._pace = Pace()
        self._since = self._usable_at = time.monotonic()
        self._arrivals: deque[float] = deque(maxlen=11)
        for counter in ("received", *(("answered", "superseded", "rejected", "unwanted") if stamped else ())):
            concern.count(counter, 0)

    def arrived(self) -> None:
        """Note that a message came."""
        self._arrivals.append(time.monotonic())
        self._known = True
        self.concern.count("received")

    def usable(self) -> None:
        """Note that a message came with a frame and a stamp that can be used."""
        self._usable_at = time.monotonic()
        self.concern.clear("stamp")

    def answered(self) -> None:
        """Note that the answer to a message was published; ends what was wrong with earlier ones."""
        self.concern.count("answered")
        self._pace.taken()
        self.accept()

    def accept(self) -> None:
        """Note that a message was well-formed; ends what was wrong with earlier ones."""
        self.concern.clear("message")

    def superseded(self) -> None:
        """Note that a message gave way to a newer one."""
        self.concern.count("superseded")
        self._pace.superseded()

    def unwanted(self) -> None:
        """Note that a message was not looked at because nobody subscribes to its results."""
        self.concern.count("unwanted")
        self._pace.forget()

    def reject(self, error: Exception, *, blamed: bool = True) -> None:
        """Note that a message could not be used; ERROR until a good one if the message is to blame.

        Args:
            error: why.
            blamed: False if the error is of another message, which it came with.
        """
        self.concern.count("rejected")
        self.concern.count(reason_of(error))
        self._pace.taken()
        if blamed and isinstance(error, InputError):
            self.concern.error("message", str(error))

    def drop(self, reason: str, text: str) -> None:
        """Note that a message was dropped for ``reason`` (its stamp).

        WARN until the next good one; ERROR once the last good one is as long ago as silence may last.
        """
        self.concern.count("dropped")
        self.concern.count(reason)
        unused_s = time.monotonic() - self._usable_at
        if unused_s > max(self.timeout_s, self._late_s):
            self.concern.error("stamp", f"nothing usable for {unused_s:.1f} s: {text}")
        else:
            self.concern.warn("stamp", text)

    def restart(self) -> None:
        """Begin to expect messages now (activation, or time restarted)."""
        self._since = self._usable_at = time.monotonic()
        self._arrivals.clear()
        self._pace.forget()
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

    @property
    def _late_s(self) -> float:
        """Seconds after which the next message is late."""
        period = self.period_s
        return self.timeout_s if period is None else max(PERIODS_UNTIL_LATE * period, LATE_AT_LEAST_S)

    def check(self, *, paused: bool) -> None:
        """Say whether the input is late (WARN after two periods, ERROR after the timeout) or too fast."""
        period, silent, late_s = self.period_s, self.silent_s, self._late_s
        if period is not None:
            self.concern.set("period_s", f"{period:.3f}")
        may_be_silent = not self.required or (self.lasting and self._known)
        if paused or may_be_silent or silent <= late_s:
            self.concern.clear("late")
        elif silent > max(self.timeout_s, late_s):
            text = "nothing received" if not self._arrivals else "no message"
            self.concern.check("late", f"{text} for {silent:.1f} s", level=Level.ERROR)
        else:
            self.concern.warn("late", f"no message for {silent:.2f} s, expected every {period or 0:.2f} s")
        self.concern.check("pace", None if silent > max(self.timeout_s, late_s) else self._pace.complaint)


def reason_of(error: Exception) -> str:
    """Return the short name under which ``error`` is counted: the input it names, or its type."""
    name, separator, _ = str(error).partition(":")
    return name.strip().replace(" ", "_")[:40] if separator else type(error).__name__
