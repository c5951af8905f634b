# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The augment node over real ROS: label images, requests, and what requests must not do."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from kestrel_msgs.srv import RenderImages
from rclpy.client import Client
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from kestrel.pipelines.augment import Augmenter
from kestrel_nodes.augment import AugmentNode
from tests.ros.graph import Graph
from tests.ros.messages import header, picture, raw_image
from tests.ros.stand_ins import Augment

STATUS = "augment: input/labels"
LABELS = np.full((16, 24), 7, np.uint8)


def pixels(message: Image) -> np.ndarray:
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, -1)


def request(graph: Graph, client: Client, **values: object) -> RenderImages.Response:
    future = client.call_async(RenderImages.Request(**values))
    graph.until(future.done, "the response")
    return future.result()


def renderer(graph: Graph, **parameters: object) -> Client:
    graph.add(Augment, "augment", **parameters)
    client = graph.node.create_client(RenderImages, "/augment/render")
    graph.until(client.service_is_ready, "the service")
    return client


def test_a_label_image_is_answered_with_a_picture_and_its_labels(graph: Graph) -> None:
    graph.add(Augment, "augment", seed=3)
    publisher = graph.publisher(Image, "/augment/input/labels")
    images = graph.collect(Image, "/augment/output/image")
    labels = graph.collect(Image, "/augment/output/labels")
    publisher.publish(raw_image(LABELS, "mono8", 40))
    graph.until(lambda: images and labels, "picture and labels")
    assert images[0].header == labels[0].header == header(40, "camera")
    assert images[0].encoding == "rgb8"
    assert (pixels(images[0]) == 10).all()
    assert (pixels(labels[0])[..., 0] == LABELS).all()


def test_an_image_that_carries_no_labels_is_rejected_and_the_next_good_one_answered(graph: Graph) -> None:
    graph.add(Augment, "augment", max_pixels=400)
    publisher = graph.publisher(Image, "/augment/input/labels")
    images = graph.collect(Image, "/augment/output/image")
    for at_ms, wrong, reason in (
        (0, raw_image(picture(), "rgb8"), "label image encoding"),
        (200, raw_image(np.zeros((64, 64), np.uint8), "mono8"), "at most 400 pixels"),
    ):
        wrong.header = header(at_ms)
        publisher.publish(wrong)
        graph.await_status(STATUS, lambda view, why=reason: view.level == 2 and why in view.message, reason)
        before = len(images)
        publisher.publish(raw_image(LABELS, "mono8", at_ms + 100, "lidar"))
        graph.until(lambda before=before: len(images) > before, "an answer")
    graph.await_status(STATUS, lambda view: view.level == 0, "OK")


def test_silence_of_the_label_input_is_no_fault(graph: Graph) -> None:
    graph.add(Augment, "augment", input_timeout_s=0.01)
    view = graph.await_status(STATUS, lambda view: view.updates > 2, "three statuses")
    assert view.history == [(0, "OK")] * view.updates


def test_a_request_publishes_as_many_pictures_as_asked_and_the_same_for_the_same_seed(graph: Graph) -> None:
    client = renderer(graph)
    images = graph.collect(Image, "/augment/output/image")
    for _ in range(2):
        response = request(graph, client, count=3, seed=5, label_source="scene")
        assert (response.success, response.rendered) == (True, 3)
    graph.until(lambda: len(images) == 6, "six pictures")
    values = [int(pixels(image)[0, 0, 0]) for image in images]
    assert values[:3] == values[3:]
    assert len(set(values)) == 3
    assert images[0].header.frame_id == "camera_synthetic_optical"


def test_a_request_writes_pictures_with_their_labels(graph: Graph, tmp_path: Path) -> None:
    client = renderer(graph, output_root=str(tmp_path))
    response = request(graph, client, count=2, seed=9, output_folder="night/first")
    assert response.success, response.message
    folder = tmp_path / "night" / "first"
    assert len(list(folder.glob("*_labels.png"))) == 2
    labels = cv2.imread(str(folder / f"{9:020d}_labels.png"), cv2.IMREAD_UNCHANGED)
    rendered = cv2.imread(str(folder / f"{9:020d}.png"))
    assert (labels == 9).all()
    assert (rendered == 18).all()


