# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Whether the work on an input keeps up with it. There is no ROS in this module."""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

REMEMBERED: Final = 20
"""So many messages that were looked at are remembered, with how many gave way before each."""
TOO_OFTEN: Final = 5
"""Of these; a burst after a stall counts once, however long it is, and one message in ten is not steady."""


class Pace:
    """Counts what gave way to newer messages between two that were looked at. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before: deque[int] = deque(maxlen=REMEMBERED)
        self._since = 0

    def superseded(self) -> None:
        """Note that a message gave way to a newer one."""
        with self._lock:
            self._since += 1

    def taken(self) -> None:
        """Note that a message was looked at."""
        with self._lock:
            self._before.append(self._since)
            self._since = 0

    def forget(self) -> None:
        """Begin anew."""
        with self._lock:
            self._before.clear()
            self._since = 0

    @property
    def complaint(self) -> str | None:
        """What to say if messages steadily give way, else None."""
        with self._lock:
            if sum(count > 0 for count in self._before) < TOO_OFTEN:
                return None
            superseded = sum(self._before)
            total = superseded + len(self._before)
        return (
            f"slower than this input: {superseded} of the last {total} messages superseded; "
            "use fewer sensors, a lower rate or more threads"
        )
