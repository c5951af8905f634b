# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The nodes below `kestrel demo` and `kestrel bench stack`: none is left behind, none ends unnoticed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

pytest.importorskip("rclpy")

from kestrel.errors import KestrelError
from kestrel_nodes import stack_bench
from kestrel_nodes.demo import Demo, running_nodes
from kestrel_nodes.replay.player import Played
from kestrel_nodes.replay.session import Outcome

WAITS = """
import pathlib, signal, subprocess, sys, time
from kestrel_nodes import demo
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell lets what it runs in the background ignore it
start = subprocess.Popen
waits = [sys.executable, "-c", "input()"]
demo.subprocess.Popen = lambda command, **options: start(waits, stdin=subprocess.PIPE, **options)
with demo.running_nodes(pathlib.Path(sys.argv[1])) as pid:
    print(pid, flush=True)
    signal.pause()
"""


def test_nodes_end_with_a_demo_that_is_terminated(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    nodes = psutil.Process(int(process.stdout.readline()))
    try:
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
        assert not nodes.is_running()
    finally:
        process.kill()
        process.communicate()
        if nodes.is_running():
            nodes.kill()


def test_nodes_that_ended_first_are_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    log = tmp_path / "nodes.log"
    expected = re.escape(f"kestrel up: ended with exit code 1; see {log}")

    def replay(nodes: int) -> None:
        os.waitid(os.P_PID, nodes, os.WEXITED | os.WNOWAIT)
        raise KestrelError("kestrel replay: ended with exit code 2")

    with pytest.raises(KestrelError, match=expected), running_nodes(log) as pid:
        replay(pid)


def test_the_last_lines_hold_commands_that_need_no_activated_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Demo(tmp_path).say_where(tmp_path / "recording.mcap", tmp_path, 1.0)
    said = "".join(capsys.readouterr().out.split())
    assert f"{Path(sys.executable).with_name('kestrel')}eval{tmp_path}/recording.mcap" in said


def test_interrupted_bench_has_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def nodes(log: Path) -> Iterator[int]:
        yield 0

    outcome = Outcome(Played(), {}, acknowledged=True, damage=None, interrupted=True)
    monkeypatch.setattr(Demo, "simulate", lambda *_: None)
    monkeypatch.setattr(stack_bench, "choose_domain", lambda: None)
    monkeypatch.setattr(stack_bench, "running_nodes", nodes)
    monkeypatch.setattr(stack_bench, "replay", lambda *_, **__: outcome)
    monkeypatch.setattr("kestrel_nodes.transport.prepare", lambda: None)
    with pytest.raises(KestrelError, match="stopped before the end of the drive"):
        stack_bench.stack()
