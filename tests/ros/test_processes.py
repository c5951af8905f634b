# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Nodes as processes: they stop in time with exit code 0, whatever they are doing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Header

from kestrel_nodes import NODES
from tests.ros.graph import Graph
from tests.ros.messages import cloud

ROOT = Path(__file__).parents[2]
EXECUTABLES = ROOT / "ros_ws" / "src" / "kestrel_nodes" / "executables"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOP_WITHIN_S = 3.0


class Process:
    """A node's process and its heartbeat."""

    def __init__(self, graph: Graph, name: str, command: list[str]) -> None:
        self.graph = graph
        self.name = name
        self.beats: list[Header] = graph.collect(Header, f"/{name}/heartbeat", matched=False)
        self.process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        graph.until(lambda: self.beats or self.process.poll() is not None, "a heartbeat", within_s=60.0)
        assert self.process.poll() is None, self.process.communicate()[1]

    def request(self, transition: int, *, wait: bool = True) -> None:
        client = self.graph.node.create_client(ChangeState, f"/{self.name}/change_state")
        self.graph.until(client.service_is_ready, "the life cycle service")
        future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
        if wait:
            self.graph.until(future.done, "the transition")
            assert future.result().success

    def stop(self, number: int) -> None:
        """Send the signal and check that the process ends in time with code 0."""
        started = time.monotonic()
        self.process.send_signal(number)
        errors = self.process.communicate(timeout=10)[1]
        assert self.process.returncode == 0, errors
        assert time.monotonic() - started < STOP_WITHIN_S
        assert "Traceback" not in errors

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        process.end()


@pytest.mark.parametrize("name", sorted(NODES))
def test_each_executable_starts_its_node_and_stops_on_a_signal(
    graph: Graph, processes: list[Process], name: str
) -> None:
    process = Process(graph, name, [str(EXECUTABLES / name)])
    processes.append(process)
    assert process.beats[-1].frame_id == "unconfigured"
    process.stop(SIGNALS[len(name) % 2])


@pytest.mark.parametrize("number", SIGNALS)
def test_a_node_stops_in_the_middle_of_an_answer(graph: Graph, processes: list[Process], number: int) -> None:
    process = Process(graph, "segmentation", ["-m", "tests.ros.slow_process", "answer"])
    processes.append(process)
    process.request(Transition.TRANSITION_CONFIGURE)
    process.request(Transition.TRANSITION_ACTIVATE)
    publisher = graph.publisher(PointCloud2, "/segmentation/input/points")
    graph.collect(PointCloud2, "/segmentation/output/points")

    def busy() -> bool:
        nonlocal sent_at
        points = graph.status("segmentation: input/points")
        # What is sent before the node has found the publisher is lost.
        lost = not points.count("received") and time.monotonic() - sent_at > 1.0
        if points.count("unwanted") + 1 > len(sent) or lost:
            sent_at = time.monotonic()
            sent.append(100 * len(sent))
            publisher.publish(cloud([[1.0, 2.0, 3.0, 0.5]], sent[-1]))
        return "in work" in graph.status("segmentation: model").message

    sent: list[int] = []
    sent_at = 0.0
    graph.until(busy, "a cloud in work")
    process.stop(number)


def test_a_node_stops_while_it_loads_its_network(graph: Graph, processes: list[Process]) -> None:
    process = Process(graph, "segmentation", ["-m", "tests.ros.slow_process", "load"])
    processes.append(process)
    process.request(Transition.TRANSITION_CONFIGURE, wait=False)
    silent_since = time.monotonic()
    count = 0

    def silent() -> bool:
        nonlocal count, silent_since
        if len(process.beats) != count:
            count, silent_since = len(process.beats), time.monotonic()
        return time.monotonic() - silent_since > 1.5

    graph.until(silent, "the node to be busy loading")
    process.stop(signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_node_that_is_told_to_stop_while_it_starts_stops(number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", str(EXECUTABLES / "segmentation")],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "rclpy" in line:
                break
        process.send_signal(number)
        process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 0
