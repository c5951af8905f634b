# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""From the scores of a stream to a steady decision (TSM's online gesture demonstration, Lin et al. 2019)."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from typing import Final

import torch
from torch import Tensor

GESTURES_MASKED: Final = frozenset((3, 7, 8, 21, 22))
"""Classes of the released gesture network that are too unreliable to report."""

GESTURES_MERGED: Final = {0: 2}
""""Doing other things" is reported as "No gesture"."""


class DecisionSmoother:
    """Sums the last scores and changes its decision only after it was steady.

    Args:
        window: number of frames whose logits are summed.
        masked: classes that repeat the last decision.
        merged: class to the class that stands for it.
        start: decision before the first frame.
    """

    def __init__(
        self,
        window: int = 12,
        masked: Collection[int] = GESTURES_MASKED,
        merged: Mapping[int, int] = GESTURES_MERGED,
        start: int = 2,
    ) -> None:
        self.masked = frozenset(masked)
        self.merged = dict(merged)
        self.start = start
        self._logits: deque[Tensor] = deque(maxlen=window)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._logits.clear()
        self._last = self._before = self.start

    def window_class(self, logits: Tensor) -> int:
        """Take the (K,) logits of a new frame; return the best class of the window."""
        self._logits.append(logits)
        return int(torch.stack(list(self._logits)).sum(dim=0).argmax())

    def decide(self, candidate: int) -> int:
        """Return the decision for the class of the newest window."""
        if candidate in self.masked:
            candidate = self._last
        candidate = self.merged.get(candidate, candidate)
        if candidate != self._last and self._last != self._before:
            candidate = self._last
        self._before, self._last = self._last, candidate
        return candidate

    def step(self, logits: Tensor) -> int:
        """Take the (K,) logits of a new frame; return the decision."""
        return self.decide(self.window_class(logits))
