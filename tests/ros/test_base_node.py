# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What every node does, shown on one that copies its input."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Float64, Header
from std_srvs.srv import Trigger

from kestrel.errors import ConfigError, ModelError
from kestrel_nodes.base import KestrelNode
from kestrel_nodes.parameters import NodeParameters, parameter
from kestrel_nodes.ports import Input
from kestrel_nodes.qos import RELIABILITY, input_qos
from kestrel_nodes.stamps import stamp_message, stamp_ns
from tests.ros.graph import Graph
from tests.ros.messages import START_NS, cloud
from tests.ros.stand_ins import Gate

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
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


@pytest.fixture
def rig(graph: Graph) -> Rig:
    return Rig(graph)


# Newest wins, and nothing is computed for nobody.


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


# Errors.


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


# Stamps.


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


def test_stamps_of_another_clock_are_named(graph: Graph, rig: Rig) -> None:
    rig.answer_to(0)
    graph.await_status("copier: latency", lambda view: "clock domain" in view.message, "ERROR")


def test_a_clock_that_jumps_back_resets_everything(graph: Graph) -> None:
    clock = graph.publisher(Clock, "/clock", matched=False)
    rig = Rig(graph, use_sim_time=True)

    def tick(at_ms: int) -> None:
        nanoseconds = START_NS + at_ms * 1_000_000

        def arrived() -> bool:
            clock.publish(Clock(clock=stamp_message(nanoseconds)))
            return rig.node.get_clock().now().nanoseconds == nanoseconds

        graph.until(arrived, "the clock")

    tick(50_000)
    rig.answer_to(50_000)
    tick(1_000)
    graph.until(lambda: ("receiving", None) in [reset[:2] for reset in rig.node.resets], "a reset")
    rig.answer_to(1_000)
    assert [reset[:2] for reset in rig.node.resets] == [("receiving", None), ("pipeline", None)]


def test_simulated_time_without_a_clock_is_an_error(graph: Graph) -> None:
    Rig(graph, use_sim_time=True)
    graph.await_status("copier: sync", lambda view: view.level == 2 and "no /clock" in view.message, "ERROR")


def test_a_paused_clock_is_no_fault_of_the_sensors(graph: Graph) -> None:
    clock = graph.publisher(Clock, "/clock", matched=False)
    rig = Rig(graph, use_sim_time=True, input_timeout_s=0.1)

    def running() -> bool:
        clock.publish(Clock(clock=stamp_message(START_NS)))
        return rig.node.get_clock().now().nanoseconds == START_NS

    graph.until(running, "the clock")
    rig.answer_to(0)
    graph.await_status("copier: sync", lambda view: view.values.get("clock") == "paused", "paused")
    graph.await_status(INPUT, lambda view: view.level == 0, "OK while paused")


# Diagnostics: pace, silence, quality of service, publishers.


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


# Life cycle and parameters.


def test_a_configure_that_fails_leaves_the_node_unconfigured_with_its_reason(graph: Graph) -> None:
    node = graph.add(Copier, "copier", active=False)
    node.broken_setup = ModelError("weights kestrel-x: expected a file, found none")
    assert node.trigger_configure() is FAILURE
    assert node.state_label == "unconfigured"
    view = graph.await_status("copier: life cycle", lambda view: view.level == 2, "ERROR")
    assert "configure failed: weights kestrel-x" in view.message
    node.broken_setup = None
    assert node.trigger_configure() is SUCCESS
    graph.await_status("copier: life cycle", lambda view: view.level == 0, "OK")


def test_a_parameter_that_is_not_allowed_fails_configure_and_can_be_corrected(graph: Graph) -> None:
    node = graph.add(Copier, "copier", active=False, size=77)
    assert node.trigger_configure() is FAILURE
    view = graph.await_status("copier: life cycle", lambda view: view.level == 2, "ERROR")
    for part in ("size", "77", "1 .. 9"):
        assert part in view.message
    result = node.set_parameters([Parameter("size", value="big")])[0]
    assert not result.successful
    assert "size" in result.reason
    assert node.set_parameters([Parameter("size", value=5)])[0].successful
    assert node.trigger_configure() is SUCCESS
    assert node.params.size == 5


