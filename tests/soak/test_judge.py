# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What counts as growth, and what does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")

from tests.soak.judge import faults, odd, slope
from tests.soak.watch import Record, Series

TIMES = np.arange(0.0, 60.0, 0.25)


def series(values: Any, times: Any = TIMES) -> Series:
    return [
        (float(at), float(value))
        for at, value in zip(times, np.broadcast_to(values, times.shape), strict=True)
    ]


def noise(size: float) -> Any:
    return size * np.random.default_rng(0).standard_normal(len(TIMES))


def steady(**changes: Series) -> Record:
    """A node that answers five times a second and of which only ``changes`` change."""
    answers = np.arange(0.0, 60.0, 0.2)
    record = Record(
        memory_mb=series(400 + noise(0.5)),
        threads=series(16),
        files=series(23),
        latency_ms=series(130, answers),
        work_ms=series(100, answers),
    )
    for name, value in changes.items():
        setattr(record, name, value)
    return record


def test_a_node_that_stays_as_it_is_has_no_fault() -> None:
    assert list(faults(steady(), 15.0, 60.0)) == []


@pytest.mark.parametrize("mb_per_min", [2.5, 5.0, 24.0])
def test_a_leak_is_found_in_noise(mb_per_min: float) -> None:
    memory = series(400 + mb_per_min * TIMES / 60 + noise(0.2))
    found = slope(memory, 15.0, 60.0)
    assert abs(found.per_min - mb_per_min) < 1.0
    assert any("memory grows by" in fault for fault in faults(steady(memory_mb=memory), 15.0, 60.0))


def test_a_step_and_what_settles_are_no_leaks() -> None:
    step = 400 + 6.0 * (TIMES > 40) + noise(0.1)
    settling = 400 - 30 * np.exp(-TIMES / 4)
    for memory in (step, settling):
        assert list(faults(steady(memory_mb=series(memory)), 15.0, 60.0)) == []


def test_a_big_step_is_a_fault() -> None:
    memory = series(400 + 50.0 * (TIMES > 40))
    assert list(faults(steady(memory_mb=memory), 15.0, 60.0)) == ["memory grew from 400 to 450 MB"]


@pytest.mark.parametrize("name", ["threads", "files"])
def test_one_more_thread_or_file_is_a_fault_unless_it_goes_again(name: str) -> None:
    more = {name: series(16 + (TIMES > 30))}
    assert list(faults(steady(**more), 15.0, 60.0)) == [f"{name} grew from 16 to 17"]
    for_a_while = {name: series(16 + ((TIMES > 57) & (TIMES < 59)))}
    assert list(faults(steady(**for_a_while), 15.0, 60.0)) == []


def test_a_queue_that_grows_is_a_fault_and_a_slower_machine_is_none() -> None:
    answers = np.arange(0.0, 60.0, 0.2)
    queue = steady(latency_ms=series(130 + 500 * answers, answers))
    assert any("messages wait for" in fault for fault in faults(queue, 15.0, 60.0))
    slower = 1 + 4 * (answers > 40)
    slow = steady(latency_ms=series(130 * slower, answers), work_ms=series(100 * slower, answers))
    assert list(faults(slow, 15.0, 60.0)) == []


def test_a_node_that_no_longer_answers_is_a_fault() -> None:
    silent = steady(latency_ms=series(130, np.arange(0.0, 40.0, 0.2)))
    assert any("wait for nan" in fault for fault in faults(silent, 15.0, 60.0))


def test_what_an_overloaded_node_says_is_expected_and_all_else_is_not() -> None:
    slower = "slower than this input: 10 of the last 30 messages superseded; use fewer sensors, or threads"
    assert (
        odd([(0, "OK"), (1, slower), (1, f"no message for 0.2 s, expected every 0.1 s; {slower}")]) == set()
    )
    assert odd([(0, "OK"), (2, f"{slower}; weights are gone")]) == {f"{slower}; weights are gone"}
