# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes one MCAP file in a thread of its own: neither player nor receiver waits for the disk."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from kestrel.data.bag import BagWriter
from kestrel.errors import SetupError, describe

FLUSH_S = 1.0
MOST_WAITING_BYTES: Final = 256 << 20
"""So much may wait for the disk before what is played waits."""

_Item = tuple[Callable[[], None], int, int]
"""What is to be written, how many messages that is, and of how many bytes."""


class WallClock:
    """Nanoseconds since 1970 that never jump while the process runs."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_ns(self) -> int:
        """Return the time now."""
        return self._offset_ns + time.monotonic_ns()


class Sink(Protocol):
    """Takes every message of a replay: what is published, what the nodes answer, and the truth."""

    count: int
    """Messages so far."""

    def announce(self, topic: str, msgtype: str, *, latched: bool) -> None:
        """Note a topic on which nodes publish, whether or not a message comes, from any thread."""

    def write(self, topic: str, msgtype: str, log_time_ns: int, raw: bytes) -> None:
        """Take one message, from any thread."""

    def wait_for_room(self, seconds: float) -> bool:
        """Wait for room up to so long and return whether there is; `write` takes messages without, too."""

    def close(self) -> None:
        """No message comes any more."""


class Recorder:
    """Takes messages from any thread and writes them in the order of arrival.

    An error of the file system ends the recording, not the replay; `close` raises it. What was written until
    then can be read.

    Args:
        path: the file.
        say: told of such an error when it happens.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self.path = path
        self.count = 0
        self._say = say
        self._error: OSError | None = None
        self._waiting_bytes = 0
        self._written = threading.Condition()
        self._bag = BagWriter(path)
        self._items: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def announce(self, topic: str, msgtype: str, *, latched: bool) -> None:
        """Hand over a topic: who never answers on it is known then."""
        self._items.put((partial(self._bag.announce, topic, msgtype, latched=latched), 0, 0))

    def write(self, topic: str, msgtype: str, log_time_ns: int, raw: bytes) -> None:
        """Hand over one message."""
        with self._written:
            self._waiting_bytes += len(raw)
        self._items.put((partial(self._bag.write_raw, topic, msgtype, log_time_ns, raw), 1, len(raw)))

    def wait_for_room(self, seconds: float) -> bool:
        """Wait up to so long until no more than MOST_WAITING_BYTES wait; return whether that is so."""
        with self._written:
            return self._written.wait_for(lambda: self._waiting_bytes <= MOST_WAITING_BYTES, seconds)

    def close(self) -> None:
        """Write what is left, then the index.

        Raises:
            SetupError: the file could not be written, for one since the disk is full.
        """
        self._items.put(None)
        self._thread.join()
        self._attempt(self._bag.close)
        if self._error is not None:
            raise SetupError(self._failure())

    def _run(self) -> None:
        flushed = time.monotonic()
        while True:
            try:
                item = self._items.get(timeout=FLUSH_S)
            except queue.Empty:
                self._attempt(self._bag.flush)
                continue
            if item is None:
                return
            write, messages, size = item
            if self._attempt(write):
                self.count += messages
            with self._written:
                self._waiting_bytes -= size
                self._written.notify()
            if time.monotonic() - flushed > FLUSH_S:
                self._attempt(self._bag.flush)
                flushed = time.monotonic()

    def _attempt(self, write: Callable[[], None]) -> bool:
        """Write, unless the recording has ended; return whether that went well."""
        if self._error is None:
            try:
                write()
            except OSError as error:
                self._error = error
                self._say(self._failure())
                with suppress(OSError):
                    self._bag.cut()
        return self._error is None

    def _failure(self) -> str:
        expected = "a file that can be written to the end"
        return describe(f"recording {self.path}", expected=expected, found=self._error)
