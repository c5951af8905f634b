# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Where the labels of a frame say what is there."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

NEAR_M: Final = 2.0
"""Around a labelled object it is known what is there, also where the labels else say nothing."""


def outside(places: Tensor, unlabelled: Tensor) -> Tensor:
    """Return which places (..., 2 or more), seen from above, lie in none of boxes (K, 7): (...,) bool.

    Boxes are x, y, z, length, width, height, yaw in the frame of the places; heights do not matter.
    """
    x, y = places[..., 0, None], places[..., 1, None]
    middle_x, middle_y, _, length, width, _, yaw = unlabelled.unbind(1)
    cosine, sine = yaw.cos(), yaw.sin()
    # Turned first and then moved: regions are many boxes, and this halves what is computed for each.
    ahead = x * cosine + y * sine - (middle_x * cosine + middle_y * sine)
    aside = y * cosine - x * sine - (middle_y * cosine - middle_x * sine)
    return ~((ahead.abs() < length / 2) & (aside.abs() < width / 2)).any(-1)


def judged(
    places: Tensor, label: Tensor, truth: Tensor, unlabelled: Tensor, labelled_classes: Tensor
) -> Tensor:
    """Return of which boxes that were found the labels say whether they are right, (N,) bool.

    Args:
        places: (N, 2 or more) middles of the boxes.
        label: (N,) classes of the boxes.
        truth: (M, 2 or more) middles of the true boxes.
        unlabelled: (K, 7), as of CachedFrame.
        labelled_classes: (classes,) bool, as of CachedFrame.
    """
    near = (torch.cdist(places[:, :2], truth[:, :2]) < NEAR_M).any(1)
    return labelled_classes[label] & (outside(places, unlabelled) | near)
