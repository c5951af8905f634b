# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What every node says of its inputs."""

from __future__ import annotations

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import PointCloud2

from kestrel_nodes.stamps import stamp_ns
from tests.ros.copier import INPUT, Copier, Rig
from tests.ros.graph import Graph


def test_diagnostics_come_twice_a_second_in_every_state_with_a_status_per_concern(ros_domain: int) -> None:
    with Graph() as graph:
        graph.add(Copier, "copier", active=False)
        messages = graph.collect(DiagnosticArray, "/diagnostics")
        graph.until(lambda: len(messages) >= 4, "four of them")
        # By stamp, and with a period of slack: on a busy machine they may be late, and then come together.
        first, *_, fourth = (stamp_ns(message.header.stamp) for message in messages[:4])
        assert 1.0 < (fourth - first) / 1e9 < 10.0
        view = graph.status("copier: life cycle")
        graph.until(lambda: view.updates >= 3, "their statuses")
        assert view.values["state"] == "unconfigured"
        for concern in ("sync", "calibration", "model", "latency", "output"):
            assert graph.status(f"copier: {concern}").updates >= 3


def test_an_input_that_never_speaks_is_an_error_until_it_does(graph: Graph, rig: Rig) -> None:
    graph.await_status(INPUT, lambda view: view.level == 2 and "nothing received" in view.message, "ERROR")
    rig.answer_to(0)
    graph.await_status(INPUT, lambda view: view.level == 0, "OK")


def test_an_input_that_falls_silent_is_late_first_and_then_an_error(graph: Graph) -> None:
    rig = Rig(graph, input_timeout_s=3.0)
    for at_ms in range(0, 600, 100):
        rig.answer_to(at_ms)
    graph.await_status(INPUT, lambda view: view.level == 1 and "expected every" in view.message, "WARN")
    graph.await_status(INPUT, lambda view: view.level == 2 and "no message for" in view.message, "ERROR")


def test_an_incompatible_publisher_is_an_error_that_names_topic_and_policy(graph: Graph) -> None:
    graph.add(Copier, "copier", points_reliability="reliable")
    best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    wrong = graph.publisher(PointCloud2, "/copier/input/points", best_effort, matched=False)
    view = graph.await_status(INPUT, lambda view: "incompatible" in view.message, "ERROR")
    assert view.level == 2
    assert "/copier/input/points" in view.message
    assert "RELIABILITY" in view.message
    graph.node.destroy_publisher(wrong)
    graph.await_status(
        INPUT, lambda view: "incompatible" not in view.message, "no word of it once it is gone"
    )


def test_a_second_publisher_is_reported_and_its_other_frame_refused(graph: Graph, rig: Rig) -> None:
    rig.answer_to(0)
    graph.publisher(PointCloud2, "/copier/input/points")
    graph.await_status(INPUT, lambda view: "2 publishers" in view.message, "WARN")
    rig.send(100, frame_id="another_lidar")
    graph.until(lambda: rig.counted("mixed_frames") == 1, "the refused message")
    rig.answer_to(200)
    assert rig.stamps_ms == [0, 200]


@pytest.mark.parametrize("ahead_ms", [400, 60_000], ids=["a little ahead", "another clock"])
def test_the_stamps_of_a_refused_publisher_count_for_nothing(graph: Graph, rig: Rig, ahead_ms: int) -> None:
    rig.answer_to(0)
    graph.publisher(PointCloud2, "/copier/input/points")
    graph.until(lambda: rig.node._publishers_of(rig.node.inputs["points"]) == 2, "the second publisher")
    rig.send(ahead_ms, frame_id="another_lidar")
    graph.until(lambda: rig.counted("mixed_frames") == 1, "the refused message")
    rig.answer_to(100)
    assert (rig.counted("dropped"), rig.node.resets) == (1, [])
