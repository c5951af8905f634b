# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Nodes on a GPU that is not there, runs out of memory, or is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from kestrel_msgs.srv import RenderImages
from rclpy.lifecycle import TransitionCallbackReturn
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from vision_msgs.msg import Classification

from kestrel.types import BevMap, Boxes3D, SensorFrame
from kestrel_nodes.augment import AugmentNode
from kestrel_nodes.fusion import FusionNode
from kestrel_nodes.segmentation import SegmentationNode
from kestrel_nodes.video import VideoNode
from tests.ros.fusion_rig import FixedDetector, Rig
from tests.ros.graph import Graph
from tests.ros.messages import cloud, jpeg, raw_image
from tests.ros.stand_ins import Augment, HeightSegmenter, Segmentation, Video

GPU = torch.device("cuda", 0)
POINTS = [[5.0, 1.0, 0.0, 0.2], [6.0, -1.0, 1.0, 0.9]]
LOST = torch.AcceleratorError("CUDA error: device lost\nCompile with ...")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.")
SAID = "on the CPU since cuda:0 failed: "


def load_where_the_cpu_answers(node: Any, pipeline: Any, device: str) -> Any:
    """Say that a pipeline is on a GPU unless it is for the CPU, which whatever the gate raises spares."""
    if device == "cpu":
        node.gate.error = None
    else:
        pipeline.device = GPU
    return pipeline


class GpuSegmentation(Segmentation):
    def load(self, device: str) -> Any:
        return load_where_the_cpu_answers(self, super().load(device), device)


class GpuVideo(Video):
    def load(self, device: str) -> Any:
        return load_where_the_cpu_answers(self, super().load(device), device)


class GpuAugment(Augment):
    def load(self, device: str) -> Any:
        return load_where_the_cpu_answers(self, super().load(device), device)


class LostDetector(FixedDetector):
    device = GPU

    def detect(self, frame: SensorFrame) -> tuple[Boxes3D, BevMap]:
        if self.frames:
            raise LOST
        return super().detect(frame)


class GpuFusion(FusionNode):
    def load(self, device: str) -> Any:
        return FixedDetector() if device == "cpu" else LostDetector()


@pytest.mark.parametrize("kind", [SegmentationNode, VideoNode, FusionNode, AugmentNode])
def test_a_gpu_that_is_not_there_fails_configure_with_the_reason(graph: Graph, kind: type) -> None:
    node = graph.add(kind, "node", active=False, device="cuda:99")
    assert node.trigger_configure() is TransitionCallbackReturn.FAILURE
    assert node.state_label == "unconfigured"
    expected = "device: expected cuda:99, a GPU that this torch can use"
    graph.await_status("node: life cycle", lambda view: view.said(expected, 2), "the reason")


