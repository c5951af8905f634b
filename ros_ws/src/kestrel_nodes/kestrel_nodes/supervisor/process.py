# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""One child process: started, its output forwarded line by line, stopped politely or at once."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

LINES_KEPT = 40
SUPERVISOR_VARIABLE = "KESTREL_SUPERVISOR_PID"
PR_SET_PDEATHSIG = 1


class NodeProcess:
    """The process of one node.

    It leads a session of its own, so that Ctrl-C in the terminal reaches the supervisor alone, which then
    stops the nodes in their order.

    Args:
        command: program and arguments.
        environment: added to that of this process.
        forward: called with each line that the process writes (from a thread of its own).
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], forward: Callable[[str], None]
    ) -> None:
        self._forward = forward
        self.last_lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"output of {self.pid}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code (negative: the signal that ended it), None while it runs."""
        return self._process.poll()

    def interrupt(self) -> None:
        """Ask the process to end."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """End the process at once, also one that is stopped or stuck."""
        self._signal(signal.SIGKILL)

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the process; return whether it has ended."""
        try:
            self._process.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            return False
        self._reader.join(0.2)
        return True

    def _signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            self._process.send_signal(number)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.last_lines.append(line.rstrip("\n"))
            self._forward(line.rstrip("\n"))


def stop_in_order(processes: Sequence[NodeProcess], within_s: float) -> bool:
    """End ``processes`` one after the other; return whether all ended by themselves.

    Each gets its share of the time; what still runs at the end of it is asked anyway, and killed at the end
    of all.
    """
    deadline = time.monotonic() + within_s
    share_s = 0.7 * within_s / max(len(processes), 1)
    for process in processes:
        process.interrupt()
        process.wait(min(share_s, deadline - time.monotonic()))
    clean = True
    for process in processes:
        if not process.wait(deadline - time.monotonic()):
            clean = False
            process.kill()
            process.wait(1.0)
    return clean


def end_with_supervisor() -> None:
    """Let the kernel end this process when the supervisor that started it is killed (Linux)."""
    supervisor = os.environ.get(SUPERVISOR_VARIABLE)
    if supervisor is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(supervisor):
        sys.exit(0)  # it was gone before this process could ask
