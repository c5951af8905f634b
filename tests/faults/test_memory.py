# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Sweeps that memory does not suffice for: wherever it ran out, the node says so and answers the next one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sensor_msgs.msg import PointCloud2

from kestrel.ops.backend import NATIVE
from kestrel.types import PointCloud, PointLabels
from kestrel_nodes.segmentation import SegmentationNode
from tests.ros.graph import Graph
from tests.ros.messages import cloud
from tests.ros.stand_ins import Gate, HeightSegmenter

POINTS = [[5.0, 1.0, 0.0, 0.2], [6.0, -1.0, 1.0, 0.9]]
FAR_TOO_MUCH = 1 << 48
"""Bytes; no processor addresses so many for one process."""


def in_a_kernel() -> object:
    assert NATIVE is not None
    return NATIVE.strided_triples(0, 0, [], [1, 1, 1], [], FAR_TOO_MUCH // 8, 0, 0, 0, 0, 1)


def in_torch() -> object:
    return torch.empty(FAR_TOO_MUCH, dtype=torch.uint8)


def in_numpy() -> object:
    return np.empty(FAR_TOO_MUCH, np.uint8)


class Greedy(HeightSegmenter):
    """Takes memory before it answers."""

    take: Callable[[], object] | None = None

    def segment(self, cloud: PointCloud) -> PointLabels:
        if self.take is not None:
            self.take()
        return super().segment(cloud)


class GreedyNode(SegmentationNode):
    def load(self, device: str) -> Greedy:
        return Greedy(Gate())


@pytest.mark.parametrize(
    ("take", "reason"),
    [
        pytest.param(
            in_a_kernel,
            f"MemoryError: kernel strided_triples: expected {FAR_TOO_MUCH} bytes of memory for its work",
            marks=pytest.mark.skipif(NATIVE is None, reason="compiled kernels are not installed"),
        ),
        (in_torch, f"can't allocate memory: you tried to allocate {FAR_TOO_MUCH} bytes"),
        (in_numpy, "Unable to allocate"),
    ],
)
def test_sweep_that_lacks_memory_is_an_error_with_its_reason_until_the_next_is_answered(
    graph: Graph, take: Callable[[], object], reason: str
) -> None:
    node = graph.add(GreedyNode, "segmentation", base_frame="")
    publisher = graph.publisher(PointCloud2, "/segmentation/input/points")
    answers = graph.collect(PointCloud2, "/segmentation/output/points")
    node.segmenter.take = take
    publisher.publish(cloud(POINTS, 10))
    graph.await_status("segmentation: output", lambda view: view.said(reason, 2), "ERROR")
    assert not answers
    node.segmenter.take = None
    publisher.publish(cloud(POINTS, 20))
    graph.until(lambda: answers, "an answer")
    view = graph.await_status("segmentation: output", lambda view: view.level == 0, "OK")
    assert view.count("exceptions") == 1