def test_a_configured_node_keeps_its_parameters(graph: Graph, rig: Rig) -> None:
    result = rig.node.set_parameters([Parameter("size", value=4)])[0]
    assert not result.successful
    assert "fixed while the node is active" in result.reason
    assert rig.node.get_parameter("size").value == 3


def test_an_impossible_transition_is_refused_and_the_node_lives(graph: Graph) -> None:
    node = graph.add(Copier, "copier", active=False)
    client = graph.node.create_client(ChangeState, "/copier/change_state")
    graph.until(client.service_is_ready, "the service")
    for transition, expected in (
        (Transition.TRANSITION_ACTIVATE, False),
        (Transition.TRANSITION_CONFIGURE, True),
        (Transition.TRANSITION_CONFIGURE, False),
        (Transition.TRANSITION_ACTIVATE, True),
    ):
        future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
        graph.until(future.done, "the response")
        assert future.result().success is expected
    assert node.active


def test_twenty_life_cycles_leave_nothing_behind_and_the_node_works(graph: Graph) -> None:
    rig = Rig(graph)
    node = rig.node

    def belongings() -> tuple[int, ...]:
        groups = (node.subscriptions, node.publishers, node.timers, node.services)
        return (
            *(len(list(group)) for group in groups),
            len(node._managed_entities),
            threading.active_count(),
        )

    before = belongings()
    for _ in range(20):
        assert node.trigger_deactivate() is SUCCESS
        assert node.trigger_cleanup() is SUCCESS
        assert node.trigger_configure() is SUCCESS
        assert node.trigger_activate() is SUCCESS
    assert belongings() == before
    graph.until(lambda: rig.publisher.get_subscription_count() == 1, "the subscription")
    graph.until(lambda: node.copies.wanted, "the output to be wanted")
    rig.answer_to(0)


def test_an_inactive_node_neither_receives_nor_answers(graph: Graph, rig: Rig) -> None:
    rig.answer_to(0)
    assert rig.node.trigger_deactivate() is SUCCESS
    graph.until(lambda: rig.publisher.get_subscription_count() == 0, "the subscription to go")
    assert not rig.node.worker.alive
    assert rig.node.trigger_activate() is SUCCESS
    graph.until(lambda: rig.publisher.get_subscription_count() == 1, "the subscription to return")
    rig.answer_to(100)


def test_what_the_last_messages_brought_up_ends_with_the_activity(graph: Graph, rig: Rig) -> None:
    rig.answer_to(0)
    rig.node.gate.error = ModelError("network: expected finite numbers, found NaN")
    rig.send(100)
    graph.await_status("copier: model", lambda view: "found NaN" in view.message, "ERROR")
    graph.await_status("copier: latency", lambda view: "clock domain" in view.message, "ERROR")
    assert rig.node.trigger_deactivate() is SUCCESS
    for concern in ("latency", "model"):
        graph.await_status(f"copier: {concern}", lambda view: view.level == 0, "OK while inactive")


def test_the_heartbeat_names_the_state_and_stops_when_the_worker_hangs(graph: Graph) -> None:
    rig = Rig(graph, worker_timeout_s=1.0)
    beats = graph.collect(Header, "/copier/heartbeat")
    graph.until(lambda: beats, "a heartbeat")
    assert beats[-1].frame_id == "active"
    rig.node.gate.open.clear()
    rig.send(0)
    graph.until(lambda: not rig.node.alive, "the worker to count as hung")
    hung_ns = rig.node.get_clock().now().nanoseconds
    graph.await_status("copier: model", lambda view: "one message in work" in view.message, "ERROR")
    graph.await_status("copier: model", lambda view: view.level == 2, "ERROR again, still without a beat")
    # By stamp: a beat of before may still have been on its way when the worker began to count as hung.
    assert not [beat for beat in beats if stamp_ns(beat.stamp) > hung_ns]
    rig.node.gate.open.set()
    graph.until(lambda: stamp_ns(beats[-1].stamp) > hung_ns, "a heartbeat again")


def test_parameters_that_contradict_each_other_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"parameter size: expected int in 1 \.\. 9, found 0"):
        CopierParameters(size=0)
