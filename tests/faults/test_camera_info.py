# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""CameraInfo that comes once: published before the node was there, or long ago."""

from __future__ import annotations

import pytest
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo

from kestrel_nodes.qos import LATCHED
from tests.ros.fusion_rig import CAMERAS, ERROR, Fusion, Rig, camera_info
from tests.ros.graph import Graph
from tests.ros.stand_ins import DrivenTime

BACK = "fusion: input/back/camera_info"
TOPIC = "/fusion/input/back/camera_info"
WIDE = [25.0, 0, 32, 0, 25, 24, 0, 0, 1]


class LatchedRig(Rig):
    """The vehicle, whose camera at the back published its CameraInfo once, before the node was there."""

    def __init__(self, graph: Graph, **parameters: object) -> None:
        self.latched = graph.publisher(CameraInfo, TOPIC, LATCHED, matched=False)
        self.latched.publish(camera_info("back"))
        super().__init__(graph, **parameters)
        graph.node.destroy_publisher(self.infos.pop("back"))

    def ready(self) -> LatchedRig:
        self.say_extrinsics()
        self.say_intrinsics("front")
        self.graph.until(lambda: "back" in self.node.builder.camera_infos, "the latched CameraInfo")
        return self


def focal_length(rig: Rig) -> float:
    return float(rig.node.builder.camera_infos["back"].k[0])


def test_camera_info_that_was_latched_before_activation_is_heard(graph: Graph) -> None:
    rig = LatchedRig(graph).ready()
    rig.sense(100)
    assert rig.answer(100).sensors_missing == []
    view = graph.await_status(BACK, lambda view: view.count("received") == 1, "one message")
    assert view.level < ERROR
    assert "incompatible_qos" not in view.values


def test_every_message_of_a_publisher_that_both_subscriptions_hear_counts_once(graph: Graph) -> None:
    rig = LatchedRig(graph).ready()
    for number in range(1, 6):
        focal = 25.0 + number
        rig.latched.publish(camera_info("back", k=[focal, 0, 32, 0, focal, 24, 0, 0, 1]))
        graph.until(lambda focal=focal: focal_length(rig) == focal, "the new CameraInfo")
    view = graph.await_status(BACK, lambda view: view.count("received") == 6, "six messages")
    graph.await_status(BACK, lambda view: view.updates > 0, "another status")
    assert view.count("received") == 6


@pytest.mark.parametrize("reliability", ["RELIABLE", "BEST_EFFORT"])
def test_volatile_publishers_see_one_subscription_that_fits_them(graph: Graph, reliability: str) -> None:
    graph.add(Fusion, "fusion", cameras=list(CAMERAS))
    profile = QoSProfile(depth=5, reliability=ReliabilityPolicy[reliability])
    live = graph.publisher(CameraInfo, TOPIC, profile)
    live.publish(camera_info("back"))
    view = graph.await_status(BACK, lambda view: view.count("received") == 1, "a message")
    assert view.level < ERROR
    assert graph.node.count_subscribers(TOPIC) == 1


def test_subscription_to_what_is_kept_ends_with_the_publisher_that_kept_it(graph: Graph) -> None:
    rig = LatchedRig(graph).ready()
    graph.until(lambda: graph.node.count_subscribers(TOPIC) == 2, "both subscriptions")
    graph.node.destroy_publisher(rig.latched)
    graph.until(lambda: graph.node.count_subscribers(TOPIC) == 1, "the one that fits every publisher")
    rig.sense(100)
    assert rig.answer(100).sensors_missing == []


def test_driver_that_starts_again_with_another_calibration_is_heard(graph: Graph) -> None:
    rig = LatchedRig(graph).ready()
    graph.node.destroy_publisher(rig.latched)
    again = graph.publisher(CameraInfo, TOPIC, LATCHED, matched=False)
    again.publish(camera_info("back", k=WIDE))
    graph.until(lambda: focal_length(rig) == WIDE[0], "the new calibration")
    rig.sense(100)
    rig.answer(100)
    assert rig.frames[-1].calibrations["back"].camera_matrix[0, 0] == WIDE[0]


@pytest.mark.parametrize("latched", [True, False])
def test_calibration_that_is_known_does_not_age(graph: Graph, clock: DrivenTime, latched: bool) -> None:
    rig = (LatchedRig if latched else Rig)(graph).ready()
    clock.now += 3600.0
    rig.sense(100)
    assert rig.answer(100).sensors_missing == []
    view = graph.await_status(BACK, lambda view: view.count("received") == 1, "a status of an hour later")
    assert (view.level, view.message) == (0, "OK")


def test_calibration_is_still_known_when_the_node_becomes_active_again(
    graph: Graph, clock: DrivenTime
) -> None:
    rig = Rig(graph).ready()
    assert rig.node.trigger_deactivate() is TransitionCallbackReturn.SUCCESS
    assert rig.node.trigger_activate() is TransitionCallbackReturn.SUCCESS
    sensors: list[Publisher] = [rig.lidar, *rig.images.values()]
    graph.until(lambda: all(sensor.get_subscription_count() for sensor in sensors), "the subscriptions")
    clock.now += 3600.0
    rig.sense(100)
    assert rig.answer(100).sensors_missing == []
    graph.await_status(BACK, lambda view: view.level == 0, "OK")


def test_camera_info_that_never_came_is_an_error(graph: Graph, clock: DrivenTime) -> None:
    Rig(graph)
    clock.now += 2.0
    text = "nothing received for"
    graph.await_status(BACK, lambda view: view.level == ERROR and text in view.message, "ERROR")
