# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Fills a transform buffer from /tf and /tf_static while the node is active."""

from __future__ import annotations

from functools import partial
from typing import Any

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from tf2_msgs.msg import TFMessage

from kestrel.data.transform_buffer import TransformBuffer
from kestrel_nodes.base import KestrelNode
from kestrel_nodes.stamps import stamp_ns

DYNAMIC_QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
STATIC_QOS = QoSProfile(
    depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


def listen(node: KestrelNode[Any], buffer: TransformBuffer) -> None:
    """Subscribe ``node`` to both transform topics (call in `setup`); refused transforms are counted."""
    for topic, qos in (("/tf", DYNAMIC_QOS), ("/tf_static", STATIC_QOS)):
        node.add_input(
            topic,
            TFMessage,
            partial(_take, node, buffer, topic == "/tf_static"),
            qos=qos,
            in_worker=False,
            required=False,
            stamped=False,
            single_source=False,
        )


def _take(node: KestrelNode[Any], buffer: TransformBuffer, static: bool, message: TFMessage) -> None:
    concern = node.health["calibration"]
    for transform in message.transforms:
        shift, turn = transform.transform.translation, transform.transform.rotation
        taken = buffer.add(
            transform.header.frame_id,
            transform.child_frame_id,
            stamp_ns(transform.header.stamp),
            (shift.x, shift.y, shift.z),
            (turn.x, turn.y, turn.z, turn.w),
            static=static,
        )
        if not taken:
            concern.count("refused_transforms")
