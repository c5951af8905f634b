# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""How every node answers, and what becomes of errors."""

from __future__ import annotations

import pytest
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Float64
from std_srvs.srv import Trigger

from tests.ros.copier import INPUT, POINT, Copier, Rig
from tests.ros.graph import Graph
from tests.ros.messages import cloud


def test_while_the_worker_is_busy_only_the_newest_input_waits(graph: Graph, rig: Rig) -> None:
    rig.node.gate.open.clear()
    rig.send(0)
    graph.until(lambda: rig.node.gate.entered == 1, "the first message in work")
    for at_ms in range(100, 600, 100):
        rig.send(at_ms)
        graph.until(lambda at_ms=at_ms: rig.counted("received") == 1 + at_ms // 100, "the message")
    rig.node.gate.open.set()
    graph.until(lambda: len(rig.copies) == 2, "two answers")
    assert rig.stamps_ms == [0, 500]
    view = graph.await_status(INPUT, lambda view: view.count("answered") == 2, "two answers")
    assert (view.count("received"), view.count("superseded")) == (6, 4)


def test_what_nobody_subscribes_to_is_not_computed(graph: Graph) -> None:
    node = graph.add(Copier, "copier")
    publisher = graph.publisher(PointCloud2, "/copier/input/points")
    publisher.publish(cloud(POINT))
    graph.until(lambda: node.inputs["points"].concern.counted("unwanted") == 1, "an unwanted message")
    assert node.gate.entered == 0
    copies = graph.collect(PointCloud2, "/copier/output/points")
    publisher.publish(cloud(POINT, 100))
    graph.until(lambda: copies, "a copy once it is wanted")


def test_timing_topics_are_published_to_those_who_subscribe(graph: Graph, rig: Rig) -> None:
    names = ("processing_time_ms", "pipeline_latency_ms", "cyclic_time_ms")
    received = {name: graph.collect(Float64, f"/copier/debug/{name}") for name in names}
    graph.until(
        lambda: all(output.wanted for output in rig.node.timing.outputs), "the debug topics to be wanted"
    )
    for _ in range(2):
        before = len(rig.copies)
        message = cloud(POINT)
        message.header.stamp = rig.node.get_clock().now().to_msg()
        rig.publisher.publish(message)
        graph.until(lambda before=before: len(rig.copies) > before, "an answer")
    graph.until(lambda: all(received.values()), "all timing topics")
    assert 0 <= received["processing_time_ms"][0].data < 5000
    assert 0 <= received["pipeline_latency_ms"][0].data < 5000


def test_a_bug_in_a_handler_is_counted_and_shown_and_the_next_message_answered(
    graph: Graph, rig: Rig, capfd: pytest.CaptureFixture[str]
) -> None:
    rig.node.gate.error = ZeroDivisionError("a bug in the handler")
    rig.send(0)
    view = graph.await_status("copier: output", lambda view: view.level == 2, "ERROR")
    assert "ZeroDivisionError: a bug in the handler" in view.message
    assert view.count("exceptions") == 1
    rig.node.gate.error = None
    rig.answer_to(100)
    graph.await_status("copier: output", lambda view: view.level == 0, "OK")
    log = capfd.readouterr().err
    assert log.count("Traceback (most recent call last)") == 1
    assert "pass_through" in log


def test_a_bug_in_a_timer_is_logged_once_and_the_node_lives(
    graph: Graph, rig: Rig, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("a bug in the timer")

    rig.node.on_timer = fail
    graph.await_status("copier: output", lambda view: view.count("exceptions") >= 3, "three exceptions")
    rig.node.on_timer = lambda: None
    rig.answer_to(100)
    assert capfd.readouterr().err.count("Traceback (most recent call last)") == 1


def test_a_bug_in_a_service_is_answered_with_its_reason(graph: Graph, rig: Rig) -> None:
    client = graph.node.create_client(Trigger, "/copier/trigger")
    graph.until(client.service_is_ready, "the service")
    future = client.call_async(Trigger.Request())
    graph.until(future.done, "the response")
    assert not future.result().success
    assert "the service is broken" in future.result().message
    rig.answer_to(100)
