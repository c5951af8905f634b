# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A node that listens to a graph for a few seconds and remembers what the doctor needs to know."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import GetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from kestrel_nodes.qos import is_kept

SENSOR_TYPES: dict[str, type] = {
    "sensor_msgs/msg/PointCloud2": PointCloud2,
    "sensor_msgs/msg/Image": Image,
    "sensor_msgs/msg/CompressedImage": CompressedImage,
    "sensor_msgs/msg/CameraInfo": CameraInfo,
}
LATCHED = QoSProfile(
    depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL, reliability=ReliabilityPolicy.RELIABLE
)
BEST_EFFORT = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
ANSWER_S = 2.0
"""A node that is busy or hangs is not waited for any longer."""


class Listener:
    """What one node hears in a few seconds.

    topics: type names by topic. nodes: name and namespace of all. parents: parent by child frame, from TF.
    frames: frame_id and stamps_ns: newest stamp by sensor topic. clouds: newest cloud by topic.
    clock_ns: newest /clock, or None.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.topics: dict[str, list[str]] = {}
        self.nodes: list[tuple[str, str]] = []
        self.parents: dict[str, str] = {}
        self.frames: dict[str, str] = {}
        self.stamps_ns: dict[str, int] = {}
        self.clouds: dict[str, PointCloud2] = {}
        self.clock_ns: int | None = None
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)

    def listen(self, seconds: float) -> None:
        """Discover for a third of the time, then listen to sensors, transforms and the clock."""
        self._spin(seconds / 3)
        self.topics = dict(self.node.get_topic_names_and_types())
        self.nodes = self.node.get_node_names_and_namespaces()
        self.node.create_subscription(TFMessage, "/tf", self._hear_transforms, BEST_EFFORT)
        self.node.create_subscription(TFMessage, "/tf_static", self._hear_transforms, LATCHED)
        self.node.create_subscription(Clock, "/clock", self._hear_clock, BEST_EFFORT)
        for topic, types in self.topics.items():
            kind = SENSOR_TYPES.get(types[0])
            if kind is not None and self.node.count_publishers(topic):
                # A CameraInfo may have been published once, by somebody who keeps it.
                latched = kind is CameraInfo and is_kept(self.node.get_publishers_info_by_topic(topic))
                profile = LATCHED if latched else qos_profile_sensor_data
                self.node.create_subscription(kind, topic, self._hear_sensor(topic), profile)
        self._spin(seconds * 2 / 3)

    def parameter(self, name: str, namespace: str, parameter: str) -> str | None:
        """Return a parameter of a node that is a string, or None where it does not say so in time."""
        service = f"{namespace.rstrip('/')}/{name}/get_parameters"
        client = self.node.create_client(GetParameters, service)
        try:
            if not client.wait_for_service(timeout_sec=ANSWER_S):
                return None
            future = client.call_async(GetParameters.Request(names=[parameter]))
            self._executor.spin_until_future_complete(future, timeout_sec=ANSWER_S)
            values = future.result().values if future.done() else []
            told = [value.string_value for value in values if value.type == ParameterType.PARAMETER_STRING]
            return next(iter(told), None)
        finally:
            self.node.destroy_client(client)

    def reaches(self, frame: str, root: str) -> bool:
        """Return whether the transforms heard connect two frames."""
        return bool(self._ancestors(frame) & self._ancestors(root))

    def _ancestors(self, frame: str) -> set[str]:
        seen = {frame}
        while frame in self.parents and self.parents[frame] not in seen:
            frame = self.parents[frame]
            seen.add(frame)
        return seen

    def _spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._executor.spin_once(timeout_sec=0.05)

    def _hear_transforms(self, message: Any) -> None:
        for transform in message.transforms:
            self.parents[transform.child_frame_id] = transform.header.frame_id

    def _hear_clock(self, message: Any) -> None:
        self.clock_ns = message.clock.sec * 10**9 + message.clock.nanosec

    def _hear_sensor(self, topic: str) -> Callable[[Any], None]:
        def hear(message: Any) -> None:
            self.frames[topic] = message.header.frame_id
            self.stamps_ns[topic] = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
            if isinstance(message, PointCloud2):
                self.clouds[topic] = message

        return hear
