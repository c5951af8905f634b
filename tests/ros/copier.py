# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A node that copies its input: on it is shown what every node does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from sensor_msgs.msg import PointCloud2
from std_srvs.srv import Trigger

from kestrel_nodes.base import KestrelNode
from kestrel_nodes.parameters import NodeParameters, parameter
from kestrel_nodes.ports import Input
from kestrel_nodes.qos import RELIABILITY, input_qos
from kestrel_nodes.stamps import stamp_ns
from tests.ros.graph import Graph
from tests.ros.messages import START_NS, cloud
from tests.ros.stand_ins import Gate

INPUT = "copier: input/points"
POINT = [[1.0, 2.0, 3.0, 0.5]]


@dataclass(frozen=True)
class CopierParameters(NodeParameters):
    points_reliability: str = parameter("best_effort", "Reliability of the input.", choices=RELIABILITY)
    size: int = parameter(3, "A number.", minimum=1, maximum=9)


class Copier(KestrelNode[CopierParameters]):
    """Publishes what it receives; fails where it is told to."""

    parameters_type = CopierParameters

    def __init__(self, name: str, **options: object) -> None:
        self.gate = Gate()
        self.broken_setup: Exception | None = None
        self.on_timer: Callable[[], None] = lambda: None
        self.resets: list[tuple[str, str | None, str]] = []
        super().__init__(name, **options)

    def setup(self) -> None:
        if self.broken_setup is not None:
            raise self.broken_setup
        self.copies = self.add_output("points", PointCloud2)
        qos = input_qos(self.params.points_reliability)
        self.add_input("points", PointCloud2, self.copy, qos=qos)
        self.add_timer(0.05, lambda: self.on_timer())
        self.add_service(Trigger, "trigger", self.trigger)

    def copy(self, message: PointCloud2) -> None:
        self.gate.pass_through()
        self.copies.publish(message)

    def trigger(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        raise RuntimeError("the service is broken")

    def reset(self, cause: str, source: Input | None) -> None:
        self.resets.append(("receiving", source and source.topic, threading.current_thread().name))

    def reset_pipeline(self, cause: str, source: Input | None) -> None:
        self.resets.append(("pipeline", source and source.topic, threading.current_thread().name))


class Rig:
    """A copier, a publisher to it and what came back."""

    def __init__(self, graph: Graph, **parameters: object) -> None:
        self.graph = graph
        self.node = graph.add(Copier, "copier", **parameters)
        self.publisher = graph.publisher(PointCloud2, "/copier/input/points")
        self.copies = graph.collect(PointCloud2, "/copier/output/points")

    def send(self, at_ms: int, frame_id: str = "lidar") -> None:
        self.publisher.publish(cloud(POINT, at_ms, frame_id))

    def answer_to(self, at_ms: int) -> None:
        before = len(self.copies)
        self.send(at_ms)
        self.graph.until(lambda: len(self.copies) > before, f"the answer to {at_ms} ms")
        assert self.stamps_ms[-1] == at_ms

    @property
    def stamps_ms(self) -> list[int]:
        return [(stamp_ns(copy.header.stamp) - START_NS) // 1_000_000 for copy in self.copies]

    def counted(self, reason: str) -> int:
        return self.node.inputs["points"].concern.counted(reason)
