# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Ways over junctions, from lane to lane."""

from __future__ import annotations

from kestrel.sim.world.layout import STOP_BEGIN, Arm
from kestrel.sim.world.path import Path, join


def inbound(arm: Arm, lane: int) -> Path:
    """Lane of an arm towards its junction, up to the stop line."""
    path = arm.road.lane(min(lane, arm.road.profile.lanes - 1), arm.direction < 0)
    s, _ = path.project(arm.at(STOP_BEGIN, 0.0)[None])
    return path.cut(0.0, float(s[0]))


def outbound(arm: Arm, lane: int) -> Path:
    """Lane of an arm away from its junction, from the end of the kerb curves."""
    path = arm.road.lane(min(lane, arm.road.profile.lanes - 1), arm.direction > 0)
    s, _ = path.project(arm.at(0.0, 0.0)[None])
    return path.cut(float(s[0]), path.length)


def through(start: Arm, lane: int, end: Arm, end_lane: int) -> tuple[Path, float]:
    """A way over a junction, and the arc length at which it meets the stop line."""
    before = inbound(start, lane)
    return join(before, outbound(end, end_lane)), before.length
