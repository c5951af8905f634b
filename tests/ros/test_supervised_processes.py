# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The supervisor over processes that are killed and stuck."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import psutil
import pytest

from kestrel.errors import SetupError
from kestrel_nodes.supervisor.domain import claimed_domain
from kestrel_nodes.supervisor.lifecycle import Links
from kestrel_nodes.supervisor.process import NodeProcess, stop_in_order
from kestrel_nodes.supervisor.session import refuse_unsupervised

STUB = Path(__file__).with_name("stub_node.py")
DEADLINE_S = 40.0


def shell(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def lines() -> list[str]:
    return []


def start(code: str, lines: list[str]) -> NodeProcess:
    """Return a process that has written ``ready``."""
    process = NodeProcess(shell(code), {}, lines.append)
    wait_for(lambda: "ready" in process.last_lines, "ready")
    return process


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    poll = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        poll.wait(0.02)


def test_processes_are_stopped_in_the_given_order(lines: list[str]) -> None:
    polite = (
        "import signal, sys\n"
        "def end(*_): print('ended {0}'); sys.exit(0)\n"
        "signal.signal(signal.SIGINT, end)\nprint('ready')\nsignal.pause()"
    )
    processes = [start(polite.replace("{0}", name), lines) for name in ("second", "first")]
    assert stop_in_order(processes, 5.0)
    assert [line for line in lines if "ended" in line] == ["ended second", "ended first"]
    assert [process.returncode for process in processes] == [0, 0]


def test_stubborn_process_is_killed_within_the_time(lines: list[str]) -> None:
    stubborn = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('ready')\nsignal.pause()"
    process = start(stubborn, lines)
    begun = time.monotonic()
    assert not stop_in_order([process], 1.0)
    assert process.returncode == -signal.SIGKILL
    assert time.monotonic() - begun < 3.0


class Up:
    """A supervisor process over stub nodes; its output is read line by line."""

    def __init__(self, *behaviours: str, check: bool = False) -> None:
        code = (
            "import sys; from rich.console import Console\n"
            "from kestrel_nodes.supervisor.display import Display\n"
            "from kestrel_nodes.supervisor.session import run\n"
            "from kestrel_nodes.supervisor.supervisor import Limits\n"
            f"commands = {{f'stub{{i}}': [sys.executable, {str(STUB)!r}, f'stub{{i}}', b]"
            f" for i, b in enumerate({list(behaviours)!r})}}\n"
            "with Display((*commands, 'up'), Console(width=300)) as display:\n"
            f"    run(commands, display, check={check}, limits=Limits(hang_s=3.0, backoff_s=0.2))\n"
        )
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            shell(code), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def await_line(self, pattern: str, times: int = 1) -> list[re.Match[str]]:
        """Return the matches of ``pattern`` once there are ``times`` of them."""

        def matches() -> list[re.Match[str]]:
            return [found for line in list(self.lines) if (found := re.search(pattern, line))]

        try:
            wait_for(lambda: len(matches()) >= times, pattern)
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self.lines])) from None
        return matches()

    def pid(self, node: str) -> int:
        """Return the process id of the newest process of a node."""
        return int(self.await_line(rf"{node} \| configured at .* as (\d+)")[-1][1])

    def stop(self, number: signal.Signals = signal.SIGINT) -> float:
        """Stop it and return how long that took."""
        begun = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(DEADLINE_S)
        took = time.monotonic() - begun
        self.reader.join(5)
        return took


@pytest.fixture
def up() -> Iterator[Callable[..., Up]]:
    made: list[Up] = []

    def make(*behaviours: str, check: bool = False) -> Up:
        made.append(Up(*behaviours, check=check))
        return made[-1]

    yield make
    for item in made:
        if item.process.poll() is None:
            item.stop(signal.SIGKILL)


