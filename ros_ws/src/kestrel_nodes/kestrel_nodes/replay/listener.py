# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Finds the outputs of the nodes in the graph, subscribes to them raw, and sees who takes which input."""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from kestrel.data.bag import typestore
from kestrel.data.messages import source_of
from kestrel_nodes.replay.pacing import Answers

if TYPE_CHECKING:
    from rclpy.node import Node

OUTPUT: Final = re.compile(r"(?P<node>/.+)/(output|debug)/.+")
DIAGNOSTICS: Final = "/diagnostics"
CLOUD: Final = "sensor_msgs/msg/PointCloud2"
IMAGES: Final = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
DEPTH: Final = 100


def message_class(msgtype: str) -> Any | None:
    """Return the rclpy class of ``package/msg/Name``, None where the package is not installed."""
    package, _, name = msgtype.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError):
        return None


def is_output(topic: str) -> bool:
    """Whether nodes publish on this topic what they found, or how they are."""
    return topic == DIAGNOSTICS or OUTPUT.fullmatch(topic) is not None


class Listener:
    """Receives every ``~/output/*``, ``~/debug/*`` and /diagnostics that nodes publish.

    Args:
        node: to subscribe with; spun by the caller.
        answers: told of every output.
        record: called with (topic, msgtype, raw) of every message.
        announce: called with (topic, msgtype, latched) of every topic, before its messages.
        exclude: topics that it matches are left alone; what nobody else wants is then not computed.
    """

    def __init__(
        self,
        node: Node,
        answers: Answers,
        record: Callable[[str, str, bytes], None],
        announce: Callable[[str, str, bool], None],
        exclude: re.Pattern[str] | None = None,
    ) -> None:
        self._node = node
        self._answers = answers
        self._record = record
        self._announce = announce
        self._exclude = exclude
        self._subscriptions: dict[str, Any] = {}
        self._lock = threading.Lock()
        typestore()  # is made once, which takes a moment: not while messages arrive
        self.received = 0

    def look(self, inputs: Collection[str]) -> int:
        """Subscribe to new outputs, see which nodes take ``inputs``; return how many topics are heard.

        inputs: what the replay itself publishes.
        """
        with self._lock:
            nodes = set()
            for topic, types in self._node.get_topic_names_and_types():
                found = OUTPUT.fullmatch(topic)
                if found is None and topic != DIAGNOSTICS:
                    continue
                if found is not None:
                    nodes.add(found["node"])
                if topic in inputs or (self._exclude is not None and self._exclude.search(topic)):
                    continue
                if topic not in self._subscriptions and self._node.count_publishers(topic):
                    self._subscribe(topic, types[0])
            for node in nodes:
                self._connect(node, inputs)
            return len(self._subscriptions)

    def takers(self, inputs: Collection[str]) -> set[str]:
        """Return the full names of the nodes that subscribe to any of ``inputs``."""
        found = set()
        for topic in inputs:
            for info in self._node.get_subscriptions_info_by_topic(topic):
                found.add(_full_name(info.node_namespace, info.node_name))
        return found

    def _subscribe(self, topic: str, msgtype: str) -> None:
        from rclpy.qos import DurabilityPolicy

        kind = message_class(msgtype)
        if kind is None:
            self._node.get_logger().warning(f"{topic}: {msgtype} is not installed, not recorded")
            self._subscriptions[topic] = None
            return
        callback = partial(self._arrived, topic, msgtype)
        profile = self._profile(topic)
        self._announce(topic, msgtype, profile.durability == DurabilityPolicy.TRANSIENT_LOCAL)
        self._subscriptions[topic] = self._node.create_subscription(kind, topic, callback, profile, raw=True)

    def _profile(self, topic: str) -> Any:
        """Return what every publisher of the topic offers."""
        from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

        offers = [info.qos_profile for info in self._node.get_publishers_info_by_topic(topic)]
        reliable = all(offer.reliability == ReliabilityPolicy.RELIABLE for offer in offers)
        latched = all(offer.durability == DurabilityPolicy.TRANSIENT_LOCAL for offer in offers)
        return QoSProfile(
            depth=DEPTH,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )

    def _connect(self, node: str, inputs: Collection[str]) -> None:
        """Tell the answers which inputs drive a node: its clouds, or its images if it takes no cloud."""
        namespace, _, name = node.rpartition("/")
        try:
            taken = self._node.get_subscriber_names_and_types_by_node(name, namespace or "/")
        except Exception:  # the node has just gone; rclpy's class for this is private
            return
        types = {topic: kinds[0] for topic, kinds in taken if topic in inputs}
        clouds = [topic for topic, kind in types.items() if kind == CLOUD]
        images = [topic for topic, kind in types.items() if kind in IMAGES]
        self._answers.connect(node, [(topic, not clouds) for topic in clouds or images])

    def _arrived(self, topic: str, msgtype: str, raw: bytes) -> None:
        self.received += 1
        self._record(topic, msgtype, raw)
        found = OUTPUT.fullmatch(topic)
        if found is not None and found[2] == "output":
            source = source_of(msgtype, raw)
            if source is not None:
                self._answers.received(found["node"], source)


def _full_name(namespace: str, name: str) -> str:
    return f"{namespace.rstrip('/')}/{name}"
