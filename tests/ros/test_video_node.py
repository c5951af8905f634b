# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The video node over real ROS: answers per camera, resets, and every malformed image."""

from __future__ import annotations

import numpy as np
import pytest
from rclpy.lifecycle import TransitionCallbackReturn
from sensor_msgs.msg import CompressedImage, Image
from vision_msgs.msg import Classification

from kestrel.classes import EVENTS
from kestrel.pipelines.video import VideoUnderstanding
from kestrel_nodes.video import VideoNode
from tests.ros.graph import Graph
from tests.ros.messages import fill, header, jpeg, picture, raw_image
from tests.ros.stand_ins import Video

COMPRESSED = "video: input/front/image/compressed"


class Rig:
    """A video node of one camera, its images and its answers."""

    def __init__(self, graph: Graph, *, raw: bool = False, **parameters: object) -> None:
        self.graph = graph
        self.node = graph.add(Video, "video", compressed=not raw, **parameters)
        kind, ending = (Image, "") if raw else (CompressedImage, "/compressed")
        self.status = f"video: input/front/image{ending}"
        self.publisher = graph.publisher(kind, f"/video/input/front/image{ending}")
        self.answers = graph.collect(Classification, "/video/output/front/event")

    def answer_to(self, message: Image | CompressedImage) -> Classification:
        before = len(self.answers)
        self.publisher.publish(message)
        self.graph.until(lambda: len(self.answers) > before, "an answer")
        return self.answers[-1]

    def assert_rejected(self, message: Image | CompressedImage, reason: str, times: int) -> None:
        self.publisher.publish(message)
        view = self.graph.await_status(
            self.status, lambda view: view.level == 2 and reason in view.message, reason
        )
        assert view.count("rejected") == times


def test_an_image_is_answered_with_all_events_by_falling_score_and_its_own_header(graph: Graph) -> None:
    answer = Rig(graph).answer_to(jpeg(30))
    scores = [result.score for result in answer.results]
    assert answer.header == header(30, "camera")
    assert scores == sorted(scores, reverse=True)
    assert {result.class_id for result in answer.results} == set(EVENTS)


def test_every_camera_has_its_own_past(graph: Graph) -> None:
    node = graph.add(Video, "video", cameras=["front", "back"])
    answers = {
        name: graph.collect(Classification, f"/video/output/{name}/event") for name in node.params.cameras
    }
    for camera, at_ms in (("front", 0), ("front", 100), ("back", 100), ("front", 200)):
        publisher = graph.publisher(CompressedImage, f"/video/input/{camera}/image/compressed")
        before = len(answers[camera])
        publisher.publish(jpeg(at_ms))
        graph.until(lambda camera=camera, before=before: len(answers[camera]) > before, "an answer")
        graph.node.destroy_publisher(publisher)
    assert [answer.results[0].class_id for answer in answers["front"]] == list(EVENTS[:3])
    assert [answer.results[0].class_id for answer in answers["back"]] == [EVENTS[0]]


def test_a_jump_back_resets_that_camera_only(graph: Graph) -> None:
    rig = Rig(graph, cameras=["front", "back"])
    rig.answer_to(jpeg(60_000))
    rig.answer_to(jpeg(60_100))
    answer = rig.answer_to(jpeg(0))
    assert answer.results[0].class_id == EVENTS[0]
    assert rig.node.pipeline.resets == [None, "front"]
    graph.await_status("video: sync", lambda view: view.said("jumped back by 60.1 s", 1), "WARN")


def test_late_images_leave_the_past_as_it_is(graph: Graph) -> None:
    rig = Rig(graph)
    rig.answer_to(jpeg(1000))
    rig.publisher.publish(jpeg(900))
    graph.until(lambda: graph.status(COMPRESSED).count("out_of_order") == 1, "the dropped image")
    assert rig.answer_to(jpeg(1100)).results[0].class_id == EVENTS[1]


def test_the_first_answers_say_that_the_past_is_short(graph: Graph) -> None:
    rig = Rig(graph)
    rig.answer_to(jpeg(0))
    early = "front: the network has not seen enough"
    graph.await_status("video: model", lambda view: view.said(early, 1), "WARN")
    rig.answer_to(jpeg(100))
    graph.await_status("video: model", lambda view: "front" not in view.message, "no word of it")


