# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The guard under two threads: executor and worker report errors at the same time."""

from __future__ import annotations

import gc
import sys
import threading
import weakref

from kestrel.errors import InputError
from kestrel_nodes.guard import Guard
from kestrel_nodes.health import Concern

ERRORS = 1000


class Silent:
    def error(self, message: str) -> None:
        """Log nothing."""

    def warning(self, message: str) -> None:
        """Log nothing."""

    def info(self, message: str) -> None:
        """Log nothing."""


def test_bad_data_in_one_thread_and_a_bug_in_the_other_may_be_reported_at_once() -> None:
    """What the guard itself raises ends the thread. Each text is new, as of errors that name something."""
    guard, concern = Guard(Silent()), Concern("test")
    raised: list[Exception] = []

    def report(kind: type[Exception]) -> None:
        def fail(number: int) -> None:
            raise kind(f"fault{number}")

        try:
            for number in range(ERRORS):
                guard.call(lambda number=number: fail(number), concern)
        except Exception as error:
            raised.append(error)

    interval = sys.getswitchinterval()
    threads = [threading.Thread(target=report, args=(kind,)) for kind in (InputError, ValueError)]
    try:
        sys.setswitchinterval(1e-6)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not raised
    assert concern.counted("exceptions") == ERRORS


def test_an_error_keeps_nothing_of_the_call_in_memory() -> None:
    class Cloud:
        """Stands for what is large."""

    alive: list[weakref.ref[Cloud]] = []

    def fail() -> None:
        cloud = Cloud()
        alive.append(weakref.ref(cloud))
        try:
            raise ValueError(len(alive))
        except ValueError as error:
            raise InputError("a cloud: expected points, found none") from error

    gc.disable()  # a cycle would live until the next collection
    try:
        error = Guard(Silent()).call(fail, Concern("test"))
        assert isinstance(error, InputError)
        assert [each() for each in alive] == [None]
    finally:
        gc.enable()


class Kept(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, message: str) -> None:
        self.lines.append(message)

    info = warning


def test_a_text_with_other_numbers_is_the_same_text_and_a_name_with_a_number_another() -> None:
    logger = Kept()
    guard = Guard(logger)
    away = "transform odom <- camera_{}: expected one within 0.25 s, found one {:+.3f} s away"
    for camera in (1, 2):
        for seconds in (0.3, -0.31, 17):
            guard.log(InputError(away.format(camera, seconds)))
            guard.inform(f"the clock jumped back by {seconds:.1f} s")
    assert logger.lines == [away.format(1, 0.3), "the clock jumped back by 0.3 s", away.format(2, 0.3)]
