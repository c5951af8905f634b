# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Time as sensors state it: which stamps are usable, and when it jumped back."""

from __future__ import annotations

from enum import Enum

from builtin_interfaces.msg import Time as TimeMessage

NANOSECONDS = 1_000_000_000


def stamp_ns(stamp: TimeMessage) -> int:
    """Return a message's stamp in nanoseconds."""
    return int(stamp.sec) * NANOSECONDS + int(stamp.nanosec)


def stamp_message(nanoseconds: int) -> TimeMessage:
    """Return nanoseconds as the stamp of a message."""
    return TimeMessage(sec=nanoseconds // NANOSECONDS, nanosec=nanoseconds % NANOSECONDS)


class Verdict(Enum):
    """What the stamp of a new message means."""

    FRESH = "fresh"
    ZERO = "stamp_zero"
    DUPLICATE = "duplicate_stamp"
    OUT_OF_ORDER = "out_of_order"
    JUMP_BACK = "time_jump"

    def why_dropped(self, stamp: int) -> str:
        """Return why a message of ``stamp`` (ns) is not used, with what is likely the cause."""
        dropped = f"stamp {stamp / NANOSECONDS:.3f} s dropped: {self.value}"
        if self is Verdict.ZERO:
            return f"clock domain: {dropped} (the publisher does not set header.stamp)"
        if self is Verdict.DUPLICATE:
            return f"{dropped} (the publisher sends messages twice, or its clock stands still)"
        return dropped


class StampGuard:
    """Judges the stamps of one input.

    Sensor time never runs backwards, but networks reorder and bags loop: a stamp up to
    ``jump_back_limit_ns`` before the newest one is late and must be dropped; further back, time restarted.
    """

    def __init__(self, jump_back_limit_ns: int) -> None:
        self.jump_back_limit_ns = jump_back_limit_ns
        self.newest_ns: int | None = None

    def judge(self, stamp: int) -> Verdict:
        """Return the verdict on ``stamp`` (ns), remembering it if the message is to be used."""
        if stamp <= 0:
            return Verdict.ZERO
        if self.newest_ns is None or stamp > self.newest_ns:
            self.newest_ns = stamp
            return Verdict.FRESH
        if stamp == self.newest_ns:
            return Verdict.DUPLICATE
        if self.newest_ns - stamp <= self.jump_back_limit_ns:
            return Verdict.OUT_OF_ORDER
        self.newest_ns = stamp
        return Verdict.JUMP_BACK

    def forget(self) -> None:
        """Take the next stamp as the first."""
        self.newest_ns = None
