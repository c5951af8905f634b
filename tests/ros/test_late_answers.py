# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A job that outlasts a deactivation: nothing of it is published, or counted, in the next activation."""

from __future__ import annotations

from typing import Any

import pytest
from kestrel_msgs.srv import RenderImages
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image, PointCloud2

from kestrel.errors import ModelError
from kestrel.types import BevMap, Boxes3D, SensorFrame
from kestrel_nodes import working
from kestrel_nodes.fusion import FusionNode
from tests.ros.copier import Rig as CopierRig
from tests.ros.fusion_rig import FixedDetector, Rig
from tests.ros.graph import Graph
from tests.ros.messages import cloud
from tests.ros.stand_ins import Augment, Gate, Segmentation

SUCCESS = TransitionCallbackReturn.SUCCESS
POINTS = [[5.0, 1.0, 0.0, 0.2], [6.0, -1.0, 1.0, 0.9]]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping nodes give up waiting for the message in work at once."""
    monkeypatch.setattr(working, "STOP_TIMEOUT_S", 0.01)


class Busy:
    """A segmentation node with a message in work, which ends when the gate opens."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.node = graph.add(Segmentation, "segmentation", base_frame="")
        self.publisher = graph.publisher(PointCloud2, "/segmentation/input/points")
        self.answers = graph.collect(PointCloud2, "/segmentation/output/points")
        self.node.gate.open.clear()
        self.port, self.output = self.node.clouds, self.node.labelled
        self.publisher.publish(cloud(POINTS, 10))
        graph.until(lambda: self.node.gate.entered == 2, "the message in work")

    def end(self) -> None:
        self.node.gate.open.set()
        self.graph.until(lambda: self.node.worker.busy_s == 0.0, "the end of the message in work")
        self.graph.spin_for(0.1)

    def answer(self, at_ms: int) -> None:
        self.graph.until(lambda: self.publisher.get_subscription_count() == 1, "the subscription")
        self.graph.until(lambda: self.node.labelled.wanted, "the output to be wanted")
        self.publisher.publish(cloud(POINTS, at_ms))
        self.graph.until(lambda: self.answers, "an answer")


def test_an_answer_after_deactivation_is_not_counted_as_one(graph: Graph) -> None:
    busy = Busy(graph)
    assert busy.node.trigger_deactivate() is SUCCESS
    busy.end()
    concern = busy.port.concern
    assert (concern.counted("answered"), concern.counted("rejected")) == (0, 1)
    assert (busy.output.published, busy.answers) == (0, [])


def test_an_answer_is_not_published_by_the_next_activation(graph: Graph) -> None:
    busy = Busy(graph)
    assert busy.node.trigger_deactivate() is SUCCESS
    assert busy.node.trigger_activate() is SUCCESS
    busy.end()
    assert busy.answers == []
    assert busy.port.concern.counted("answered") == 0
    busy.answer(20)
    concern = busy.port.concern
    assert (concern.counted("answered"), concern.counted("rejected")) == (1, 1)
    assert busy.node.health["output"].counted("exceptions") == 0


def test_an_answer_is_not_published_nor_counted_by_the_next_configuration(graph: Graph) -> None:
    busy = Busy(graph)
    assert busy.node.trigger_deactivate() is SUCCESS
    assert busy.node.trigger_cleanup() is SUCCESS
    held = busy.node.gate.leave_behind()
    assert busy.node.trigger_configure() is SUCCESS
    assert busy.node.trigger_activate() is SUCCESS
    held.set()
    busy.end()
    assert busy.answers == []
    concern = busy.node.clouds.concern
    assert [concern.counted(reason) for reason in ("answered", "rejected", "answer")] == [0, 0, 0]
    busy.answer(20)


def test_a_failure_is_not_that_of_the_next_activation(graph: Graph) -> None:
    busy = Busy(graph)
    assert busy.node.trigger_deactivate() is SUCCESS
    assert busy.node.trigger_activate() is SUCCESS
    busy.node.gate.error = ModelError("network: expected finite numbers, found NaN")
    busy.end()
    view = graph.await_status("segmentation: model", lambda view: view.updates > 0, "a status")
    assert not view.said("found NaN", 2)


