# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Which samples a training draws, and how often each, so that rare classes are seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Generator
from torch.utils.data import IterableDataset, get_worker_info

from kestrel.types import Float64Array


def drawing_weights(there: NDArray[np.bool_]) -> Float64Array:
    """Return how often to draw each sample, given which classes it has, (samples, classes).

    A class that one sample in ten has makes such a sample three times as likely as one with common classes
    only; of several rare classes the rarest decides (repeat factor sampling, Gupta et al., CVPR 2019).
    """
    share = there.mean(0).clip(1 / len(there))
    return np.asarray((there / np.sqrt(share)).max(1).clip(1.0))


class Endless(IterableDataset[Any]):
    """Draws samples for ever from something with ``draw(generator)``.

    Sample k of a run depends on the seed and on k alone, wherever the run was interrupted.
    """

    def __init__(self, source: Any, seed: int, first: int = 0) -> None:
        self.source = source
        self.seed = seed
        self.first = first

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        offset, step = (worker.id, worker.num_workers) if worker else (0, 1)
        number = self.first + offset
        while True:
            yield self.source.draw(Generator().manual_seed(self.seed * 1_000_003 + number))
            number += step
