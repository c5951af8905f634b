# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Life cycle and parameters of every node."""

from __future__ import annotations

import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_msgs.msg import Header

from kestrel.errors import ConfigError, ModelError
from kestrel_nodes.stamps import stamp_ns
from tests.ros.copier import Copier, CopierParameters, Rig
from tests.ros.graph import Graph
from tests.ros.life_cycles import assert_life_cycles_leave_nothing
from tests.ros.stand_ins import Augment, configured

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


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


def test_an_impossible_transition_is_refused_in_one_line_and_the_node_stays_healthy(
    graph: Graph, capfd: pytest.CaptureFixture[str]
) -> None:
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
    view = graph.await_status("copier: life cycle", lambda view: view.values["state"] == "active", "active")
    assert view.count("refused_requests") == 2
    assert {level for level, _ in view.history} == {0}
    log = capfd.readouterr().err
    assert "transition: expected one from the state unconfigured, found number 3" in log
    assert "Traceback" not in log


def test_twenty_life_cycles_leave_nothing_behind_and_the_node_works(graph: Graph) -> None:
    rig = Rig(graph)
    node = rig.node
    assert_life_cycles_leave_nothing(node, 20)
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


def test_a_misspelt_parameter_is_a_warning_that_names_the_nearest(graph: Graph) -> None:
    given = {"sizes": 5, "qos_overrides./tf.subscription.depth": 7, "use_sim_time": False}
    node = graph.add(Copier, "copier", active=False, **given)
    text = "parameter: expected a known one (the nearest is size), found sizes"
    graph.await_status("copier: life cycle", lambda view: (view.level, view.message) == (1, text), "WARN")
    assert node.trigger_configure() is SUCCESS
    assert node.trigger_cleanup() is SUCCESS
    graph.await_status(
        "copier: life cycle", lambda view: (view.level, view.message) == (1, text), "WARN still"
    )


def test_a_misspelt_parameter_of_the_command_line_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ("--ros-args", "-p", "thredas:=2", "-p", "use_sim_time:=true", "-p", "threads:=1")
    with configured(Augment, *arguments) as node:
        assert node.params.threads == 1
    log = capfd.readouterr().err
    assert log.count("parameter: expected a known one (the nearest is threads), found thredas") == 1
    assert log.count("parameter: expected") == 1


def test_values_and_counters_of_a_configuration_end_with_it(graph: Graph, rig: Rig) -> None:
    rig.answer_to(60_000)
    rig.answer_to(0)
    graph.await_status("copier: sync", lambda view: view.count("time_jumps") == 1, "a counter")
    graph.await_status("copier: output", lambda view: view.count("points") == 2, "a value")
    assert rig.node.trigger_deactivate() is SUCCESS
    assert rig.node.trigger_cleanup() is SUCCESS
    view = graph.await_status(
        "copier: life cycle", lambda view: view.values["state"] == "unconfigured", "state"
    )
    assert graph.await_status("copier: output", lambda _: True, "a status").values == {}
    assert set(graph.await_status("copier: sync", lambda _: True, "a status").values) == {"clock"}
    assert set(view.values) == {"state"}
