# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Inputs on which messages come, of which none can be used: as much an error as silence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from kestrel_msgs.msg import PerceivedObjects
from rclpy.publisher import Publisher
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from vision_msgs.msg import Classification

from kestrel.errors import InputError
from kestrel_nodes.stamps import stamp_message
from tests.ros import copier
from tests.ros.fusion_rig import ERROR, POINTS, WARN, Fusion
from tests.ros.fusion_rig import Rig as FusionRig
from tests.ros.graph import Graph
from tests.ros.messages import cloud, fill, jpeg, raw_image
from tests.ros.stand_ins import Augment, DrivenTime, Segmentation, Video

TIMEOUT_S = 0.3


def send_until_error(
    graph: Graph, publisher: Publisher, make: Callable[[int], Any], status: str, *texts: str
) -> None:
    """Publish messages, each 100 ms later than the last, until ``status`` is an ERROR that says ``texts``."""
    at_ms = 0
    view = graph.status(status)

    def said() -> bool:
        nonlocal at_ms
        at_ms += 100
        publisher.publish(make(at_ms))
        return view.level == ERROR and all(text in view.message for text in texts)

    graph.until(said, f"{status}: ERROR")


def assert_unusable_until(rig: copier.Rig, at_ms: int, make: Callable[[int], Any], *texts: str) -> None:
    """Send the copier messages that are an ERROR that says ``texts``, until one of ``at_ms`` ends it."""
    send_until_error(rig.graph, rig.publisher, make, copier.INPUT, *texts)
    rig.answer_to(at_ms)
    rig.graph.await_status(copier.INPUT, lambda view: view.sound, "OK with the first usable message")


def unstamped(message: Any) -> Any:
    message.header.stamp = stamp_message(0)
    return message


def test_sensor_that_sets_no_stamps_is_an_error_of_the_clock_domain_until_it_does(graph: Graph) -> None:
    rig = copier.Rig(graph, input_timeout_s=TIMEOUT_S)
    reason = "clock domain: stamp 0.000 s dropped: stamp_zero"
    assert_unusable_until(rig, 100, lambda _: unstamped(cloud(POINTS)), "nothing usable for", reason)


def test_sensor_whose_clock_stands_still_is_an_error(graph: Graph) -> None:
    rig = copier.Rig(graph, input_timeout_s=TIMEOUT_S)
    rig.answer_to(100)
    assert_unusable_until(rig, 200, lambda _: cloud(POINTS, 100), "nothing usable", "clock stands still")


def test_unstamped_messages_are_an_error_where_silence_is_none(graph: Graph) -> None:
    graph.add(Augment, "augment", input_timeout_s=TIMEOUT_S)
    publisher = graph.publisher(Image, "/augment/input/labels")
    graph.collect(Image, "/augment/output/image")
    status = "augment: input/labels"
    send_until_error(graph, publisher, lambda at_ms: unstamped(labels(at_ms)), status, "nothing usable")


def test_every_sensor_of_the_fusion_node_without_stamps_is_an_error(graph: Graph) -> None:
    rig = FusionRig(graph, input_timeout_s=TIMEOUT_S).ready()
    for publisher, make, topic in (
        (rig.lidar, lambda _: unstamped(cloud(POINTS)), "points"),
        (rig.images["back"], lambda _: unstamped(jpeg()), "back/image/compressed"),
    ):
        send_until_error(graph, publisher, make, f"fusion: input/{topic}", "nothing usable", "clock domain")
    assert not rig.frames


def test_every_message_sent_twice_is_no_error(graph: Graph, clock: DrivenTime) -> None:
    rig = copier.Rig(graph)
    for number in range(30):
        clock.now += 0.1
        rig.answer_to(100 * number)
        rig.send(100 * number)
        graph.until(lambda number=number: rig.counted("dropped") == number + 1, "a dropped message")
    view = graph.await_status(copier.INPUT, lambda view: view.said("duplicate_stamp", WARN), "WARN")
    assert not [text for level, text in view.history if level == ERROR]


def test_slow_sensor_is_silent_no_longer_than_it_always_is_when_one_message_is_doubled(
    graph: Graph, clock: DrivenTime
) -> None:
    rig = copier.Rig(graph)
    for number in range(4):
        clock.now += 5.0
        rig.answer_to(5000 * number)
    clock.now += 5.0
    rig.send(15_000)
    view = graph.await_status(copier.INPUT, lambda view: view.said("duplicate_stamp", WARN), "WARN")
    assert not [text for level, text in view.history if "duplicate_stamp" in text and level == ERROR]