@pytest.mark.parametrize("error", [FULL, LOST, RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")])
def test_with_auto_the_cpu_answers_the_sweep_at_which_the_gpu_failed(graph: Graph, error: Exception) -> None:
    node = graph.add(GpuSegmentation, "segmentation", base_frame="", device="auto")
    publisher = graph.publisher(PointCloud2, "/segmentation/input/points")
    answers = graph.collect(PointCloud2, "/segmentation/output/points")
    graph.await_status("segmentation: model", lambda view: view.values["device"] == "cuda:0", "the GPU")
    node.gate.error = error
    publisher.publish(cloud(POINTS, 10))
    graph.until(lambda: answers, "the answer of the CPU")
    reason = SAID + f"{type(error).__name__}: {str(error).splitlines()[0]}"
    view = graph.await_status("segmentation: model", lambda view: view.said(reason, 1), "WARN")
    assert view.values["device"] == "cpu"
    publisher.publish(cloud(POINTS, 20))
    graph.until(lambda: len(answers) == 2, "another")
    assert graph.status("segmentation: input/points").count("rejected") == 0
    graph.await_status("segmentation: model", lambda view: view.said(reason, 1), "WARN, which stays")


def test_after_cleanup_auto_looks_for_the_gpu_again(graph: Graph) -> None:
    node = graph.add(GpuSegmentation, "segmentation", base_frame="", device="auto")
    node.gate.error = LOST
    publisher = graph.publisher(PointCloud2, "/segmentation/input/points")
    answers = graph.collect(PointCloud2, "/segmentation/output/points")
    publisher.publish(cloud(POINTS, 10))
    graph.until(lambda: answers, "the answer of the CPU")
    node.trigger_deactivate()
    node.trigger_cleanup()
    assert node.trigger_configure() is TransitionCallbackReturn.SUCCESS
    assert node.segmenter.device == GPU
    graph.await_status("segmentation: model", lambda view: SAID not in view.message, "no word of it")


def test_with_auto_a_gpu_that_fails_at_the_start_is_left_for_the_cpu(graph: Graph) -> None:
    class Small(GpuSegmentation):
        def load(self, device: str) -> HeightSegmenter:
            self.gate.error = FULL
            segmenter: HeightSegmenter = super().load(device)
            return segmenter

    node = graph.add(Small, "segmentation", base_frame="", device="auto")
    assert node.segmenter.device.type == "cpu"
    said = "on the CPU since GPU failed: OutOfMemoryError"
    graph.await_status("segmentation: model", lambda view: view.said(said, 1), "WARN")


def test_with_cuda_a_failing_gpu_is_an_error_and_the_node_goes_on_trying(graph: Graph) -> None:
    node = graph.add(GpuSegmentation, "segmentation", base_frame="", device="cuda")
    publisher = graph.publisher(PointCloud2, "/segmentation/input/points")
    answers = graph.collect(PointCloud2, "/segmentation/output/points")
    node.gate.error = FULL
    publisher.publish(cloud(POINTS, 10))
    expected = "inference on cuda: expected a result, found OutOfMemoryError: CUDA out of memory."
    graph.await_status("segmentation: model", lambda view: view.said(expected, 2), "ERROR")
    assert not answers
    assert node.segmenter.device == GPU
    assert node.active
    node.gate.error = None
    publisher.publish(cloud(POINTS, 20))
    graph.until(lambda: answers, "an answer")
    graph.await_status("segmentation: model", lambda view: view.level < 2, "recovery")


def test_a_bug_does_not_send_a_node_to_the_cpu(graph: Graph) -> None:
    node = graph.add(GpuSegmentation, "segmentation", base_frame="", device="auto")
    publisher = graph.publisher(PointCloud2, "/segmentation/input/points")
    graph.collect(PointCloud2, "/segmentation/output/points")
    node.gate.error = ZeroDivisionError("a bug")
    publisher.publish(cloud(POINTS, 10))
    graph.await_status("segmentation: output", lambda view: view.said("a bug", 2), "ERROR")
    assert node.segmenter.device == GPU


def test_the_video_node_goes_on_on_the_cpu(graph: Graph) -> None:
    node = graph.add(GpuVideo, "video", device="auto")
    publisher = graph.publisher(CompressedImage, "/video/input/front/image/compressed")
    answers = graph.collect(Classification, "/video/output/front/event")
    node.gate.error = LOST
    publisher.publish(jpeg(10))
    graph.until(lambda: answers, "the answer of the CPU")
    graph.await_status("video: model", lambda view: SAID in view.message, "WARN")


def test_the_fusion_node_goes_on_on_the_cpu(graph: Graph) -> None:
    rig = Rig(graph, GpuFusion, device="auto").ready()
    rig.sense(100)
    rig.answer(100)
    graph.await_status("fusion: model", lambda view: view.said(SAID, 1), "WARN")


def test_the_augment_node_refuses_what_its_gpu_fails_at_and_goes_on_trying(graph: Graph) -> None:
    node = graph.add(GpuAugment, "augment", device="cuda")
    node.gate.error = LOST
    client = graph.node.create_client(RenderImages, "/augment/render")
    graph.until(client.service_is_ready, "the service")
    future = client.call_async(RenderImages.Request(count=1))
    graph.until(future.done, "a response")
    assert not future.result().success
    assert "inference on cuda: expected a result, found AcceleratorError" in future.result().message
    graph.await_status("augment: model", lambda view: view.said("device lost", 2), "ERROR")
    node.gate.error = None
    again = client.call_async(RenderImages.Request(count=1))
    graph.until(again.done, "a response")
    assert again.result().success
    graph.await_status("augment: model", lambda view: view.level < 2, "recovery by a request alone")
    publisher = graph.publisher(Image, "/augment/input/labels")
    answers = graph.collect(Image, "/augment/output/image")
    publisher.publish(raw_image(np.full((16, 24), 3, np.uint8), "mono8", 10))
    graph.until(lambda: answers, "a picture")
    graph.await_status("augment: model", lambda view: view.level < 2, "recovery")
