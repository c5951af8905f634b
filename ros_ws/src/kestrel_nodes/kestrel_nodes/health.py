# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What a node says about itself in /diagnostics: one concern per status, each with problems and counters.

A concern is OK until somebody raises a problem under a key; clearing the key (the next good message)
ends it, but never before it was published once, so that no failure is too short to be seen.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

MAX_REASONS = 24
"""Distinct counters per concern; whatever comes later is counted as ``other``."""


class Level(IntEnum):
    """Severity, with the numbers of diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass
class _Problem:
    level: Level
    text: str
    published: bool = False
    cleared: bool = False


@dataclass(frozen=True)
class Status:
    """One published status: worst level, all reasons, and the values by name."""

    name: str
    level: Level
    message: str
    values: dict[str, str]


class Concern:
    """One thing that can go wrong. All methods may be called from any thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._problems: dict[str, _Problem] = {}
        self._counters: Counter[str] = Counter()
        self._values: dict[str, str] = {}

    def warn(self, key: str, text: str) -> None:
        """Degraded but publishing, because of ``text``, until ``clear(key)``."""
        self._raise(key, Level.WARN, text)

    def error(self, key: str, text: str) -> None:
        """Not publishing or not trustworthy, because of ``text``, until ``clear(key)``."""
        self._raise(key, Level.ERROR, text)

    def _raise(self, key: str, level: Level, text: str) -> None:
        with self._lock:
            self._problems[key] = _Problem(level, text)
            self._values["last_error"] = text

    def clear(self, key: str) -> None:
        """End the problem ``key`` (no effect if there is none)."""
        with self._lock:
            problem = self._problems.get(key)
            if problem is not None and problem.published:
                del self._problems[key]
            elif problem is not None:
                problem.cleared = True

    def forget(self) -> None:
        """Forget all counters and values; problems stay until they were published."""
        with self._lock:
            self._counters.clear()
            self._values.clear()

    def clear_all(self) -> None:
        """End all problems."""
        with self._lock:
            keys = list(self._problems)
        for key in keys:
            self.clear(key)

    def check(self, key: str, text: str | None, *, level: Level = Level.WARN) -> None:
        """Raise the problem ``key`` with ``text``, or clear it if ``text`` is None."""
        if text is None:
            self.clear(key)
        else:
            self._raise(key, level, text)

    def count(self, reason: str, times: int = 1) -> None:
        """Add ``times`` to the counter ``reason``, which is published from then on."""
        with self._lock:
            known = reason in self._counters or len(self._counters) < MAX_REASONS
            self._counters[reason if known else "other"] += times

    def counted(self, reason: str) -> int:
        """Return the counter ``reason`` (0 if it never counted)."""
        with self._lock:
            return self._counters[reason]

    def set(self, name: str, value: object) -> None:
        """Publish ``value`` under ``name``."""
        with self._lock:
            self._values[name] = str(value)

    @property
    def level(self) -> Level:
        """Worst level of the problems that last."""
        with self._lock:
            return max((p.level for p in self._problems.values() if not p.cleared), default=Level.OK)

    def publish(self) -> Status:
        """Return the status to publish now and forget the problems that ended."""
        with self._lock:
            problems = sorted(self._problems.values(), key=lambda problem: -problem.level)
            status = Status(
                self.name,
                max((problem.level for problem in problems), default=Level.OK),
                "; ".join(problem.text for problem in problems) or "OK",
                {**{reason: str(count) for reason, count in self._counters.items()}, **self._values},
            )
            for problem in problems:
                problem.published = True
            self._problems = {key: item for key, item in self._problems.items() if not item.cleared}
            return status


class Health:
    """All concerns of one node, in the order of their first use."""

    def __init__(self) -> None:
        self._concerns: dict[str, Concern] = {}

    def __getitem__(self, name: str) -> Concern:
        """Return the concern ``name``, created at its first use."""
        return self._concerns.setdefault(name, Concern(name))

    def __iter__(self) -> Iterator[Concern]:
        return iter(list(self._concerns.values()))

    def forget(self, name: str) -> None:
        """Publish the concern ``name`` no more."""
        self._concerns.pop(name, None)
