# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Messages that hold until the next one (CameraInfo), which drivers and bags publish again and again or once.

A volatile subscription hears every publisher, but not what one published before. A transient-local one hears
that of a publisher that keeps it (latched), but no volatile publisher: it takes both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription

from kestrel_nodes.qos import LATCHED, is_kept


class Publications:
    """Which messages count where two subscriptions hear them, told apart by when they were published."""

    def __init__(self) -> None:
        self._taken_ns = self._live_ns = -1

    def live(self, published_ns: int) -> bool:
        """Whether to take what was heard live: unless it was the last that was taken, as kept."""
        self._live_ns = published_ns
        return self._take(published_ns)

    def kept(self, published_ns: int) -> bool:
        """Whether to take what was kept: it may come after something newer that was heard live."""
        return published_ns > self._live_ns and self._take(published_ns)

    def _take(self, published_ns: int) -> bool:
        new = published_ns != self._taken_ns
        self._taken_ns = published_ns
        return new


class LastingSubscription:
    """Hears a topic live and, while a publisher keeps its last message, as kept.

    Args:
        node: whose subscriptions these are.
        kind: message class.
        take: called with each message, once.
    """

    def __init__(self, node: Node, kind: type, take: Callable[[Any], None]) -> None:
        self._node, self._kind, self._take = node, kind, take
        self._publications = Publications()
        self._live: Subscription | None = None
        self._kept: Subscription | None = None
        # With two arguments rclpy also says when a message was published; its annotations know one alone.
        self._on_live: Callable[..., None] = self._hear_live
        self._on_kept: Callable[..., None] = self._hear_kept

    def open(self, topic: str, profile: QoSProfile, events: SubscriptionEventCallbacks) -> Subscription:
        """Return the subscription for live messages; `check` makes the other one where it is of use."""
        self._live = self._node.create_subscription(
            self._kind, topic, self._on_live, profile, event_callbacks=events
        )
        self.check()
        return self._live

    def check(self) -> None:
        """Subscribe to what is kept if a publisher keeps anything.

        Always to have both would have every volatile publisher warn of an incompatible subscription.
        """
        if self._live is None:
            return
        if not is_kept(self._node.get_publishers_info_by_topic(self._live.topic_name)):
            self._close_kept()
        elif self._kept is None:
            silent = SubscriptionEventCallbacks(use_default_callbacks=False)
            self._kept = self._node.create_subscription(
                self._kind, self._live.topic_name, self._on_kept, LATCHED, event_callbacks=silent
            )

    def close(self) -> None:
        """Unsubscribe; what was heard stays known."""
        self._close_kept()
        if self._live is not None:
            self._node.destroy_subscription(self._live)
            self._live = None

    def _close_kept(self) -> None:
        if self._kept is not None:
            self._node.destroy_subscription(self._kept)
            self._kept = None

    def _hear_live(self, message: Any, info: dict[str, int]) -> None:
        if self._publications.live(info["source_timestamp"]):
            self._take(message)

    def _hear_kept(self, message: Any, info: dict[str, int]) -> None:
        if self._publications.kept(info["source_timestamp"]):
            self._take(message)
