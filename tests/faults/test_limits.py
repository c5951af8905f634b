# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Too little of what a node needs, and too much of what it gets: sensors, disk, points, life cycles."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from kestrel_msgs.srv import RenderImages
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, PointCloud2

from kestrel_nodes.qos import LATCHED
from tests.ros.fusion_rig import ERROR, POINTS, WARN, Rig
from tests.ros.graph import Graph
from tests.ros.life_cycles import assert_life_cycles_leave_nothing
from tests.ros.messages import cloud, cloud_of
from tests.ros.stand_ins import Augment, Segmentation


def test_more_missing_cameras_than_allowed_are_an_error_while_the_others_go_on(graph: Graph) -> None:
    rig = Rig(graph, max_missing_cameras=1).ready()
    rig.sense(1000)
    assert rig.answer(1000).sensors_missing == []
    rig.sense(2000, "front", "lidar")
    assert rig.answer(2000).sensors_missing == ["back"]
    text = "back: no matching"
    graph.await_status("fusion: sync", lambda view: view.level == WARN and text in view.message, text)
    rig.sense(3000, "lidar")
    assert rig.answer(3000).objects
    text = "2 of 2 cameras are missing"
    graph.await_status("fusion: sync", lambda view: view.level == ERROR and text in view.message, text)
    rig.sense(4000)
    assert rig.answer(4000).sensors_missing == []
    graph.await_status("fusion: sync", lambda view: view.level == 0, "OK by itself")


def test_two_million_points_are_clipped_with_a_warning_and_the_next_cloud_is_answered(graph: Graph) -> None:
    parameters = {"base_frame": "", "points_reliability": "reliable"}
    node = graph.add(Segmentation, "segmentation", **parameters)
    profile = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
    publisher = graph.publisher(PointCloud2, "/segmentation/input/points", profile)
    answers = graph.collect(PointCloud2, "/segmentation/output/points", profile)
    points = np.zeros(2_000_000, np.dtype([(name, "<f4") for name in "xyz"]))
    points["x"] = np.linspace(1, 60, len(points))
    publisher.publish(cloud_of(points, 100))
    graph.until(lambda: answers, "an answer")
    capacity = node.params.capacity
    assert len(node.segmenter.clouds[-1]) == capacity, "the work of the network is bounded"
    assert answers[0].width == len(points), "the others keep their place"
    text = f"{len(points) - capacity} points beyond the capacity of {capacity} are left out"
    graph.await_status("segmentation: input/points", lambda view: view.said(text, WARN), text)
    publisher.publish(cloud(POINTS, 200))
    graph.until(lambda: len(answers) == 2, "the next answer")
    assert answers[1].width == len(POINTS)
    graph.await_status("segmentation: input/points", lambda view: text not in view.message, "no word of it")


@pytest.mark.parametrize("files", [0, 1], ids=["the picture", "its labels"])
def test_disk_that_fills_up_leaves_no_half_written_pair_and_the_node_serves_on(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    written: list[Path] = []
    write = Path.write_bytes

    def write_until_full(path: Path, data: bytes) -> int:
        if len(written) == files:
            write(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written.append(path)
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_until_full)
    ask = Requests(graph, output_root=str(tmp_path))
    response = ask(count=1, output_folder="night")
    assert (response.success, response.rendered) == (False, 0)
    assert "No space left on device" in response.message
    graph.await_status("augment: output", lambda view: view.said("No space left", ERROR), "ERROR")
    assert len(written) == files
    assert list((tmp_path / "night").iterdir()) == []
    assert ask(count=1).success, "what is not written is still published"
    monkeypatch.undo()
    assert ask(count=1, output_folder="night").success
    graph.await_status("augment: output", lambda view: view.level == 0, "OK")


def test_folder_that_cannot_be_written_is_an_error_and_the_node_serves_on(graph: Graph) -> None:
    ask = Requests(graph, output_root="/proc/sys")  # takes no files, not even from root
    response = ask(count=1, output_folder="night")
    assert (response.success, response.rendered) == (False, 0)
    assert "output_folder: expected a writable folder" in response.message
    graph.await_status("augment: output", lambda view: view.said("writable folder", ERROR), "ERROR")
    assert ask(count=1).success
    graph.await_status("augment: output", lambda view: view.level == 0, "OK")


class Requests:
    """An augment node and a client of its service."""

    def __init__(self, graph: Graph, **parameters: object) -> None:
        self.graph = graph
        graph.add(Augment, "augment", **parameters)
        self.client = graph.node.create_client(RenderImages, "/augment/render")
        graph.until(self.client.service_is_ready, "the service")

    def __call__(self, **values: object) -> RenderImages.Response:
        future = self.client.call_async(RenderImages.Request(**values))
        self.graph.until(future.done, "the response")
        return future.result()


def test_a_hundred_life_cycles_of_the_fusion_node_leave_nothing_behind(graph: Graph) -> None:
    latched = graph.publisher(CameraInfo, "/fusion/input/back/camera_info", LATCHED, matched=False)
    rig = Rig(graph)
    node = rig.node
    graph.until(lambda: latched.get_subscription_count() == 2, "both subscriptions of a latched topic")
    assert_life_cycles_leave_nothing(node, 100)
    sensors = [rig.lidar, rig.tf_static, *rig.images.values(), *rig.infos.values()]
    graph.until(lambda: all(sensor.get_subscription_count() == 1 for sensor in sensors), "one of each")
    graph.until(lambda: latched.get_subscription_count() == 2, "both subscriptions of a latched topic")
    graph.until(lambda: node.objects.wanted, "the output to be wanted")
    rig.ready().sense(100)
    assert rig.answer(100).sensors_missing == []
