# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What a network kept of the pictures of each camera, for those that are taken one hop later."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch

from kestrel.models.mobilenetv2 import State

TOLERANCE: Final = 0.5
"""By which share of a hop an earlier picture may be too old or too young."""


class PictureMemory:
    """States of the latest pictures, by camera.

    Frames come more often than once in a hop, so that several states are kept of each camera. A camera that
    was out has no past, and after a stamp that jumped back only what has an earlier one is left.

    Args:
        hop_s: seconds from an earlier picture to the one that looks back on it; 0: none does.
        blank: the state of one picture that has no past, (1, c, h, w) each.
    """

    def __init__(self, hop_s: float, blank: State) -> None:
        self._hop_ns = round(hop_s * 1e9)
        self._blank = blank
        self._kept: dict[str, dict[int, State]] = {}

    def recall(self, pictures: Iterable[tuple[str, int]]) -> State:
        """Return the past of (camera, stamp in ns) in that order, (M, c, h, w); zeros where one has none."""
        states = [self._before(camera, stamp_ns) or self._blank for camera, stamp_ns in pictures]
        return tuple(torch.cat(parts) for parts in zip(*states, strict=True))

    def keep(self, pictures: Iterable[tuple[str, int]], state: State) -> None:
        """Keep copies of the state after pictures; forget what no picture from now on looks back on."""
        if not state:
            return
        for number, (camera, stamp_ns) in enumerate(pictures):
            oldest = stamp_ns - (1 + TOLERANCE) * self._hop_ns
            kept = self._kept.get(camera, {})
            kept = {stamp: each for stamp, each in kept.items() if oldest <= stamp < stamp_ns}
            kept[stamp_ns] = tuple(each[number : number + 1].clone() for each in state)
            self._kept[camera] = kept

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def _before(self, camera: str, stamp_ns: int) -> State | None:
        wanted = stamp_ns - self._hop_ns
        stamps = [stamp for stamp in self._kept.get(camera, {}) if stamp < stamp_ns]
        nearest = min(stamps, key=lambda stamp: abs(stamp - wanted), default=None)
        if nearest is None or abs(nearest - wanted) > TOLERANCE * self._hop_ns:
            return None
        return self._kept[camera][nearest]
