# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Weights that are missing, damaged or not finite, in the real segmentation node."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rclpy.lifecycle import TransitionCallbackReturn
from sensor_msgs.msg import PointCloud2

from kestrel.pipelines.segmentation import PointSegmenter
from kestrel_nodes.segmentation import SegmentationNode
from tests.ros.graph import Graph
from tests.ros.messages import cloud

POINTS = [[5.0 + i, 1.0, 0.1 * i, 0.2] for i in range(20)]


class Untrained(SegmentationNode):
    """The real node around the real network with random weights."""

    def load(self, device: str) -> PointSegmenter:
        return PointSegmenter.untrained()


@pytest.mark.parametrize("content", [None, b"", b"\x80\x04no safetensors"], ids=["missing", "empty", "other"])
def test_unusable_weights_fail_configure_by_their_path_and_good_ones_come_up_after(
    graph: Graph, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "some.safetensors"
    if content is not None:
        path.write_bytes(content)
    node = graph.add(SegmentationNode, "segmentation", active=False, weights=str(path))
    assert node.trigger_configure() is TransitionCallbackReturn.FAILURE
    assert node.state_label == "unconfigured"
    status = "segmentation: life cycle"
    graph.await_status(status, lambda s: s.level == 2 and str(path) in s.message, "the path")


def test_network_that_turns_to_nan_is_an_error_and_its_answer_is_kept_back(graph: Graph) -> None:
    node = graph.add(Untrained, "segmentation", base_frame="")
    publisher = graph.publisher(PointCloud2, "/segmentation/input/points")
    answers = graph.collect(PointCloud2, "/segmentation/output/points")
    weights = list(node.segmenter.network.parameters())[-1]  # those of convolutions are packed
    good = weights.detach().clone()
    with torch.no_grad():
        weights.fill_(float("nan"))
    publisher.publish(cloud(POINTS, 100))
    graph.await_status("segmentation: model", lambda s: s.said("finite", 2), "ERROR")
    assert not answers
    with torch.no_grad():
        weights.copy_(good)
    publisher.publish(cloud(POINTS, 200))
    graph.until(lambda: answers, "an answer")
    graph.await_status("segmentation: model", lambda s: s.level < 2, "recovery")
