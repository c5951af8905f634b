# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Processes that make the samples of a drive, so that every core is busy.

Samples depend on nothing but the drive and their number: however many processes make them, they are the same.
"""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, Final, Self

from kestrel.errors import SetupError, describe

if TYPE_CHECKING:
    from kestrel.sim.record import Encoded
    from kestrel.sim.rig import Rig
    from kestrel.sim.scene import World

MOST: Final = 8
"""Processes when nothing else is asked for; each holds the whole town (about 400 MB)."""

_QUEUED: Final = 3
"""Jobs that a process is given at a time, so that it never waits for the next."""

_AHEAD: Final = 24
"""How many jobs may be handed out beyond the oldest unfinished one; bounds the memory."""


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Let processes and threads that are started here not know of Ctrl-C: who started them ends them."""
    resource_tracker.ensure_running()  # its start unblocks signals, so it comes first
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what is started inherits it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@dataclass(frozen=True)
class Plan:
    """What is driven: arguments of drive.simulate."""

    world: World
    rig: Rig
    seconds: float
    image_size: tuple[int, int] | None = None
    seed: int = 0


class Workers:
    """Processes that start at once, load their libraries, and then make drives; a context manager.

    They ignore Ctrl-C and end with this process, or with the context.

    Args:
        count: How many, or None for one per core, at most MOST.

    Attributes:
        processes: Those that were started.
    """

    def __init__(self, count: int | None = None) -> None:
        context = get_context("spawn")
        self.processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        with without_interrupts():
            for _ in range(count or min(len(os.sched_getaffinity(0)), MOST)):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs,), daemon=True)
                process.start()
                theirs.close()
                self.processes.append(process)
                self._connections.append(ours)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()
        for process in self.processes:
            process.terminate()
            process.join()

    def drive(self, plan: Plan) -> Iterator[Encoded]:
        """Yield the encoded samples of ``plan`` in the order of their stamps.

        Raises:
            ConfigError: A number of the plan makes no sense.
            SetupError: Memory is not enough, or a process was killed, as the system does for want of it.
        """
        raw = pickle.dumps(plan, pickle.HIGHEST_PROTOCOL)
        for connection in self._connections:
            self._send(connection, raw)
        jobs = max(self._receive(connection) for connection in self._connections)
        waiting = deque(range(jobs))
        given = dict.fromkeys(self._connections, 0)
        finished: dict[int, list[Encoded]] = {}
        for following in range(jobs):
            while following not in finished:
                for connection in sorted(given, key=given.__getitem__):
                    while given[connection] < _QUEUED and waiting and waiting[0] < following + _AHEAD:
                        self._send(connection, pickle.dumps(waiting.popleft()))
                        given[connection] += 1
                ready = wait(self._connections)
                for connection in self._connections:
                    if connection in ready:
                        job, made = self._receive(connection)
                        finished[job] = made
                        given[connection] -= 1
            yield from finished.pop(following)

    def _send(self, connection: Connection, raw: bytes) -> None:
        try:
            connection.send_bytes(raw)
        except OSError:
            raise self._lost(connection) from None

    def _receive(self, connection: Connection) -> Any:
        try:
            answer = connection.recv()
        except (EOFError, OSError):
            raise self._lost(connection) from None
        if isinstance(answer, MemoryError):
            expected = "memory for pictures of this size"
            raise SetupError(describe("simulation", expected=expected, found=answer)) from answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _lost(self, connection: Connection) -> SetupError:
        process = self.processes[self._connections.index(connection)]
        process.join()
        expected, found = (
            "processes that live until the drive is made",
            f"one with exit code {process.exitcode}",
        )
        return SetupError(describe("simulation", expected=expected, found=found))


def _serve(connection: Connection) -> None:
    """Receive a plan, answer how many jobs it has, then answer each job that is asked for."""
    import cv2

    from kestrel.sim.drive import Drive
    from kestrel.sim.record import encode
    from kestrel.sim.textures import tiles

    cv2.setNumThreads(1)  # the other cores have processes of their own
    tiles()  # while the plan is still being made
    try:
        plan: Plan = connection.recv()
        drive = Drive(plan.world, plan.rig, plan.seconds, plan.image_size, seed=plan.seed)
        jobs = drive.jobs()
        connection.send(len(jobs))
        while True:
            job: int = connection.recv()
            connection.send((job, [encode(drive.make(number), plan.rig) for number in jobs[job]]))
    except (EOFError, OSError):  # the other side is gone, and with it the reason to go on
        return
    except Exception as error:
        error.add_note(f"in a process of the simulation:\n{traceback.format_exc()}")
        with suppress(OSError):  # another process has said so already, and nobody listens any more
            connection.send(error)
