# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Boxes as detection heads produce them, and the conventions of the released checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kestrel.types import Float32Array


class DecodedBoxes(NamedTuple):
    """Detections of one sample in the frame of the map.

    boxes: (K, 9) x, y, z of the bottom, three sizes, yaw, velocity x, y; metres, radians, metres per second.
        The meaning of sizes and yaw is what the head was trained with.
    scores: (K,) in 0..1.
    labels: (K,) int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def inside_range(boxes: Tensor, center_range: Sequence[float]) -> Tensor:
    """Return (K,) bool: x, y, z of the boxes lie within (lower x, y, z, upper x, y, z), borders included."""
    bounds = torch.as_tensor(center_range, dtype=boxes.dtype, device=boxes.device)
    position = boxes[:, :3]
    return ((position >= bounds[:3]) & (position <= bounds[3:])).all(dim=1)


class StandardBoxes(NamedTuple):
    """Boxes in the convention of kestrel.types.Boxes3D.

    center: (K, 3) middle. size: (K, 3) length, width, height. yaw: (K,) about z. velocity: (K, 2).
    """

    center: Float32Array
    size: Float32Array
    yaw: Float32Array
    velocity: Float32Array


def standard_boxes(boxes: Tensor, *, released: bool) -> StandardBoxes:
    """Convert decoded boxes.

    Args:
        boxes: (K, 9) as in DecodedBoxes.
        released: True for the MIT checkpoints (sizes are width, length, height and yaw = -yaw_standard - pi
            / 2), False for sizes length, width, height and standard yaw.
    """
    values = boxes.detach().cpu().numpy().astype(np.float32)
    center, size, yaw = values[:, :3].copy(), values[:, 3:6].copy(), values[:, 6].copy()
    center[:, 2] += size[:, 2] / 2
    if released:
        size = size[:, [1, 0, 2]]
        yaw = -yaw - np.float32(np.pi / 2)
    yaw = (yaw + np.float32(np.pi)) % np.float32(2 * np.pi) - np.float32(np.pi)
    return StandardBoxes(center, size, yaw, values[:, 7:9].copy())
