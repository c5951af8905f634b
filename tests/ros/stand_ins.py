# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Nodes with pipelines that answer at once and predictably, or fail on demand; and one that does nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import rclpy
import torch
from rclpy.context import Context
from rclpy.lifecycle import TransitionCallbackReturn

from kestrel.classes import EVENTS, POINT_CLASSES
from kestrel.engine.device import CPU
from kestrel.types import ActionScores, Image, PointCloud, PointLabels, UInt8Array
from kestrel_nodes.augment import AugmentNode
from kestrel_nodes.segmentation import SegmentationNode
from kestrel_nodes.video import VideoNode
from tests.ros.graph import NodeT

CAR = POINT_CLASSES.index("car")
ROAD = POINT_CLASSES.index("driveable_surface")


@contextmanager
def configured(kind: Callable[..., NodeT], *arguments: str) -> Iterator[NodeT]:
    """Keep a node named ``kind`` configured, with command-line ``arguments``."""
    context = Context()
    rclpy.init(args=list(arguments), context=context)
    node = kind(kind.__name__.lower(), context=context)
    try:
        assert node.trigger_configure() is TransitionCallbackReturn.SUCCESS
        yield node
    finally:
        node.shut_down()
        node.destroy_node()
        context.try_shutdown()


class Gate:
    """Lets calls pass, or holds them until it opens."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.entered = 0
        self.error: Exception | None = None

    def leave_behind(self) -> threading.Event:
        """Open for who comes from now on; return what those wait for who are held already."""
        held, self.open = self.open, threading.Event()
        self.open.set()
        return held

    def pass_through(self) -> None:
        """Wait for the gate, then raise what was asked for."""
        self.entered += 1
        assert self.open.wait(30.0)
        if self.error is not None:
            raise self.error


@dataclass
class DrivenTime:
    """Stands in for the module `time` where messages arrive."""

    now: float = 1000.0

    def monotonic(self) -> float:
        """Return the time that the test says it is."""
        return self.now


@dataclass
class HeightSegmenter:
    """Points above 0.5 m are cars, all others road."""

    gate: Gate
    precision = "float32"
    at_lidar = False
    device: torch.device = CPU
    classes: tuple[str, ...] = POINT_CLASSES
    manifest: None = None
    clouds: list[PointCloud] = field(default_factory=list)

    def segment(self, cloud: PointCloud) -> PointLabels:
        self.clouds.append(cloud)
        self.gate.pass_through()
        label = np.where(cloud.points[:, 2] > 0.5, CAR, ROAD).astype(np.uint8)
        return PointLabels(label, np.full(len(cloud), 0.75, np.float32), self.classes)


@dataclass
class CountingVideo:
    """The most probable class is the number of pictures seen since the last reset."""

    gate: Gate
    classes: tuple[str, ...] = EVENTS
    manifest: None = None
    device: torch.device = CPU
    seen: dict[str, int] = field(default_factory=dict)
    resets: list[str | None] = field(default_factory=list)

    def reset(self, frame_id: str | None = None) -> None:
        self.resets.append(frame_id)
        if frame_id is None:
            self.seen.clear()
        else:
            self.seen.pop(frame_id, None)

    def step(self, image: Image) -> ActionScores:
        self.gate.pass_through()
        count = self.seen[image.frame_id] = self.seen.get(image.frame_id, 0) + 1
        scores = np.full(len(EVENTS), 0.02, np.float32)
        scores[min(count - 1, len(EVENTS) - 1)] = 0.86
        return ActionScores(scores, self.classes, image.stamp_ns, warm=count > 1)


@dataclass
class GreyAugmenter:
    """Every channel is the label, brightened by the seed."""

    gate: Gate
    manifest: None = None
    device: torch.device = CPU

    def scene_labels(self, seed: int) -> UInt8Array:
        return np.full((16, 24), seed % 30, np.uint8)

    def render(self, labels: UInt8Array, seed: int) -> UInt8Array:
        self.gate.pass_through()
        return np.repeat(((labels.astype(np.int64) + seed) % 256).astype(np.uint8)[..., None], 3, axis=2)


class Segmentation(SegmentationNode):
    """The real node around HeightSegmenter."""

    def __init__(self, name: str, **options: object) -> None:
        self.gate = Gate()
        super().__init__(name, **options)

    def load(self, device: str) -> HeightSegmenter:
        return HeightSegmenter(self.gate)


class Video(VideoNode):
    """The real node around CountingVideo."""

    def __init__(self, name: str, **options: object) -> None:
        self.gate = Gate()
        super().__init__(name, **options)

    def load(self, device: str) -> CountingVideo:
        return CountingVideo(self.gate)


class Augment(AugmentNode):
    """The real node around GreyAugmenter."""

    def __init__(self, name: str, **options: object) -> None:
        self.gate = Gate()
        super().__init__(name, **options)

    def load(self, device: str) -> GreyAugmenter:
        return GreyAugmenter(self.gate)
