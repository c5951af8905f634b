# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A node that is not configured holds no network, and what comes late does no harm."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from kestrel_msgs.srv import RenderImages
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import PointCloud2

from kestrel.errors import SetupError
from kestrel_nodes import working
from kestrel_nodes.augment import AugmentNode
from kestrel_nodes.fusion import FusionNode
from kestrel_nodes.managed import ManagedNode
from kestrel_nodes.on_device import OnDevice
from kestrel_nodes.segmentation import SegmentationNode
from kestrel_nodes.video import VideoNode
from tests.ros.graph import Graph
from tests.ros.messages import cloud
from tests.ros.stand_ins import Augment, HeightSegmenter, Segmentation
from tests.ros.test_on_device import GpuSegmentation

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
POINTS = [[5.0, 1.0, 0.0, 0.2], [6.0, -1.0, 1.0, 0.9]]


def tensors() -> int:
    """Return how many tensors this process holds."""
    gc.collect()
    # isinstance would ask proxies among them what they stand for.
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


@pytest.mark.parametrize("kind", [SegmentationNode, VideoNode, FusionNode, AugmentNode])
def test_after_cleanup_a_node_holds_nothing_of_its_network_until_it_is_configured_again(
    graph: Graph, kind: type
) -> None:
    node = graph.add(kind, "node", active=False)
    before = tensors()
    assert node.trigger_configure() is SUCCESS
    pipeline, loaded = weakref.ref(node.model.pipeline), tensors()
    assert loaded > before
    assert node.trigger_cleanup() is SUCCESS
    assert pipeline() is None
    assert tensors() == before
    with pytest.raises(SetupError, match="pipeline: expected that of a configured node, found none"):
        node.model.ask(lambda pipeline: pipeline)
    assert node.trigger_configure() is SUCCESS
    assert tensors() == loaded


class Pipelines:
    """The pipelines that nodes have made, and those that are still held."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[weakref.ref[HeightSegmenter]] = []
        load = Segmentation.load

        def noted(node: Segmentation, device: str) -> HeightSegmenter:
            assert not self.held, "two networks at once"
            segmenter: HeightSegmenter = load(node, device)
            self.made.append(weakref.ref(segmenter))
            return segmenter

        monkeypatch.setattr(Segmentation, "load", noted)

    @property
    def held(self) -> int:
        return sum(pipeline() is not None for pipeline in self.made)


@pytest.fixture
def pipelines(monkeypatch: pytest.MonkeyPatch) -> Pipelines:
    return Pipelines(monkeypatch)


def test_a_node_that_is_shut_down_holds_no_network(graph: Graph, pipelines: Pipelines) -> None:
    node = graph.add(Segmentation, "segmentation", base_frame="")
    assert pipelines.held == 1
    node.trigger_shutdown()
    assert (len(pipelines.made), pipelines.held) == (1, 0)


def test_a_configure_that_fails_after_the_network_was_loaded_holds_none(
    graph: Graph, pipelines: Pipelines
) -> None:
    node = graph.add(Segmentation, "segmentation", active=False, base_frame="", kept_classes=["dragon"])
    assert node.trigger_configure() is FAILURE
    assert (len(pipelines.made), pipelines.held) == (1, 0)
    assert node.set_parameters([Parameter("kept_classes", value=["car"])])[0].successful
    assert node.trigger_configure() is SUCCESS
    assert (len(pipelines.made), pipelines.held) == (2, 1)


def test_a_transition_that_breaks_off_leaves_an_unconfigured_node_without_a_network(
    graph: Graph, pipelines: Pipelines
) -> None:
    class Broken(Segmentation):
        broken = True

        def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
            result = super().on_activate(state)
            if self.broken:
                raise RuntimeError("halfway")
            return result

    node = graph.add(Broken, "segmentation", active=False, base_frame="")
    assert node.trigger_configure() is SUCCESS
    assert node.trigger_activate() is TransitionCallbackReturn.ERROR
    assert node.state_label == "unconfigured"
    assert pipelines.held == 0
    node.broken = False
    assert node.trigger_configure() is SUCCESS
    assert node.trigger_activate() is SUCCESS
    assert pipelines.held == 1


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping nodes give up waiting for the message in work at once."""
    monkeypatch.setattr(working, "STOP_TIMEOUT_S", 0.01)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fails", [False, True], ids=["with an answer", "with an error"])
