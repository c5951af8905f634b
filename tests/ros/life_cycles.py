# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Life cycles of a node, one after the other, and what it has before and after them."""

from __future__ import annotations

import threading
from typing import Any

from rclpy.lifecycle import TransitionCallbackReturn

from kestrel_nodes.managed import ManagedNode

SUCCESS = TransitionCallbackReturn.SUCCESS


def belongings(node: ManagedNode[Any]) -> tuple[int, ...]:
    """Return how many of each thing the node has, and how many threads this process."""
    groups = (node.subscriptions, node.publishers, node.timers, node.services)
    counts = (len(list(group)) for group in groups)
    return *counts, len(node._managed_entities), threading.active_count()


def assert_life_cycles_leave_nothing(node: ManagedNode[Any], cycles: int) -> None:
    """Take an active node down to unconfigured and up again, ``cycles`` times: it has what it had before."""
    before = belongings(node)
    for _ in range(cycles):
        assert node.trigger_deactivate() is SUCCESS
        assert node.trigger_cleanup() is SUCCESS
        assert node.trigger_configure() is SUCCESS
        assert node.trigger_activate() is SUCCESS
    assert belongings(node) == before
