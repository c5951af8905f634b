# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The real nodes at twice the rate that they keep up with stay as they are.

KESTREL_SOAK_MINUTES says how long they run (`make soak MINUTES=30`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

import pytest
from kestrel_msgs.msg import PerceivedObjects
from nav_msgs.msg import OccupancyGrid
from sensor_msgs.msg import PointCloud2
from vision_msgs.msg import Classification
from visualization_msgs.msg import MarkerArray

from tests.ros.graph import Graph, StatusView
from tests.soak.judge import faults, odd, report
from tests.soak.nodes import running
from tests.soak.sensors import Vehicle, sending, sensors_of
from tests.soak.watch import Watch, listen_to

SECONDS: Final = 60 * float(os.environ.get("KESTREL_SOAK_MINUTES", "0.9"))
WARM_UP_S: Final = min(0.35 * SECONDS, 60.0)
NODES: Final = ("fusion", "segmentation", "video")
LEAKY: Final = "leaky"
LEAKY_HZ: Final = 5.0
OUTPUTS: Final = (
    (PerceivedObjects, "/fusion/output/objects"),
    (MarkerArray, "/fusion/output/markers"),
    (OccupancyGrid, "/fusion/output/map/drivable_area"),
    (PointCloud2, "/segmentation/output/points"),
    (Classification, "/video/output/front/event"),
    (Classification, f"/{LEAKY}/output/front/event"),
)

pytestmark = pytest.mark.timeout(SECONDS + 600)


@dataclass
class Run:
    """What was written down, and what was said after the nodes had warmed up."""

    watch: Watch
    statuses: dict[str, StatusView]

    def faults(self, node: str) -> list[str]:
        return list(faults(self.watch.records[node], WARM_UP_S, SECONDS))

    def sent(self, node: str) -> int:
        began = self.watch.began_s
        return sum(WARM_UP_S <= at - began < SECONDS for at in self.watch.sensors[node].sent)

    def answers(self, node: str) -> int:
        return sum(WARM_UP_S <= at < SECONDS for at, _ in self.watch.records[node].latency_ms)

    def said_by(self, node: str) -> dict[str, StatusView]:
        return {name: view for name, view in self.statuses.items() if name.startswith(f"{node}: ")}


@pytest.fixture(scope="module")
def run(ros_domain: int, tmp_path_factory: pytest.TempPathFactory) -> Run:
    log = tmp_path_factory.mktemp("soak") / "nodes.log"
    with Graph() as graph, running(graph, (*NODES, LEAKY), log) as processes:
        listen_to(graph, OUTPUTS)
        sensors = {name: sensors_of(graph, name) for name in NODES}
        sensors[LEAKY] = sensors_of(graph, LEAKY, most_hz=LEAKY_HZ)
        vehicle = Vehicle(graph)
        watch = Watch(graph, processes, sensors)
        with sending([vehicle, *sensors.values()]):
            watch.run(WARM_UP_S)
            before = {name: view.updates for name, view in graph.statuses.items()}
            watch.run(SECONDS)
        result = Run(watch, graph.statuses)
        for name, view in result.statuses.items():
            del view.history[: before.get(name, 0)]
    for name, record in watch.records.items():
        print(report(name, record, WARM_UP_S, SECONDS, result.sent(name)))
    return result


@pytest.mark.parametrize("node", NODES)
def test_memory_threads_files_and_latency_stay(run: Run, node: str) -> None:
    assert run.faults(node) == []


@pytest.mark.parametrize("node", NODES)
def test_a_node_had_more_than_it_could_answer(run: Run, node: str) -> None:
    assert run.sent(node) > 1.5 * run.answers(node) > 0


@pytest.mark.parametrize("node", NODES)
def test_every_concern_stays_as_expected(run: Run, node: str) -> None:
    said = run.said_by(node)
    assert {f"{node}: {concern}" for concern in ("life cycle", "model", "sync", "output")} <= set(said)
    strange = {f"{name}: {text}" for name, view in said.items() for text in odd(view.history)}
    assert not strange, "\n".join(sorted(strange))
    assert any("slower than this input" in text for view in said.values() for _, text in view.history)


def test_a_leak_would_have_been_seen(run: Run) -> None:
    found = " ".join(run.faults(LEAKY))
    for what in ("memory grows by", "threads grew", "files grew"):
        assert what in found
