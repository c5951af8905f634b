# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Which moments of a recording become key frames, and what belongs to a moment."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final

FRAME_HZ: Final = 2.0
"""Of key frames, where labels are as frequent; pictures look back by one or more of them."""

PERIOD_NS: Final = round(1e9 / FRAME_HZ)
LEAST_NS: Final = round(0.88 * PERIOD_NS)
"""Key frames of nuScenes are half a second apart, give or take a turn of its LiDAR."""


def key_stamps(stamps: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield number and stamp of key frames, as far apart as there are labels, but not closer than PERIOD_NS.

    The number is that of the periods since the first one, so that what lies between two frames is told by it.
    """
    number, now = 0, stamps[0]
    yield number, now
    while later := [stamp for stamp in stamps if stamp - now >= LEAST_NS]:
        chosen = min(later, key=lambda stamp: abs(stamp - now - PERIOD_NS))
        number, now = number + max(1, round((chosen - now) / PERIOD_NS)), chosen
        yield number, now


def nearest(stamps: Sequence[int], wanted: int, within_ns: int) -> int | None:
    """Return the one of sorted stamps that is closest to a wanted one, None if none is within so many ns."""
    after = bisect_left(stamps, wanted)
    best = min(stamps[max(after - 1, 0) : after + 1], key=lambda stamp: abs(stamp - wanted), default=None)
    return None if best is None or abs(best - wanted) > within_ns else best
