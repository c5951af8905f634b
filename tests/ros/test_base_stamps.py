# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What every node does with stamps and clocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kestrel_msgs.srv import RenderImages
from rclpy.lifecycle import TransitionCallbackReturn
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

from kestrel_nodes.managed import ManagedNode
from kestrel_nodes.stamps import stamp_message
from tests.ros.copier import INPUT, POINT, Rig
from tests.ros.graph import Graph
from tests.ros.messages import START_NS, cloud, raw_image
from tests.ros.stand_ins import Augment


def test_late_and_doubled_stamps_are_dropped_and_counted(graph: Graph, rig: Rig) -> None:
    rig.answer_to(1000)
    rig.send(900)
    rig.send(1000)
    graph.until(lambda: rig.counted("dropped") == 2, "two dropped messages")
    graph.await_status(INPUT, lambda view: view.said("duplicate_stamp", 1), "WARN")
    assert (rig.counted("out_of_order"), rig.counted("duplicate_stamp")) == (1, 1)
    rig.answer_to(1100)
    graph.await_status(INPUT, lambda view: "dropped" not in view.message, "no word of it after a good one")
    assert rig.node.resets == []
    assert rig.stamps_ms == [1000, 1100]


def test_a_jump_back_resets_state_in_both_threads_and_the_message_is_used(graph: Graph, rig: Rig) -> None:
    rig.answer_to(60_000)
    rig.answer_to(0)
    receiving, pipeline = rig.node.resets
    assert receiving[:2] == ("receiving", "points")
    assert pipeline[:2] == ("pipeline", "points")
    assert pipeline[2] == "copier-worker" != receiving[2]
    graph.await_status("copier: sync", lambda view: view.said("jumped back by 60.0 s", 1), "WARN")
    graph.await_status("copier: sync", lambda view: view.level == 0, "OK again")
    rig.answer_to(100)
    assert len(rig.node.resets) == 2


def test_the_limit_between_late_and_jump_is_a_parameter(graph: Graph) -> None:
    rig = Rig(graph, jump_back_limit_s=0.05)
    rig.answer_to(1000)
    rig.answer_to(900)
    assert [kind for kind, *_ in rig.node.resets] == ["receiving", "pipeline"]


def test_a_message_without_a_stamp_is_dropped(graph: Graph, rig: Rig) -> None:
    message = cloud(POINT)
    message.header.stamp = stamp_message(0)
    rig.publisher.publish(message)
    graph.until(lambda: rig.counted("stamp_zero") == 1, "the dropped message")
    rig.answer_to(100)
    assert len(rig.copies) == 1


@pytest.mark.parametrize(
    ("stamp_s", "simulated", "text"),
    [
        (20, False, "behind the node's clock: the sensor counts from its own start"),
        (1_000_000_000, False, "behind the node's clock: a bag played without its clock and use_sim_time"),
        (2_100_000_000, False, "ahead of the node's clock: a clock that is not set"),
        (1_000_000_000, True, "but these stamps are not of the time on /clock"),
    ],
    ids=["since its start", "another year", "the future", "not that of the bag"],
)
def test_answers_to_stamps_of_another_clock_are_published_and_an_error_with_its_cause(
    graph: Graph, stamp_s: int, simulated: bool, text: str
) -> None:
    rig = Rig(graph, use_sim_time=simulated)
    if simulated:
        set_clock(graph, rig.node, 0)
    message = cloud(POINT)
    message.header.stamp = stamp_message(stamp_s * 1_000_000_000)
    rig.publisher.publish(message)
    graph.until(lambda: rig.copies, "an answer")
    assert rig.copies[0].header == message.header
    graph.await_status(
        "copier: latency",
        lambda view: view.level == 2 and view.message.startswith("clock domain") and text in view.message,
        text,
    )


def set_clock(graph: Graph, node: ManagedNode[Any], at_ms: int) -> None:
    """Say on /clock what time it is, until the node knows."""
    clock = graph.publisher(Clock, "/clock", matched=False)
    nanoseconds = START_NS + at_ms * 1_000_000

    def arrived() -> bool:
        clock.publish(Clock(clock=stamp_message(nanoseconds)))
        return bool(node.get_clock().now().nanoseconds == nanoseconds)

    graph.until(arrived, "the clock")
    graph.node.destroy_publisher(clock)


