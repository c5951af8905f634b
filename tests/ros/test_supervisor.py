# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The supervisor: its rules on a driven clock, and all of it over processes that are killed and stuck."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import psutil
import pytest

from kestrel.errors import KestrelError, SetupError
from kestrel_nodes.supervisor.domain import claimed_domain
from kestrel_nodes.supervisor.lifecycle import Links
from kestrel_nodes.supervisor.process import NodeProcess, stop_in_order
from kestrel_nodes.supervisor.session import refuse_unsupervised
from kestrel_nodes.supervisor.supervisor import ACTIVATE, CONFIGURE, Limits, Managed, Phase, Supervisor

STUB = Path(__file__).with_name("stub_node.py")
DEADLINE_S = 40.0
LIMITS = Limits(hang_s=5.0, backoff_s=1.0, restarts=2, window_s=100.0, configure_s=30.0, start_s=10.0)


@dataclass
class FakeProcess:
    returncode: int | None = None
    last_lines: deque[str] = field(default_factory=deque)

    def kill(self) -> None:
        self.returncode = -9

    def wait(self, seconds: float) -> bool:
        return self.returncode is not None


@dataclass
class FakeLink:
    """A node that does what it is asked at once, unless told otherwise."""

    obeys: bool = True
    there: bool = True
    answer: bool | None = None
    silent: float = 0.0
    lost: bool = False
    problems: dict[str, tuple[int, str]] = field(default_factory=dict)
    requests: list[int] = field(default_factory=list)

    def request(self, transition: int) -> None:
        self.requests.append(transition)
        self.answer = True if self.obeys else None

    def forget(self) -> None:
        self.answer, self.silent = None, 0.0

    def silent_s(self, now: float) -> float:
        return self.silent

    def ignored(self, since: float) -> bool:
        return self.lost


class Bench:
    """A supervisor of fakes; `run` lets time pass in steps of a tenth of a second."""

    def __init__(self, *names: str, activate: bool = True) -> None:
        self.now = 0.0
        self.said: list[str] = []
        self.started: list[str] = []
        self.nodes = {name: Managed(name, self._starter(name), FakeLink()) for name in names}
        self.supervisor = Supervisor(
            list(self.nodes.values()),
            LIMITS,
            lambda name, text: self.said.append(f"{name}: {text}"),
            activate=activate,
        )

    def _starter(self, name: str) -> Callable[[], FakeProcess]:
        def start() -> FakeProcess:
            self.started.append(name)
            return FakeProcess()

        return start

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.supervisor.step(self.now)
            self.now += 0.1


def test_nodes_load_together_and_become_active_in_order() -> None:
    bench = Bench("first", "second")
    bench.nodes["first"].link.obeys = False
    bench.run(1)
    assert bench.started == ["first", "second"]
    assert bench.nodes["second"].phase is Phase.INACTIVE, "it waits for the one before it"
    bench.nodes["first"].link.answer = True
    bench.run(0.2)
    bench.nodes["first"].link.answer = True
    bench.run(1)
    assert bench.supervisor.up
    assert bench.said.index("first: active") < bench.said.index("second: active")


def test_check_ends_before_activation() -> None:
    bench = Bench("node", activate=False)
    bench.run(1)
    assert bench.supervisor.up
    assert bench.nodes["node"].link.requests == [CONFIGURE]


def test_dead_node_comes_back_active_and_the_others_stay() -> None:
    bench = Bench("first", "second")
    bench.run(1)
    bench.nodes["first"].process.returncode = -9
    bench.run(0.5)
    assert bench.nodes["first"].phase is Phase.WAITING
    assert bench.nodes["second"].phase is Phase.ACTIVE
    bench.run(2)
    assert bench.supervisor.up
    assert bench.started == ["first", "second", "first"]
    assert bench.nodes["first"].link.requests == [CONFIGURE, ACTIVATE] * 2
    assert "first: ended with signal SIGKILL; restart in 1.0 s" in bench.said


