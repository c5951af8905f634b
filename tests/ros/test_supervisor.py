# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The rules of the supervisor, on a driven clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from kestrel.errors import KestrelError, SetupError
from kestrel_nodes.supervisor.supervisor import ACTIVATE, CONFIGURE, Limits, Managed, Phase, Supervisor

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
    reached: bool = False
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


def test_request_that_was_only_late_makes_the_one_sent_again_impossible_and_that_is_no_failure() -> None:
    bench = Bench("node")
    link = bench.nodes["node"].link
    link.obeys = False
    bench.run(0.5)
    link.lost = True
    bench.run(0.1)
    link.lost = False
    assert link.requests == [CONFIGURE, CONFIGURE]
    link.answer = False  # to the second: the first was obeyed, of which the next heartbeat tells
    bench.run(0.5)
    link.reached = True
    bench.run(0.1)
    assert bench.nodes["node"].phase is Phase.INACTIVE


def test_warning_of_a_node_is_no_reason_for_its_failure() -> None:
    bench = Bench("node")
    link = bench.nodes["node"].link
    link.obeys = False
    bench.run(0.5)
    link.answer = False
    link.problems["life cycle"] = (1, "parameter: expected a known one, found thredas")
    bench.run(0.5)
    link.problems["life cycle"] = (2, "configure failed: weights: expected a file")
    with pytest.raises(SetupError, match="node node: configure failed: weights: expected a file"):
        bench.run(0.1)