def test_a_clock_that_jumps_back_resets_everything(graph: Graph) -> None:
    rig = Rig(graph, use_sim_time=True)
    set_clock(graph, rig.node, 50_000)
    rig.answer_to(50_000)
    set_clock(graph, rig.node, 1_000)
    graph.until(lambda: ("receiving", None) in [reset[:2] for reset in rig.node.resets], "a reset")
    rig.answer_to(1_000)
    assert [reset[:2] for reset in rig.node.resets] == [("receiving", None), ("pipeline", None)]


def test_simulated_time_without_a_clock_is_an_error(graph: Graph) -> None:
    Rig(graph, use_sim_time=True)
    graph.await_status("copier: sync", lambda view: view.level == 2 and "no /clock" in view.message, "ERROR")


def test_a_paused_clock_is_no_fault_of_the_sensors(graph: Graph) -> None:
    rig = Rig(graph, use_sim_time=True, input_timeout_s=0.1)
    set_clock(graph, rig.node, 0)
    rig.answer_to(0)
    graph.await_status("copier: sync", lambda view: view.values.get("clock") == "paused", "paused")
    graph.await_status(INPUT, lambda view: view.level == 0, "OK while paused")


def test_a_message_in_work_while_the_clock_jumps_back_is_not_of_another_clock(graph: Graph) -> None:
    rig = Rig(graph, use_sim_time=True)
    set_clock(graph, rig.node, 50_000)
    rig.node.gate.open.clear()
    rig.send(50_000)
    graph.until(lambda: rig.node.gate.entered == 1, "the message in work")
    set_clock(graph, rig.node, 1_000)
    rig.node.gate.open.set()
    graph.until(lambda: rig.copies, "its answer")
    rig.answer_to(1_000)
    view = graph.await_status(
        "copier: latency", lambda view: "pipeline_latency_ms" in view.values, "a latency"
    )
    assert {level for level, _ in view.history} == {0}


def test_a_request_that_waits_while_the_clock_jumps_back_is_answered_and_a_message_is_dropped(
    graph: Graph,
) -> None:
    node = graph.add(Augment, "augment", use_sim_time=True)
    set_clock(graph, node, 50_000)
    publisher = graph.publisher(Image, "/augment/input/labels")
    graph.collect(Image, "/augment/output/image")
    client = graph.node.create_client(RenderImages, "/augment/render")
    graph.until(client.service_is_ready, "the service")
    node.gate.open.clear()
    concern = node.inputs["labels"].concern
    for number in (1, 2):
        publisher.publish(raw_image(np.zeros((16, 24), np.uint8), "mono8", 50_000 + number))
        graph.until(lambda number=number: concern.counted("received") == number, "the message")
        graph.until(lambda: node.gate.entered == 2, "the first in work")
    request = client.call_async(RenderImages.Request(count=1))
    graph.until(lambda: "render" in node.worker._waiting, "the request to wait")
    set_clock(graph, node, 1_000)
    graph.until(lambda: concern.counted("superseded") == 1, "the second message to be dropped")
    node.gate.open.set()
    graph.until(request.done, "the response")
    assert request.result().success, request.result().message


def test_an_inactive_node_resets_its_pipeline_once_for_all_jumps_when_it_is_active(graph: Graph) -> None:
    rig = Rig(graph, use_sim_time=True)
    rig.node.trigger_deactivate()
    for at_ms in (50_000, 1_000, 50_000, 1_000, 50_000, 1_000):
        set_clock(graph, rig.node, at_ms)
    assert [kind for kind, *_ in rig.node.resets] == ["receiving"] * 3
    assert rig.node.trigger_activate() is TransitionCallbackReturn.SUCCESS
    graph.until(lambda: len(rig.node.resets) > 3, "a reset")
    graph.until(lambda: rig.publisher.get_subscription_count() == 1, "the subscription")
    graph.until(lambda: rig.node.copies.wanted, "the output to be wanted")
    rig.answer_to(1_000)
    assert [kind for kind, *_ in rig.node.resets] == ["receiving"] * 3 + ["pipeline"]
