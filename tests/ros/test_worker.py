# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The worker where a job outlasts the patience of `stop`: still one job at a time, and none forgotten."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from kestrel_nodes.worker import Job, Worker

DEADLINE_S = 30.0


class Slow:
    """A worker that was restarted while a job was in work, which ends when ``release`` is set."""

    def __init__(self) -> None:
        self.worker = Worker("test")
        self.begun, self.release, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.worker.start()
        self.worker.submit("slow", Job(self._work))
        assert self.begun.wait(DEADLINE_S)
        assert not self.worker.stop(0.01)
        self.worker.start()

    def _work(self) -> None:
        self.begun.set()
        assert self.release.wait(DEADLINE_S)
        self.ended.set()


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.release.set()
    assert slow.worker.stop(DEADLINE_S)


def test_a_job_that_outlasts_stop_is_finished_before_the_next_begins(slow: Slow) -> None:
    done = threading.Event()
    alone: list[bool] = []

    def next_job() -> None:
        alone.append(slow.ended.is_set())
        done.set()

    slow.worker.submit("next", Job(next_job))
    done.wait(0.2)
    slow.release.set()
    assert done.wait(DEADLINE_S)
    assert alone == [True]


def test_no_job_is_forgotten_after_one_that_outlasted_stop(slow: Slow) -> None:
    slow.release.set()
    assert slow.ended.wait(DEADLINE_S)
    for number in range(3):
        threading.Event().wait(0.05)  # both threads, if there are two, are idle by now
        done = threading.Event()
        slow.worker.submit("job", Job(done.set))
        assert done.wait(10.0), f"job {number} was not run"


def test_a_worker_that_hangs_is_busy_after_its_restart_too(slow: Slow) -> None:
    slow.worker.submit("next", Job(lambda: None))
    threading.Event().wait(0.2)
    assert slow.worker.busy_s > 0.2


def test_a_job_that_outlasts_stop_knows_it_and_nobody_else_does() -> None:
    worker, begun, release = Worker("test"), threading.Event(), threading.Event()
    seen: list[bool] = []

    def slow() -> None:
        seen.append(worker.outlasted)
        begun.set()
        assert release.wait(DEADLINE_S)
        seen.append(worker.outlasted)

    done = threading.Event()
    worker.start()
    worker.submit("slow", Job(slow))
    assert begun.wait(DEADLINE_S)
    assert not worker.stop(0.01)
    assert not worker.outlasted, "this thread is another"
    worker.start()
    worker.submit("next", Job(lambda: (seen.append(worker.outlasted), done.set())[0]))
    release.set()
    assert done.wait(DEADLINE_S)
    assert worker.stop(DEADLINE_S)
    assert seen == [False, True, False]


def test_of_actions_that_wait_for_a_start_only_the_newest_of_each_key_runs_before_the_first_job() -> None:
    worker, done, ran = Worker("test"), threading.Event(), []
    for number in range(1000):
        for key in "ab":
            worker.before_next(key, lambda key=key, number=number: ran.append((key, number)), drop_waiting=())
    worker.submit("job", Job(lambda: (ran.append(("job", 0)), done.set())[0]))
    worker.start()
    assert done.wait(DEADLINE_S)
    assert worker.stop(DEADLINE_S)
    assert ran == [("a", 999), ("b", 999), ("job", 0)]


def test_an_action_that_stop_leaves_behind_runs_after_the_next_start_unless_it_is_forgotten(
    slow: Slow,
) -> None:
    ran: list[str] = []
    slow.worker.before_next("a", lambda: ran.append("a"), drop_waiting=())
    assert not slow.worker.stop(0.01)
    slow.release.set()
    assert slow.worker.stop(DEADLINE_S)
    assert ran == []
    done = threading.Event()
    slow.worker.submit("job", Job(done.set))
    slow.worker.start()
    assert done.wait(DEADLINE_S)
    assert ran == ["a"]
    assert slow.worker.stop(DEADLINE_S)
    slow.worker.before_next("a", lambda: ran.append("again"), drop_waiting=())
    slow.worker.forget_actions()
    done.clear()
    slow.worker.submit("job", Job(done.set))
    slow.worker.start()
    assert done.wait(DEADLINE_S)
    assert ran == ["a"]
