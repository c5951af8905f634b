# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What every node does with stamps and clocks."""

from __future__ import annotations

import pytest
from rosgraph_msgs.msg import Clock

from kestrel_nodes.stamps import stamp_message
from tests.ros.copier import INPUT, POINT, Rig
from tests.ros.graph import Graph
from tests.ros.messages import START_NS, cloud


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
        set_clock(graph, rig, 0)
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


def set_clock(graph: Graph, rig: Rig, at_ms: int) -> None:
    """Say on /clock what time it is, until the node knows."""
    clock = graph.publisher(Clock, "/clock", matched=False)
    nanoseconds = START_NS + at_ms * 1_000_000

    def arrived() -> bool:
        clock.publish(Clock(clock=stamp_message(nanoseconds)))
        return bool(rig.node.get_clock().now().nanoseconds == nanoseconds)

    graph.until(arrived, "the clock")
    graph.node.destroy_publisher(clock)


def test_a_clock_that_jumps_back_resets_everything(graph: Graph) -> None:
    rig = Rig(graph, use_sim_time=True)
    set_clock(graph, rig, 50_000)
    rig.answer_to(50_000)
    set_clock(graph, rig, 1_000)
    graph.until(lambda: ("receiving", None) in [reset[:2] for reset in rig.node.resets], "a reset")
    rig.answer_to(1_000)
    assert [reset[:2] for reset in rig.node.resets] == [("receiving", None), ("pipeline", None)]


def test_simulated_time_without_a_clock_is_an_error(graph: Graph) -> None:
    Rig(graph, use_sim_time=True)
    graph.await_status("copier: sync", lambda view: view.level == 2 and "no /clock" in view.message, "ERROR")


def test_a_paused_clock_is_no_fault_of_the_sensors(graph: Graph) -> None:
    rig = Rig(graph, use_sim_time=True, input_timeout_s=0.1)
    set_clock(graph, rig, 0)
    rig.answer_to(0)
    graph.await_status("copier: sync", lambda view: view.values.get("clock") == "paused", "paused")
    graph.await_status(INPUT, lambda view: view.level == 0, "OK while paused")
