# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The quality of service of inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)

RELIABILITY: Final = ("reliable", "best_effort")

LATCHED: Final = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
"""The last message is kept for subscribers that come later (label lists)."""

OUTPUT: Final = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
"""Reliable, which serves reliable and best-effort subscribers alike."""


def is_kept(publishers: Iterable[Any]) -> bool:
    """Whether any of these (rclpy's TopicEndpointInfo) keeps its last message for late subscribers."""
    fits = (qos_check_compatible(publisher.qos_profile, LATCHED)[0] for publisher in publishers)
    return any(fit != QoSCompatibility.ERROR for fit in fits)


def input_qos(reliability: str = "best_effort", depth: int = 5) -> QoSProfile:
    """Return the profile of an input.

    Args:
        reliability: ``best_effort`` accepts every publisher; ``reliable`` needs a reliable one and gets
            lost fragments of large messages resent.
        depth: messages the middleware holds while the node is busy elsewhere.
    """
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE
        if reliability == "reliable"
        else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.VOLATILE,
    )