def test_node_without_heartbeat_is_killed_and_restarted() -> None:
    bench = Bench("node")
    bench.run(10)
    stuck = bench.nodes["node"].process
    bench.nodes["node"].link.silent = 5.1
    bench.run(0.1)
    assert stuck.returncode == -9
    assert "no heartbeat for 5.1 s" in bench.said[-1]
    bench.run(2)
    assert bench.supervisor.up


def test_supervisor_that_was_stopped_itself_gives_the_nodes_time_to_be_heard() -> None:
    bench = Bench("node")
    bench.run(10)
    bench.now += 60
    bench.nodes["node"].link.silent = 60.0
    bench.supervisor.overslept(bench.now)
    bench.run(4.9)
    assert bench.supervisor.up
    bench.run(0.5)
    assert "no heartbeat for 5." in bench.said[-1]


def test_what_a_node_wrote_last_is_read_before_it_is_told() -> None:
    class Unread(FakeProcess):
        def wait(self, seconds: float) -> bool:
            self.last_lines.append("out of luck")
            return True

    bench = Bench("node")
    for _ in range(2):
        bench.run(5)
        bench.nodes["node"].process.returncode = 1
    bench.run(5)
    bench.nodes["node"].process = Unread(returncode=3)
    with pytest.raises(KestrelError, match="exit code 3; its last line was: out of luck"):
        bench.run(0.1)


def test_silence_while_loading_is_no_hang_but_loading_has_a_limit() -> None:
    bench = Bench("node")
    bench.nodes["node"].link.obeys = False
    bench.nodes["node"].link.silent = 100.0
    bench.run(29)
    assert bench.nodes["node"].phase is Phase.CONFIGURING
    bench.run(2)
    assert bench.nodes["node"].total_restarts == 1


def test_node_that_keeps_failing_is_given_up_with_its_last_words() -> None:
    bench = Bench("node")
    for _ in range(2):
        bench.run(5)
        bench.nodes["node"].process.returncode = 1
    bench.run(5)
    assert bench.supervisor.up
    bench.nodes["node"].process.last_lines.append("out of luck")
    bench.nodes["node"].process.returncode = 3
    with pytest.raises(
        KestrelError, match=r"node node: expected at most 2 restarts.*exit code 3.*out of luck"
    ):
        bench.run(0.1)


def test_restarts_long_ago_do_not_count() -> None:
    bench = Bench("node")
    for _ in range(5):
        bench.run(60)
        bench.nodes["node"].process.returncode = 1
        bench.run(10)
    assert bench.nodes["node"].total_restarts == 5
    assert bench.supervisor.up


def test_failed_configure_ends_everything_with_the_reason_of_the_node() -> None:
    bench = Bench("node")
    link = bench.nodes["node"].link
    link.obeys = False
    bench.run(0.5)
    link.answer = False
    link.problems["life cycle"] = (2, "configure failed: weights: expected a file")
    with pytest.raises(SetupError, match="node node: configure failed: weights: expected a file"):
        bench.run(0.1)


def test_reason_that_comes_after_the_answer_is_waited_for_but_not_for_ever() -> None:
    late, silent = Bench("node"), Bench("node")
    for bench in (late, silent):
        bench.nodes["node"].link.obeys = False
        bench.run(0.5)
        bench.nodes["node"].link.answer = False
        bench.run(1.0)
    late.nodes["node"].process.last_lines.append("[ERROR] [1.0] [node]: configure failed: no weights")
    with pytest.raises(SetupError, match="node node: configure failed: no weights"):
        late.run(0.1)
    with pytest.raises(SetupError, match="node node: could not be configured"):
        silent.run(2.0)


def test_request_that_a_dead_server_swallowed_is_sent_again() -> None:
    bench = Bench("node")
    link = bench.nodes["node"].link
    link.obeys = False
    bench.run(0.5)
    link.lost, link.obeys = True, True
    bench.run(0.1)
    link.lost = False
    bench.run(1)
    assert link.requests == [CONFIGURE, CONFIGURE, ACTIVATE]
    assert bench.supervisor.up


# With real processes.


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
