# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What the released SPVNAS checkpoints were trained on: voxels of single SemanticKITTI scans."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from kestrel.ops import coordinate_set
from kestrel.ops.coordinates import whole_numbers

VOXEL_SIZE: Final = 0.05
"""Edge length of a voxel [m]."""


def quantize(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the voxels of one scan as the released networks expect them.

    Args:
        points: (P, 4) x, y, z [m], intensity 0..1.

    Returns:
        (P, 3) int64 non-negative voxel of every point, (M,) first point of every voxel in x-major order, and
        (P,) voxel row of every point.
    """
    cells = whole_numbers((points[:, :3] / VOXEL_SIZE).round())
    cells -= cells.amin(0) if len(cells) else 0
    voxels, rows = coordinate_set(torch.nn.functional.pad(cells, (1, 0)))
    positions = torch.arange(len(rows))
    first = torch.full((len(voxels),), len(rows)).scatter_reduce_(0, rows, positions, "amin")
    return cells, first, rows
