# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`kestrel bench stack`: all four nodes on the drive of the demo, as fast as they keep up with it."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
from rich.console import Console

from kestrel.data.bag import deserialize
from kestrel.errors import InputError, KestrelError, SetupError, describe
from kestrel.eval.recording import Traffic
from kestrel.eval.timing import node_timings
from kestrel.report import Figure
from kestrel_nodes import transport
from kestrel_nodes.demo import DRAWN, LABELS_OF, NODES, RIG, Demo, choose_domain, running_nodes
from kestrel_nodes.deployment import config_folder, node_config
from kestrel_nodes.replay.listener import DIAGNOSTICS
from kestrel_nodes.replay.player import Selection
from kestrel_nodes.replay.session import Options, replay

FOLDER: Final = Path("out/demo")
"""Where `make demo` has its drive; it is made if it is not there."""

DIAGNOSTIC_ARRAY: Final = "diagnostic_msgs/msg/DiagnosticArray"
FUSION: Final = "fusion"
LIDAR_INPUT: Final = "points"
COUNTED: Final = ("superseded", "rejected", "dropped", "unwanted")
"""What a node says became of the messages of an input that it did not answer."""

Counters = Mapping[str, Mapping[str, str]]
"""Values by name of the status: ``<node>: <concern>``."""


@dataclass
class Meter:
    """Takes the messages of a replay; keeps when they came and what the nodes last said of themselves."""

    traffic: Traffic = field(default_factory=Traffic)
    said: dict[str, dict[str, str]] = field(default_factory=dict)
    count: int = 0

    def announce(self, topic: str, msgtype: str, *, latched: bool) -> None:
        """Leave out what never comes: nodes say themselves what they did not answer."""

    def write(self, topic: str, msgtype: str, log_time_ns: int, raw: bytes) -> None:
        """Take one message."""
        self.count += 1
        self.traffic.add(topic, msgtype, raw, log_time_ns)
        if topic == DIAGNOSTICS:
            for status in deserialize(raw, DIAGNOSTIC_ARRAY).status:
                self.said[status.name] = {pair.key: pair.value for pair in status.values}

    def wait_for_room(self, seconds: float) -> bool:
        """Return at once: nothing waits to be written."""
        return True

    def close(self) -> None:
        """Nothing is kept open."""


class ProcessWatch:
    """What the process of each node takes: processor time from the first message of the replay on, memory.

    Args:
        supervisor: process id of `kestrel up`, whose children they are.
    """

    def __init__(self, supervisor: int) -> None:
        self._supervisor = supervisor
        self._nodes: dict[str, psutil.Process] = {}
        self._began: dict[str, float] = {}
        self._began_s = 0.0

    def progress(self, done_s: float, total_s: float, rate: float) -> None:
        """Begin with the first message that is published."""
        if not self._nodes:
            self._nodes = {**node_processes(self._supervisor), "replay": psutil.Process()}
            self._began, self._began_s = self._now(), time.monotonic()

    def read(self) -> dict[str, Use]:
        """Return what every process has taken.

        Raises:
            SetupError: a node has ended meanwhile.
        """
        now, passed_s = self._now(), time.monotonic() - self._began_s
        return {
            name: Use((now[name] - began) / passed_s, now[name] - began, self._memory_mib(name))
            for name, began in self._began.items()
        }

    def _now(self) -> dict[str, float]:
        with _all_alive():
            times = {name: process.cpu_times() for name, process in self._nodes.items()}
        return {name: own.user + own.system for name, own in times.items()}

    def _memory_mib(self, name: str) -> float:
        with _all_alive():
            return float(self._nodes[name].memory_full_info().pss) / 2**20


@dataclass(frozen=True)
class Use:
    """What a process takes.

    cores: processor time of a second, on the average. spent_s: processor seconds.
    memory_mib: resident memory at the end; pages that processes share count in parts.
    """

    cores: float
    spent_s: float
    memory_mib: float


@contextmanager
def _all_alive() -> Iterator[None]:
    try:
        yield
    except psutil.NoSuchProcess as error:
        expected = "all alive until the end"
        raise SetupError(describe("processes of the nodes", expected=expected, found=error)) from error


def node_processes(supervisor: int) -> dict[str, psutil.Process]:
    """Return the process of every node below `kestrel up`.

    Raises:
        SetupError: one of NODES is not there.
    """
    found = {}
    for process in psutil.Process(supervisor).children():
        command = process.cmdline()
        if "kestrel_nodes" in command:
            found[command[command.index("kestrel_nodes") + 1]] = process
    if set(found) != set(NODES):
        raise SetupError(describe("nodes of `kestrel up`", expected=sorted(NODES), found=sorted(found)))
    return found


@dataclass(frozen=True)
class Account:
    """What became of the sensor messages that were published for one node.

    counted: not answered, and the node says why in /diagnostics. waiting: may still be answered.
    """

    sent: int
    answered: int
    counted: int
    waiting: int

    @property
    def lost(self) -> int:
        """Messages of which nothing is known."""
        return self.sent - self.answered - self.counted - self.waiting