def test_a_late_question_is_not_asked(graph: Graph) -> None:
    """The pipeline remembers what it sees, of which the next activation must know nothing."""

    class Slow(Segmentation):
        before = Gate()

        def segment(self, message: PointCloud2) -> None:
            self.before.pass_through()
            super().segment(message)

    node = graph.add(Slow, "segmentation", base_frame="")
    publisher = graph.publisher(PointCloud2, "/segmentation/input/points")
    graph.collect(PointCloud2, "/segmentation/output/points")
    node.before.open.clear()
    publisher.publish(cloud(POINTS, 10))
    graph.until(lambda: node.before.entered == 1, "the message in work")
    assert node.trigger_deactivate() is SUCCESS
    assert node.trigger_activate() is SUCCESS
    node.before.open.set()
    graph.until(lambda: node.clouds.concern.counted("rejected") == 1, "the end of the message in work")
    assert node.gate.entered == 1, "the warm-up alone"


def test_work_of_any_node_that_outlasts_a_deactivation_is_no_answer(graph: Graph) -> None:
    """This one asks no pipeline."""
    rig = CopierRig(graph)
    rig.node.gate.open.clear()
    rig.send(0)
    graph.until(lambda: rig.node.gate.entered == 1, "the message in work")
    assert rig.node.trigger_deactivate() is SUCCESS
    rig.node.gate.open.set()
    graph.until(lambda: not rig.node.worker.alive, "the end of the message in work")
    assert (rig.counted("answered"), rig.counted("rejected")) == (0, 1)
    assert rig.node.copies.published == 0


class HeldDetector(FixedDetector):
    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def detect(self, frame: SensorFrame) -> tuple[Boxes3D, BevMap]:
        self.gate.pass_through()
        return super().detect(frame)


class HeldFusion(FusionNode):
    def __init__(self, name: str, **options: object) -> None:
        self.gate = Gate()
        super().__init__(name, **options)

    def load(self, device: str) -> Any:
        return HeldDetector(self.gate)


def test_a_frame_does_no_harm_to_a_configuration_with_other_cameras(graph: Graph) -> None:
    rig = Rig(graph, HeldFusion).ready()
    node = rig.node
    overlays = graph.collect(Image, "/fusion/debug/overlay/back")
    node.gate.open.clear()
    rig.sense(100)
    graph.until(lambda: node.gate.entered == 2, "the frame in work")
    assert node.trigger_deactivate() is SUCCESS
    assert node.trigger_cleanup() is SUCCESS
    assert node.set_parameters([Parameter("cameras", value=["front"])])[0].successful
    held = node.gate.leave_behind()
    assert node.trigger_configure() is SUCCESS
    assert node.trigger_activate() is SUCCESS
    held.set()
    graph.until(lambda: node.worker.busy_s == 0.0, "the end of the frame in work")
    graph.spin_for(0.1)
    assert (rig.objects, overlays) == ([], [])
    assert node.health["output"].counted("exceptions") == 0
    for port in node.sources.values():
        counted = [port.concern.counted(reason) for reason in ("received", "answered", "rejected")]
        assert counted == [0, 0, 0], port.topic


class Rendering:
    """An augment node with the first of three requested pictures in work."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.node = graph.add(Augment, "augment")
        self.images = graph.collect(Image, "/augment/output/image")
        client = graph.node.create_client(RenderImages, "/augment/render")
        graph.until(client.service_is_ready, "the service")
        self.node.gate.open.clear()
        self.request = client.call_async(RenderImages.Request(count=3))
        graph.until(lambda: self.node.gate.entered == 2, "the first picture in work")

    def refused(self) -> None:
        self.graph.until(self.request.done, "the response")
        self.graph.spin_for(0.1)
        response = self.request.result()
        assert not response.success
        assert "expected an active node, found one that was deactivated meanwhile" in response.message
        assert self.node.gate.entered == 2, "no further picture is made"
        self.graph.await_status("augment: output", lambda view: view.level == 0, "OK")


def test_a_request_that_outlasts_a_deactivation_does_not_go_on_in_the_next_activation(graph: Graph) -> None:
    rendering = Rendering(graph)
    assert rendering.node.trigger_deactivate() is SUCCESS
    assert rendering.node.trigger_activate() is SUCCESS
    rendering.node.gate.open.set()
    rendering.refused()
    assert rendering.images == []


def test_nor_does_one_whose_picture_was_done_in_time(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "STOP_TIMEOUT_S", 30.0)
    rendering = Rendering(graph)
    rendering.node.gate.open.set()
    # Not one turn of the executor in between: the request has not seen that the node was inactive.
    assert rendering.node.trigger_deactivate() is SUCCESS
    assert rendering.node.trigger_activate() is SUCCESS
    rendering.refused()
    assert len(rendering.images) == 1
