# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Times of competitors on one machine: they take turns, and the median counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Final, TypeAlias

import torch

THREADS: Final = 2
"""Threads of the figures that a goal is set for."""

WARM_UP_MS: Final = 30.0
"""How long a candidate runs in its turn before it is timed.

Threads of the one before spin for some milliseconds on cores that are not theirs, and a virtual machine wakes
threads on a core that is busy; the system moves them after some ten milliseconds.
"""

Candidate: TypeAlias = Callable[[], float]
"""Does its work once and returns how many milliseconds that took."""


def timed(work: Callable[[], object], threads: int = THREADS) -> Candidate:
    """Return a candidate that does ``work`` with so many threads of torch."""

    def run() -> float:
        torch.set_num_threads(threads)
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) * 1e3

    return run


def medians(candidates: Mapping[str, Candidate], *, repeats: int = 9) -> dict[str, float]:
    """Return the median time [ms] of each candidate.

    They take turns, so that all meet the same machine; in its turn each warms up before it is timed.
    """
    before = torch.get_num_threads()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            warm = 0.0
            while warm < WARM_UP_MS:
                warm += run()
            times[name].append(run())
    torch.set_num_threads(before)
    return {name: median(values) for name, values in times.items()}
