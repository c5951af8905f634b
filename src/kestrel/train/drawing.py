# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""How often to draw each sample of a training, so that rare classes are seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kestrel.types import Float64Array


def drawing_weights(there: NDArray[np.bool_]) -> Float64Array:
    """Return how often to draw each sample, given which classes it has, (samples, classes).

    A class that one sample in ten has makes such a sample three times as likely as one with common classes
    only; of several rare classes the rarest decides (repeat factor sampling, Gupta et al., CVPR 2019).
    """
    share = there.mean(0).clip(1 / len(there))
    return np.asarray((there / np.sqrt(share)).max(1).clip(1.0))
