# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What is written down while nodes run: their memory, threads, files and latencies, and what they say."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import psutil
from std_msgs.msg import Float64

from tests.ros.graph import Graph
from tests.soak.sensors import Sensors

SAMPLE_EVERY_S: Final = 0.25

Series = list[tuple[float, float]]
"""Seconds since the beginning, and a value."""


@dataclass
class Record:
    """One node over time.

    memory_mb: resident, in 1e6 bytes. waited: latency of each answer in times of its own work, which does
    not depend on how fast the machine is; latency_ms: the same in milliseconds.
    """

    memory_mb: Series = field(default_factory=list)
    threads: Series = field(default_factory=list)
    files: Series = field(default_factory=list)
    latency_ms: Series = field(default_factory=list)
    work_ms: Series = field(default_factory=list)

    @property
    def waited(self) -> Series:
        """Latency in times of work, answer by answer."""
        work = dict(self.work_ms)
        return [(at, value / work[at]) for at, value in self.latency_ms if work.get(at)]


class Watch:
    """Feeds nodes and records them.

    Args:
        graph: in which they are.
        processes: ids by name of the node.
    """

    def __init__(self, graph: Graph, processes: Mapping[str, int], sensors: Mapping[str, Sensors]) -> None:
        self.graph = graph
        self.processes = {name: psutil.Process(number) for name, number in processes.items()}
        self.records = {name: Record() for name in processes}
        self.sensors = sensors
        self.began_s = time.monotonic()
        self._work_ms = dict.fromkeys(processes, 0.0)
        for name in processes:
            self._listen(name)

    @property
    def now_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began_s

    def _listen(self, name: str) -> None:
        record, sensors = self.records[name], self.sensors[name]

        def work(message: Float64) -> None:
            self._work_ms[name] = message.data

        def latency(message: Float64) -> None:
            at = self.now_s
            record.latency_ms.append((at, message.data))
            record.work_ms.append((at, self._work_ms[name]))
            sensors.answered()

        for topic, take in (("processing_time_ms", work), ("pipeline_latency_ms", latency)):
            self.graph.node.create_subscription(Float64, f"/{name}/debug/{topic}", take, 50)

    def run(self, seconds: float) -> None:
        """Record until ``seconds`` after the beginning."""
        next_s = self.now_s
        while self.now_s < seconds:
            if self.now_s >= next_s:
                next_s += SAMPLE_EVERY_S
                self._sample()
            self.graph.executor.spin_once(timeout_sec=0.02)

    def _sample(self) -> None:
        at = self.now_s
        for name, process in self.processes.items():
            record = self.records[name]
            record.memory_mb.append((at, process.memory_info().rss / 1e6))
            record.threads.append((at, process.num_threads()))
            record.files.append((at, process.num_fds()))


def listen_to(graph: Graph, topics: Iterable[tuple[type, str]]) -> None:
    """Subscribe, so that it is published, and look at nothing."""
    for kind, topic in topics:
        graph.node.create_subscription(kind, topic, lambda _: None, 5, raw=True)