def account(node: str, inputs: Mapping[str, str], sent: Mapping[str, int], said: Counters) -> Account:
    """Add up what a node says of its inputs.

    Args:
        node: its name.
        inputs: by name below ``~/input/``, the topic.
        sent: by topic, how many sensor messages were published.
        said: the last word of every concern.
    """
    total = answered = counted = waiting = 0
    sync = said.get(f"{node}: sync", {})
    for name, topic in inputs.items():
        if not sent.get(topic):
            continue
        values = said.get(f"{node}: input/{name}", {})
        total += sent[topic]
        answered += int(values.get("answered", 0))
        counted += sum(int(values.get(reason, 0)) for reason in COUNTED)
        sensor = "lidar" if name == LIDAR_INPUT else name.split("/")[0]
        for key, value in sync.items():
            told, _, reason = key.partition(": ")
            if told != sensor or reason in ("", "fused", "missing"):
                continue
            if reason == "waiting":
                waiting += int(value)
            else:
                counted += int(value)
    return Account(total, answered, counted, waiting)


def stack() -> dict[str, Figure]:
    """Replay the drive through all nodes without ever outrunning one that keeps up.

    Before a message that a node would have to drop because it is still busy the replay waits for it, so that
    its rate is the highest that the stack sustains (at most that of the drive).

    Raises:
        KestrelError: a signal ended it: there are no figures of the drive.
    """
    choose_domain()
    transport.prepare()
    demo = Demo(FOLDER.resolve())
    demo.simulate(sys.stderr)
    meter, console = Meter(), Console(stderr=True, highlight=False)
    with running_nodes(FOLDER / "stack.log") as supervisor:
        watch = ProcessWatch(supervisor)
        outcome = replay(
            Options(
                demo.drive,
                lockstep=True,
                selection=Selection(labels_of=LABELS_OF),
                wait_for=NODES,
                exclude=re.compile(DRAWN),
            ),
            say=console.print,
            progress=watch.progress,
            sink=meter,
        )
        if outcome.interrupted:
            raise KestrelError("kestrel bench stack: stopped before the end of the drive")
        uses = watch.read()
    sent = {topic: len(times) for topic, times in meter.traffic.sent.items()}
    accounts = {node: account(node, inputs_of(node), sent, meter.said) for node in NODES}
    return {
        "replay": Figure(outcome.played.rate, "x real time"),
        **figures(meter.traffic, accounts, uses),
    }


def inputs_of(node: str) -> dict[str, str]:
    """Return the topics of a node's inputs by name; the labels of the augment node come to it alone."""
    remappings = node_config(config_folder(), node, RIG).remappings
    return {"labels": f"/{node}/input/labels"} | {
        name.removeprefix("~/input/"): topic for name, topic in remappings
    }


def figures(traffic: Traffic, accounts: Mapping[str, Account], uses: Mapping[str, Use]) -> dict[str, Figure]:
    """Return the rate of fused frames, and of every node what became of its inputs and what it cost.

    Args:
        traffic: when messages were sent and answers arrived.
        accounts: by node.
        uses: by process, what it takes.

    Raises:
        InputError: a node answered nothing at all.
    """
    timings = {
        name.strip("/"): timing for name, timing in node_timings(traffic.sent, traffic.received).items()
    }
    if silent := sorted(set(accounts) - set(timings)):
        raise InputError(
            describe("answers of nodes", expected=f"of {sorted(accounts)}", found=f"none of {silent}")
        )
    frames = timings[FUSION].answered
    result = {"fused frames": Figure(frames / _span_s(traffic, timings[FUSION].inputs), "Hz")}
    for node, own in accounts.items():
        result |= {
            f"{node}: inputs": Figure(own.sent, "messages"),
            f"{node}: answered": Figure(own.answered / own.sent if own.sent else float("nan"), "share"),
            f"{node}: not answered, counted": Figure(own.counted + own.waiting, "messages"),
            f"{node}: lost silently": Figure(own.lost, "messages"),
        }
        for percent in (50, 99):
            result[f"{node}: latency, p{percent}"] = Figure(timings[node].percentile_ms(percent), "ms")
    sums = (sum(getattr(use, what) for use in uses.values()) for what in ("cores", "spent_s", "memory_mib"))
    for name, use in {**uses, "all": Use(*sums)}.items():
        result[f"{name}: processor"] = Figure(use.cores, "cores")
        result[f"{name}: processor per fused frame"] = Figure(1e3 * use.spent_s / frames, "ms")
        result[f"{name}: memory"] = Figure(use.memory_mib, "MiB")
    return result


def _span_s(traffic: Traffic, causes: Sequence[str]) -> float:
    """Return the time from the first message for the fusion node to its last answer."""
    began = min(min(traffic.sent[topic].values()) for topic in causes)
    answers = [times for topic, times in traffic.received.items() if topic.startswith(f"/{FUSION}/")]
    return (max(max(times.values()) for times in answers if times) - began) / 1e9