@dataclass(frozen=True)
class Case:
    """A node, one of its inputs with good messages, and an output."""

    node: type
    kind: type
    topic: str
    good: Callable[[int], Any]
    answer: type
    output: str
    parameters: dict[str, Any] = field(default_factory=dict)


def labels(at_ms: int) -> Image:
    return raw_image(np.full((16, 24), 7, np.uint8), "mono8", at_ms)


def sweep(at_ms: int) -> PointCloud2:
    return cloud(POINTS, at_ms)


CASES = {
    "video": Case(Video, CompressedImage, "front/image/compressed", jpeg, Classification, "front/event"),
    "segmentation": Case(
        Segmentation, PointCloud2, "points", sweep, PointCloud2, "points", {"base_frame": ""}
    ),
    "fusion": Case(Fusion, PointCloud2, "points", sweep, PerceivedObjects, "objects", {"cameras": [""]}),
    "augment": Case(Augment, Image, "labels", labels, Image, "image"),
}


def cut(message: Any) -> Any:
    """Leave the data of a message without its end."""
    fill(message, bytes(message.data)[:-20])
    return message


@pytest.mark.parametrize("name", CASES)
def test_nothing_but_malformed_messages_is_an_error_that_lasts(graph: Graph, name: str) -> None:
    case = CASES[name]
    graph.add(case.node, name, **case.parameters)
    publisher = graph.publisher(case.kind, f"/{name}/input/{case.topic}")
    answers = graph.collect(case.answer, f"/{name}/output/{case.output}")
    status = f"{name}: input/{case.topic}"
    view = graph.status(status)
    send_until_error(graph, publisher, lambda at_ms: cut(case.good(at_ms)), status, "data")
    before, seen = view.count("rejected"), len(view.history)
    send_until_error(graph, publisher, lambda at_ms: cut(case.good(60_000 + at_ms)), status, "data")
    graph.until(lambda: view.count("rejected") > before, "more of them")
    assert {level for level, _ in view.history[seen:]} == {ERROR}
    assert not answers


def test_malformed_message_is_an_error_until_the_next_was_found_good(graph: Graph) -> None:
    rig = copier.Rig(graph)
    gate = rig.node.gate
    gate.error = InputError("points: expected good ones, found bad ones")
    rig.send(100)
    graph.await_status(copier.INPUT, lambda view: view.level == ERROR and "bad ones" in view.message, "ERROR")
    gate.open.clear()
    rig.send(200)
    graph.until(lambda: gate.entered == 2, "the next message in work")
    view = graph.await_status(copier.INPUT, lambda view: view.count("received") == 2, "a status meanwhile")
    assert (view.level, "bad ones" in view.message) == (ERROR, True)
    gate.error = None
    gate.open.set()
    graph.await_status(copier.INPUT, lambda view: view.sound, "OK after a good one")


@pytest.mark.parametrize("name", CASES)
def test_message_without_a_frame_is_refused_alike_by_every_node(graph: Graph, name: str) -> None:
    case = CASES[name]
    graph.add(case.node, name, **case.parameters)
    publisher = graph.publisher(case.kind, f"/{name}/input/{case.topic}")
    answers = graph.collect(case.answer, f"/{name}/output/{case.output}")
    assert_refused(graph, publisher, case.good(100), name, case.topic)
    assert not answers


def test_picture_without_a_frame_is_not_taken_to_be_of_the_frame_of_its_camera_info(graph: Graph) -> None:
    rig = FusionRig(graph).ready()
    assert_refused(graph, rig.images["back"], jpeg(100), "fusion", "back/image/compressed")
    rig.sense(100, "front", "lidar")
    assert rig.answer(100).sensors_missing == ["back"]


def assert_refused(graph: Graph, publisher: Publisher, message: Any, node: str, topic: str) -> None:
    """Send ``message`` without a frame: it is rejected, and the next status says why."""
    message.header.frame_id = ""
    publisher.publish(message)
    text = f"frame_id of {topic}: expected a frame, found an empty name"
    status = f"{node}: input/{topic}"
    view = graph.await_status(status, lambda view: view.level == ERROR and text in view.message, text)
    assert (view.count("received"), view.count("rejected")) == (1, 1)
