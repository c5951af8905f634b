# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes one MCAP file in a thread of its own: neither player nor receiver waits for the disk."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from kestrel.data.bag import BagWriter
from kestrel.errors import SetupError, describe

FLUSH_S = 1.0

_Item = tuple[Callable[[], None], int]
"""What is to be written, and how many messages that is."""


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

    def close(self) -> None:
        """No message comes any more."""


class Recorder:
    """Takes messages from any thread and writes them in the order of arrival.

    An error of the file system ends the recording, not the replay; `close` raises it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._error: OSError | None = None
        self._bag = BagWriter(path)
        self._items: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def announce(self, topic: str, msgtype: str, *, latched: bool) -> None:
        """Hand over a topic: who never answers on it is known then."""
        self._items.put((partial(self._bag.announce, topic, msgtype, latched=latched), 0))

    def write(self, topic: str, msgtype: str, log_time_ns: int, raw: bytes) -> None:
        """Hand over one message."""
        self._items.put((partial(self._bag.write_raw, topic, msgtype, log_time_ns, raw), 1))

    def close(self) -> None:
        """Write what is left, then the index.

        Raises:
            SetupError: the file could not be written, for one since the disk is full.
        """
        self._items.put(None)
        self._thread.join()
        try:
            self._bag.close()
        except OSError as error:
            self._error = self._error or error
        if self._error is not None:
            expected = "a file that can be written to the end"
            raise SetupError(describe(f"recording {self.path}", expected=expected, found=self._error))

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
            write, messages = item
            if self._attempt(write):
                self.count += messages
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
        return self._error is None