@pytest.mark.parametrize("folder", ["../outside", "/tmp/outside", "a/../../outside", "link/inside", "."])
def test_a_request_cannot_write_outside_of_its_root(graph: Graph, tmp_path: Path, folder: str) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    (root / "link").symlink_to(elsewhere)
    client = renderer(graph, output_root=str(root))
    response = request(graph, client, count=1, output_folder=folder)
    assert not response.success
    assert "output_folder" in response.message
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["elsewhere", "link", "root"]


def test_without_a_root_nothing_is_written(graph: Graph) -> None:
    response = request(graph, renderer(graph), count=1, output_folder="anywhere")
    assert not response.success
    assert "output_folder" in response.message


@pytest.mark.parametrize("count", [0, 65, 4_000_000_000])
def test_an_absurd_count_is_refused(graph: Graph, count: int) -> None:
    response = request(graph, renderer(graph), count=count)
    assert (response.success, response.rendered) == (False, 0)
    assert "1 .. 64" in response.message


def test_a_full_folder_takes_nothing_more_and_the_node_serves_on(graph: Graph, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "old.bin").write_bytes(b"\0" * (1 << 20))
    client = renderer(graph, output_root=str(tmp_path), max_folder_mb=1)
    response = request(graph, client, count=1, output_folder="full")
    assert not response.success
    assert "less than 1 MB" in response.message
    graph.await_status("augment: output", lambda view: view.said("less than 1 MB", 2), "ERROR")
    assert [path.name for path in folder.iterdir()] == ["old.bin"]
    assert request(graph, client, count=1).success
    graph.await_status("augment: output", lambda view: view.level == 0, "OK")


def test_labels_come_from_files_below_the_label_folder_only(graph: Graph, tmp_path: Path) -> None:
    inside = tmp_path / "labels"
    inside.mkdir()
    cv2.imwrite(str(inside / "street.png"), LABELS)
    cv2.imwrite(str(inside / "colour.png"), picture())
    cv2.imwrite(str(tmp_path / "secret.png"), LABELS)
    client = renderer(graph, label_folder=str(inside))
    assert request(graph, client, count=1, label_source="street.png").success
    for source in ("../secret.png", "colour.png", "missing.png"):
        response = request(graph, client, count=1, label_source=source)
        assert not response.success
        assert "label_source" in response.message


def test_the_node_stays_responsive_during_a_long_request(graph: Graph) -> None:
    client = renderer(graph)
    node = graph.managed[0]
    node.gate.open.clear()
    future = client.call_async(RenderImages.Request(count=2))
    graph.until(lambda: node.gate.entered > 1, "the first picture in work")
    beats = graph.collect(Header, "/augment/heartbeat")
    graph.until(lambda: len(beats) >= 2, "heartbeats in between")
    assert not future.done()
    node.gate.open.set()
    graph.until(future.done, "the response")
    assert future.result().success


def test_an_inactive_node_refuses_requests(graph: Graph) -> None:
    client = renderer(graph)
    graph.managed[0].trigger_deactivate()
    response = request(graph, client, count=1)
    assert not response.success
    assert "expected active, found inactive" in response.message
    view = graph.await_status("augment: output", lambda view: view.count("refused_requests") == 1, "counted")
    assert {level for level, _ in view.history} == {0}


def test_the_real_network_answers_through_the_node(graph: Graph) -> None:
    class Untrained(AugmentNode):
        def load(self, device: str) -> Augmenter:
            return Augmenter.untrained()

    graph.add(Untrained, "augment")
    client = graph.node.create_client(RenderImages, "/augment/render")
    graph.until(client.service_is_ready, "the service")
    images = graph.collect(Image, "/augment/output/image")
    assert request(graph, client, count=1, seed=1).success
    graph.until(lambda: images, "a picture")
    assert pixels(images[0]).std() > 0
