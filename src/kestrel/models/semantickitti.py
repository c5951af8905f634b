# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What the released SPVNAS checkpoints were trained on: their voxels and their SemanticKITTI classes."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from kestrel.classes import IGNORE
from kestrel.ops import coordinate_set

VOXEL_SIZE: Final = 0.05
"""Edge length of a voxel [m]."""

_RAW_OF_CLASS: Final = (
    (10, 252),
    (11,),
    (15,),
    (18, 258),
    (20, 259),
    (30, 254),
    (31, 253),
    (32, 255),
    (40,),
    (44,),
    (48,),
    (49,),
    (50,),
    (51,),
    (70,),
    (71,),
    (72,),
    (80,),
    (81,),
)
"""Raw SemanticKITTI labels of each class. Unlike in the official map of the benchmark, buses, rail vehicles,
lane markings and other structures have no class here: the released networks ignored them."""


def class_of_raw_label(raw: Tensor) -> Tensor:
    """Return the class index of raw 16-bit SemanticKITTI labels, IGNORE for those without a class."""
    table = torch.full((1 << 16,), IGNORE, dtype=torch.int64)
    for index, labels in enumerate(_RAW_OF_CLASS):
        table[list(labels)] = index
    return table[raw.long()]


def quantize(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the voxels of one scan as the released networks expect them.

    Args:
        points: (P, 4) x, y, z [m], intensity 0..1.

    Returns:
        (P, 3) int64 non-negative voxel of every point, (M,) first point of every voxel in x-major order, and
        (P,) voxel row of every point.
    """
    cells = (points[:, :3] / VOXEL_SIZE).round().long()
    cells -= cells.amin(0) if len(cells) else 0
    voxels, rows = coordinate_set(torch.nn.functional.pad(cells, (1, 0)))
    positions = torch.arange(len(rows))
    first = torch.full((len(voxels),), len(rows)).scatter_reduce_(0, rows, positions, "amin")
    return cells, first, rows