def test_what_outlasts_a_cleanup_gives_the_memory_back_when_it_is_done(
    graph: Graph, pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    held_then: list[int] = []
    monkeypatch.setattr(working, "give_memory_back", lambda: held_then.append(pipelines.held))

    class Leaving(Segmentation):
        def segment(self, message: PointCloud2) -> None:
            pipeline = self.model.pipeline
            super().segment(message)
            if fails:
                raise SetupError(f"late, of {pipeline}")

    node = graph.add(Leaving, "segmentation", base_frame="")
    publisher = graph.publisher(PointCloud2, "/segmentation/input/points")
    graph.collect(PointCloud2, "/segmentation/output/points")
    node.gate.open.clear()
    publisher.publish(cloud(POINTS, 10))
    graph.until(lambda: node.gate.entered == 2, "the message in work")
    node.trigger_deactivate()
    node.trigger_cleanup()
    assert (pipelines.held, held_then) == (1, [])
    node.gate.open.set()
    graph.until(lambda: not node.worker.alive, "the end of the message in work")
    assert held_then == [0]


@pytest.mark.usefixtures("impatient")
def test_a_message_in_work_that_outlasts_a_cleanup_ends_without_a_trace(
    graph: Graph, pipelines: Pipelines
) -> None:
    node = graph.add(Segmentation, "segmentation", base_frame="")
    publisher = graph.publisher(PointCloud2, "/segmentation/input/points")
    answers = graph.collect(PointCloud2, "/segmentation/output/points")
    node.gate.open.clear()
    publisher.publish(cloud(POINTS, 10))
    graph.until(lambda: node.gate.entered == 2, "the message in work")
    node.trigger_deactivate()
    node.trigger_cleanup()
    node.gate.open.set()
    graph.until(lambda: not node.worker.alive, "the end of the message in work")
    assert pipelines.held == 0
    graph.spin_for(0.1)
    assert not answers
    for concern in ("model", "output", "latency", "sync", "calibration"):
        view = graph.await_status(f"segmentation: {concern}", lambda view: view.updates > 0, "a status")
        assert (view.level, view.message) == (0, "OK"), concern
    assert "input/points" not in [concern.name for concern in node.health]
    assert node.health["output"].counted("exceptions") == 0
    assert node.trigger_configure() is SUCCESS
    assert node.trigger_activate() is SUCCESS
    graph.until(lambda: publisher.get_subscription_count() == 1, "the subscription")
    graph.until(lambda: node.labelled.wanted, "the output to be wanted")
    publisher.publish(cloud(POINTS, 20))
    graph.until(lambda: answers, "an answer")


@pytest.mark.parametrize("loads", [1, 2], ids=["before the CPU takes its place", "meanwhile"])
def test_a_gpu_that_fails_while_a_node_is_cleaned_up_brings_no_network_back(graph: Graph, loads: int) -> None:
    made: list[weakref.ref[HeightSegmenter]] = []

    class Leaving(GpuSegmentation):
        def load(self, device: str) -> HeightSegmenter:
            segmenter: HeightSegmenter = super().load(device)
            made.append(weakref.ref(segmenter))
            if len(made) == 2:
                self.model.free()
            return segmenter

    node = graph.add(Leaving, "segmentation", base_frame="", device="auto")

    def lose_the_gpu(_: object) -> None:
        if loads == 1:
            node.model.free()
        raise torch.AcceleratorError("CUDA error: device lost")  # a new one: it keeps what it met in memory

    with pytest.raises(SetupError, match="pipeline: expected that of a configured node, found none"):
        node.model.ask(lose_the_gpu)
    assert [pipeline() for pipeline in made] == [None] * loads
    assert "on the CPU since" not in node.health["model"].publish().message


def test_a_pipeline_that_is_let_go_of_while_it_is_asked_for_is_there_or_said_to_be_gone() -> None:
    class Leaving(OnDevice[Any]):
        seen: ClassVar[list[str | None]] = ["the pipeline", None]

        def __init__(self) -> None:
            """Make nothing."""

        @property
        def _pipeline(self) -> str | None:  # type: ignore[override]
            return self.seen.pop(0)

    model = Leaving()
    assert model.pipeline == "the pipeline"
    with pytest.raises(SetupError, match="found none"):
        model.pipeline  # noqa: B018


def clean_up(node: ManagedNode[Any]) -> None:
    node.trigger_deactivate()
    node.trigger_cleanup()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("leave", [clean_up, ManagedNode.trigger_shutdown])
def test_a_request_in_work_that_outlasts_its_node_is_refused_and_then_its_service_is_gone(
    graph: Graph, leave: Callable[[ManagedNode[Any]], object]
) -> None:
    node = graph.add(Augment, "augment")
    services = len(node._services)
    client = graph.node.create_client(RenderImages, "/augment/render")
    graph.until(client.service_is_ready, "the service")
    node.gate.open.clear()
    request = client.call_async(RenderImages.Request(count=2))
    graph.until(lambda: node.gate.entered == 2, "the first picture in work")
    leave(node)
    assert len(node._services) == services
    assert len(list(node.services)) == services - 1, "it takes no more requests"
    node.gate.open.set()
    graph.until(request.done, "the answer")
    assert not request.result().success
    assert "found one that was deactivated meanwhile" in request.result().message
    graph.until(lambda: len(node._services) == services - 1, "the end of the service")
    assert node.health["output"].counted("exceptions") == 0
    graph.await_status("augment: output", lambda view: view.level == 0, "OK")


@pytest.mark.usefixtures("impatient")
def test_a_request_after_the_next_configure_is_taken_by_its_service_alone(graph: Graph) -> None:
    node = graph.add(Augment, "augment")
    client = graph.node.create_client(RenderImages, "/augment/render")
    graph.until(client.service_is_ready, "the service")
    node.gate.open.clear()
    before = client.call_async(RenderImages.Request(count=1))
    graph.until(lambda: node.gate.entered == 2, "the picture in work")
    clean_up(node)
    held = node.gate.leave_behind()
    assert node.trigger_configure() is SUCCESS
    assert node.trigger_activate() is SUCCESS
    after = client.call_async(RenderImages.Request(count=1))
    graph.spin_for(0.2)  # in which a service that still took requests would take it
    held.set()
    graph.until(lambda: before.done() and after.done(), "both answers")
    assert (before.result().success, after.result().success) == (False, True)
    assert node.gate.entered == 4, "two warm-ups and a picture for each request"
    graph.until(lambda: graph.node.count_services("/augment/render") == 1, "the end of the other service")