def broken_files() -> list[tuple[str, bytes, str]]:
    whole = bytes(jpeg().data)
    bomb = bytearray(whole)
    at = whole.index(b"\xff\xc0") + 5
    bomb[at : at + 4] = b"\xff\xff\xff\xff"
    return [
        ("empty", b"", "compressed image"),
        ("not a picture", b"this is no picture at all", "compressed image"),
        ("truncated", whole[: len(whole) // 2], "truncated"),
        ("header only", whole[:20], "JPEG size"),
        ("absurd size", bytes(bomb), "pixels"),
        ("garbage between the markers", whole[:30] + b"\x00" * 200 + b"\xff\xd9", "JPEG size"),
    ]


def test_each_broken_file_is_rejected_with_its_reason_and_the_next_good_one_answered(graph: Graph) -> None:
    rig = Rig(graph)
    for number, (name, data, reason) in enumerate(broken_files()):
        message = jpeg(100 * number)
        fill(message, data)
        rig.assert_rejected(message, reason, number + 1)
        assert rig.answer_to(jpeg(100 * number + 50)).header == header(100 * number + 50, "camera"), name
    graph.await_status(rig.status, lambda view: view.level < 2, "recovery")


def broken_images() -> list[tuple[str, Image, str]]:
    data = picture()
    truncated = raw_image(data, "rgb8")
    fill(truncated, bytes(truncated.data)[:-1])
    empty = raw_image(data, "rgb8")
    empty.width = empty.height = empty.step = 0
    fill(empty, b"")
    short_step = raw_image(data, "rgb8")
    short_step.step = 5
    mislabelled = raw_image(data[..., 0].copy(), "rgb8")
    return [
        ("unknown encoding", raw_image(data, "8UC3"), "image encoding"),
        ("depth", raw_image(data[..., 0].astype(np.uint16).view(np.uint8), "16UC1"), "image encoding"),
        ("truncated", truncated, "image data"),
        ("no pixels", empty, "image size"),
        ("step too small", short_step, "image step"),
        ("mono as rgb8", mislabelled, "image step"),
        ("odd width", raw_image(np.zeros((4, 6), np.uint8), "yuv422"), "image width"),
    ]


def test_each_malformed_image_is_rejected_with_its_reason_and_the_next_good_one_answered(
    graph: Graph,
) -> None:
    rig = Rig(graph, raw=True)
    for number, (name, message, reason) in enumerate(broken_images()):
        message.header = header(100 * number, "camera")
        if name == "odd width":
            message.width = 3
        rig.assert_rejected(message, reason, number + 1)
        good = raw_image(picture(), "rgb8", 100 * number + 50)
        assert rig.answer_to(good).header == good.header, name


def test_a_change_of_resolution_is_followed(graph: Graph) -> None:
    rig = Rig(graph)
    rig.answer_to(jpeg(0, size=(48, 64)))
    assert rig.answer_to(jpeg(100, size=(120, 160))).header == header(100, "camera")


def test_frozen_camera_is_a_warning_until_the_picture_changes(graph: Graph) -> None:
    rig = Rig(graph, frozen_after=3)
    for at_ms in (0, 100):
        rig.answer_to(jpeg(at_ms))
    graph.await_status(rig.status, lambda view: "frozen" not in view.message, "two equal ones are no fault")
    rig.answer_to(jpeg(200))
    text = "frozen: the last 3 pictures are equal"
    graph.await_status(rig.status, lambda view: view.level == 1 and text in view.message, "WARN")
    rig.answer_to(jpeg(300, size=(48, 80)))
    graph.await_status(rig.status, lambda view: "frozen" not in view.message, "recovery")


@pytest.mark.parametrize(("value", "name"), [(2, "black"), (254, "saturated")])
def test_picture_that_shows_nothing_is_answered_with_a_warning(graph: Graph, value: int, name: str) -> None:
    rig = Rig(graph, raw=True)
    rig.answer_to(raw_image(np.full((48, 64, 3), value, np.uint8), "rgb8"))
    graph.await_status(rig.status, lambda view: view.level == 1 and name in view.message, "WARN")
    rig.answer_to(raw_image(picture(), "rgb8", 100))
    view = graph.await_status(rig.status, lambda view: name not in view.message, "recovery")
    assert view.count(f"{name}_pictures") == 1


@pytest.mark.parametrize("cameras", [[""], ["front", "front"]])
def test_cameras_that_cannot_be_told_apart_fail_configure(graph: Graph, cameras: list[str]) -> None:
    node = graph.add(Video, "video", active=False, cameras=cameras)
    assert node.trigger_configure() is TransitionCallbackReturn.FAILURE
    graph.await_status("video: life cycle", lambda view: "parameter cameras" in view.message, "the reason")


def test_the_real_network_answers_through_the_node(graph: Graph) -> None:
    class Untrained(VideoNode):
        def load(self, device: str) -> VideoUnderstanding:
            return VideoUnderstanding.untrained()

    graph.add(Untrained, "video")
    publisher = graph.publisher(CompressedImage, "/video/input/front/image/compressed")
    answers = graph.collect(Classification, "/video/output/front/event")
    publisher.publish(jpeg(0, size=(256, 704)))
    graph.until(lambda: answers, "an answer")
    assert sum(result.score for result in answers[0].results) == pytest.approx(1.0, abs=1e-3)
