# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Whether what was recorded of a node stays as it is. No statement is finer than its error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm as normal
from scipy.stats import t as student
from scipy.stats import theilslopes

from tests.soak.watch import Record, Series

MOST_MB_PER_MIN: Final = 1.0
PARTS: Final = 3
MINUTE_S: Final = 60.0
MOST_SHARE: Final = 1.1
"""Of the memory at the beginning: what grows in few big steps has no slope in most parts of the time."""
MOST_TIMES: Final = 2.0
"""As much longer may a message wait at the end; behind a queue that grows it is a hundred times."""

BUSY: Final = (
    r"no message for [^;]*",
    r"one message in work for [^;]*",
    r"slower than this input: [^;]*; use fewer[^;]*",
    r"\w+: the network has not seen enough of the past yet",
)
"""What a node may say that gets twice what it can do, on a machine that others use as well."""


@dataclass(frozen=True)
class Slope:
    """Growth in units per minute, and how far off it may be."""

    per_min: float
    error: float

    @property
    def least(self) -> float:
        """What it is at least."""
        return self.per_min - self.error


def between(series: Series, began_s: float, ended_s: float) -> NDArray[np.float64]:
    """Return (N, 2) times and values within a time."""
    table = np.array(series, np.float64).reshape(-1, 2)
    return table[(table[:, 0] >= began_s) & (table[:, 0] < ended_s)]


def slope(series: Series, began_s: float, ended_s: float) -> Slope:
    """Return how fast a value grows for good.

    A leak goes on; what an allocator takes in a step, or while it settles, does not. So the time is cut into
    parts, each with its slope (Theil-Sen, to which outliers are nothing), and their median counts. The error
    is the half width of a notch, a 95 % interval of a median (McGill, Tukey and Larsen, Variations of Box
    Plots, 1978), with Student's distribution for the normal one, because there are few parts.
    """
    edges = np.linspace(began_s, ended_s, PARTS + 1)
    parts = [between(series, edges[part], edges[part + 1]) for part in range(PARTS)]
    slopes = [theilslopes(part[:, 1], part[:, 0] / MINUTE_S).slope for part in parts]
    low, middle, high = np.percentile(slopes, (25, 50, 75))
    few = student.ppf(0.975, PARTS - 1) / normal.ppf(0.975)
    return Slope(float(middle), float(1.57 * few * (high - low) / np.sqrt(PARTS)))


@dataclass(frozen=True)
class Ends:
    """Values in the first and in the last minute, or thirds of a shorter time."""

    first: NDArray[np.float64]
    last: NDArray[np.float64]

    @classmethod
    def of(cls, series: Series, began_s: float, ended_s: float) -> Ends:
        """Return the ends of a series."""
        long_s = min((ended_s - began_s) / PARTS, MINUTE_S)
        return cls(
            between(series, began_s, began_s + long_s)[:, 1], between(series, ended_s - long_s, ended_s)[:, 1]
        )

    def each(self, measure: Callable[[NDArray[np.float64]], float]) -> tuple[float, float]:
        """Return a measure of both; NaN where there is nothing to measure."""
        first, last = (float(measure(end)) if len(end) else float("nan") for end in (self.first, self.last))
        return first, last


def faults(record: Record, began_s: float, ended_s: float) -> Iterator[str]:
    """Yield what does not stay as it is, with its figures."""
    memory = slope(record.memory_mb, began_s, ended_s)
    if memory.least >= MOST_MB_PER_MIN:
        yield f"memory grows by {memory.per_min:.2f} +- {memory.error:.2f} MB/min"
    first, last = Ends.of(record.memory_mb, began_s, ended_s).each(np.median)
    if not last <= MOST_SHARE * first:  # nor is there NaN, where nothing was measured
        yield f"memory grew from {first:.0f} to {last:.0f} MB"
    for name, series in (("threads", record.threads), ("files", record.files)):
        first, last = Ends.of(series, began_s, ended_s).each(np.median)
        if not last <= first:
            yield f"{name} grew from {first:g} to {last:g}"
    first, last = Ends.of(record.waited, began_s, ended_s).each(np.median)
    if not last <= MOST_TIMES * first:
        yield f"messages wait for {last:.2f} times their work, at first for {first:.2f}"


def odd(history: Sequence[tuple[int, str]]) -> set[str]:
    """Return what a status said that is not to be expected of an overloaded node."""
    found = set()
    for _, message in history:
        rest = re.sub("|".join(BUSY), "", message).strip("; ")
        if rest not in ("", "OK"):
            found.add(message)
    return found


def report(name: str, record: Record, began_s: float, ended_s: float, sent: int) -> str:
    """Return the figures of a node in a line."""
    memory = slope(record.memory_mb, began_s, ended_s)
    shown = [f"{name}: {len(between(record.latency_ms, began_s, ended_s))} answers to {sent} messages"]
    shown.append(f"memory {memory.per_min:+.2f} +- {memory.error:.2f} MB/min")
    measures: tuple[tuple[str, Series, Callable[[NDArray[np.float64]], float], str], ...] = (
        ("MB", record.memory_mb, np.median, ".1f"),
        ("threads", record.threads, np.median, "g"),
        ("files", record.files, np.median, "g"),
        ("p50 ms", record.latency_ms, np.median, ".0f"),
        ("p99 ms", record.latency_ms, lambda values: float(np.percentile(values, 99)), ".0f"),
        ("p50 in times of work", record.waited, np.median, ".2f"),
    )
    for unit, series, measure, form in measures:
        first, last = Ends.of(series, began_s, ended_s).each(measure)
        shown.append(f"{first:{form}} -> {last:{form}} {unit}")
    return ", ".join(shown)