def gone(pid: int) -> bool:
    """Whether no process ``pid`` runs (a zombie does not run)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nodes_come_up_in_order_and_end_in_reverse_with_exit_code_0(
    up: Callable[..., Up], number: signal.Signals
) -> None:
    running = up("good", "good")
    running.await_line("all nodes are active")
    active = [float(running.await_line(rf"stub{i} \| active at ([\d.]+)")[0][1]) for i in (0, 1)]
    assert active[0] < active[1]
    pids = [running.pid("stub0"), running.pid("stub1")]
    assert running.stop(number) < 5.0
    assert running.process.returncode == 0
    stopped = [float(running.await_line(rf"stub{i} \| stopped at ([\d.]+)")[0][1]) for i in (0, 1)]
    assert stopped[1] < stopped[0]
    assert all(gone(pid) for pid in pids)


def test_killed_and_stuck_nodes_are_restarted_and_active_again(up: Callable[..., Up]) -> None:
    running = up("good", "good")
    running.await_line("all nodes are active")
    first, second = running.pid("stub0"), running.pid("stub1")
    os.kill(first, signal.SIGKILL)
    running.await_line(r"stub0 \| ended with signal SIGKILL")
    running.await_line("all nodes are active", times=2)
    assert running.pid("stub0") != first
    os.kill(second, signal.SIGSTOP)
    running.await_line(r"stub1 \| hangs: no heartbeat")
    running.await_line("all nodes are active", times=3)
    assert gone(second)
    assert running.stop() < 5.0
    assert running.process.returncode == 0


def test_check_loads_and_ends_by_itself(up: Callable[..., Up]) -> None:
    checked = up("good", check=True)
    checked.process.wait(DEADLINE_S)
    assert checked.process.returncode == 0
    checked.await_line("all nodes are loaded")
    assert not any("active at" in line for line in checked.lines)


def test_check_that_is_stopped_before_all_is_loaded_fails(up: Callable[..., Up]) -> None:
    checked = up("slow", check=True)
    checked.await_line(r"stub0 \| loading")
    checked.stop()
    checked.await_line("KestrelError: kestrel up --check: stopped before all nodes were loaded")
    assert checked.process.returncode != 0


def test_nodes_stay_when_the_supervisor_was_stopped_for_a_while(up: Callable[..., Up]) -> None:
    running = up("good", "good")
    running.await_line("all nodes are active")
    running.process.send_signal(signal.SIGSTOP)
    until = time.monotonic() + 5.0
    wait_for(lambda: time.monotonic() > until, "longer than a node may be silent")
    running.process.send_signal(signal.SIGCONT)
    os.kill(running.pid("stub1"), signal.SIGKILL)
    running.await_line(r"stub1 \| ended with signal SIGKILL")
    assert not any("hangs" in line for line in running.lines), "it looked at stub0 before stub1"
    assert running.stop() < 5.0


def test_node_that_cannot_be_configured_ends_everything_with_its_reason(up: Callable[..., Up]) -> None:
    broken = up("good", "broken")
    broken.await_line(r"stub\d \| starting", times=2)
    # The broken node may fail before the good one is configured, which then never says its process id.
    nodes = [each.pid for each in psutil.Process(broken.process.pid).children(recursive=True)]
    assert len(nodes) >= 2
    broken.await_line("SetupError: node stub1: configure failed: weights of stub: expected a file")
    broken.process.wait(DEADLINE_S)
    assert broken.process.returncode != 0
    assert all(gone(pid) for pid in nodes)


def test_second_supervisor_in_the_same_domain_is_refused(up: Callable[..., Up]) -> None:
    first = up("good")
    first.await_line("all nodes are active")
    second = up("good")
    holder = rf"kestrel up \(process {first.process.pid}\)"
    second.await_line(rf"SetupError: ROS domain .* expected no other Kestrel nodes.* found {holder}")
    assert not any("stub0 |" in line for line in second.lines), "it started nothing"
    assert first.process.poll() is None
    assert first.stop() < 5.0


def test_nodes_without_a_supervisor_are_not_doubled() -> None:
    class Heard:
        def __init__(self, *heard: str) -> None:
            self.links = {
                name: SimpleNamespace(heard=1.0 if name in heard else None) for name in ("first", "second")
            }

        def spin(self, seconds: float) -> None:
            pass

    refuse_unsupervised(cast(Links, Heard()))
    with pytest.raises(SetupError, match=r"ROS domain .* expected no other Kestrel nodes.* found second"):
        refuse_unsupervised(cast(Links, Heard("second")))


def test_domain_is_free_again_after_its_supervisor() -> None:
    with (
        claimed_domain(),
        pytest.raises(SetupError, match=rf"found kestrel up \(process {os.getpid()}\)"),
        claimed_domain(),
    ):
        pass
    with claimed_domain():
        pass


def test_nodes_end_when_the_supervisor_is_killed(up: Callable[..., Up]) -> None:
    running = up("good")
    running.await_line("all nodes are active")
    pid = running.pid("stub0")
    running.stop(signal.SIGKILL)
    wait_for(lambda: gone(pid), "the end of the node")
