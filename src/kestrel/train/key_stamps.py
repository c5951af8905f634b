# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Which moments of a recording become key frames."""

from __future__ import annotations

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
