# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""One worker thread per node that always takes the newest input: no queue grows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass

POLL_S = 0.02


class Outcome:
    """What work in the worker thread came to, awaited in the executor thread.

    rclpy resumes a waiting coroutine without pause; waiting here for a moment at each turn leaves the
    processor to the worker and lets other callbacks run in between.
    """

    def __init__(self) -> None:
        self._done = threading.Event()
        self._error: Exception | None = None

    def run(self, work: Callable[[], object]) -> None:
        """Do ``work`` and keep what it raised."""
        try:
            work()
        except Exception as error:
            self._error = error
        self._done.set()

    def fail(self, error: Exception) -> None:
        """End the waiting with ``error``."""
        self._error = error
        self._done.set()

    def __await__(self) -> Generator[None, None, None]:
        while not self._done.wait(POLL_S):
            yield
        if self._error is not None:
            raise self._error


@dataclass
class Job:
    """Work on one input.

    run: does it; must not raise. superseded: called instead when newer work took its place.
    """

    run: Callable[[], None]
    superseded: Callable[[], None] = lambda: None


class Worker:
    """Runs jobs one at a time in its own thread.

    Each slot holds at most one waiting job: a newer one replaces it but keeps its place in the order, so
    that every slot gets its turn however fast the others fill.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._condition = threading.Condition()
        self._waiting: dict[str, Job] = {}
        self._urgent: dict[object, Callable[[], None]] = {}
        self._running = False
        self._given_up = False
        self._busy_since: float | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to run jobs; one that outlasted `stop` is finished first, in the same thread."""
        with self._condition:
            self._running = True
            if not self.alive:
                self._thread = threading.Thread(target=self._work, name=f"{self._name}-worker", daemon=True)
                self._thread.start()

    def submit(self, slot: str, job: Job) -> None:
        """Put ``job`` into ``slot``; the job that waited there, if any, is superseded."""
        with self._condition:
            replaced = self._waiting.get(slot)
            self._waiting[slot] = job
            self._condition.notify()
        if replaced is not None:
            replaced.superseded()

    def before_next(self, key: object, action: Callable[[], None], *, drop_waiting: Collection[str]) -> None:
        """Run ``action`` in the worker before its next job, be it after the next `start`.

        Args:
            key: at most one action waits under a key, the newest, so that none pile up while nothing runs.
            action: must not raise.
            drop_waiting: slots whose waiting jobs are superseded at once.
        """
        with self._condition:
            dropped = [self._waiting.pop(slot) for slot in drop_waiting if slot in self._waiting]
            self._urgent[key] = action
            self._condition.notify()
        for job in dropped:
            job.superseded()

    def forget_actions(self) -> None:
        """Run no action that waits: what it is about is gone."""
        with self._condition:
            self._urgent.clear()

    @property
    def busy_s(self) -> float:
        """Seconds for which the current job has been running (0 when idle)."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def alive(self) -> bool:
        """Whether the thread exists."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def outlasted(self) -> bool:
        """Whether the caller is a job that `stop` did not wait for: what it finds out is for nobody."""
        return self._given_up and threading.current_thread() is self._thread

    def stop(self, timeout_s: float) -> bool:
        """Supersede the waiting jobs and wait for the current one; False if it did not end in time."""
        with self._condition:
            self._running = False
            dropped = list(self._waiting.values())
            self._waiting.clear()
            self._condition.notify()
            thread = self._thread
        for job in dropped:
            job.superseded()
        if thread is None:
            return True
        thread.join(timeout_s)
        with self._condition:
            # Of a job that ended meanwhile the thread may live for a moment longer.
            self._given_up = thread.is_alive() and self._busy_since is not None
        return not thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._urgent or not self._running)
                if not self._running:
                    self._thread = None  # under the lock: `start` may no longer count on this thread
                    return
                work = self._take()
                self._busy_since = time.monotonic()
            work()
            with self._condition:  # or `stop` might give up a job that has just ended, and with it the next
                self._busy_since, self._given_up = None, False

    def _take(self) -> Callable[[], None]:
        if self._urgent:
            return self._urgent.pop(next(iter(self._urgent)))
        return self._waiting.pop(next(iter(self._waiting))).run
