# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""SPVCNN: a sparse voxel U-Net with a high-resolution point branch (Tang et al. 2020, figure 3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kestrel.models.minkunet import BASE_CHANNELS, MinkUNet, climb
from kestrel.nn.sparse import SparseTensor
from kestrel.nn.sparse_points import PointTensor, PointToVoxel, VoxelToPoint


class SPVCNN(MinkUNet):
    """MinkUNet whose features also live on the points, so that small things survive coarse voxels.

    Args are those of MinkUNet, whose point transforms it always has; keys and shapes are those of the
    released checkpoints.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        channels: Sequence[int] = BASE_CHANNELS,
        in_channels: int = 4,
        pres: float = 0.05,
        vres: float = 0.05,
        dropout: float = 0.3,
        blocks: Sequence[int] = (2,) * 8,
    ) -> None:
        super().__init__(
            num_classes,
            channels=channels,
            in_channels=in_channels,
            pres=pres,
            vres=vres,
            dropout=dropout,
            blocks=blocks,
        )
        self.to_voxel, self.to_point = PointToVoxel(), VoxelToPoint()

    def forward(self, positions: Tensor, features: Tensor) -> Tensor:
        """Classify points.

        Args:
            positions: (P, 4) columns batch, x, y, z in units of ``pres``; integers or floating point.
            features: (P, in_channels).

        Returns:
            (P, num_classes) logits in the order of the points.
        """
        # Names are used again: what nothing reads any more is freed, and features are most of the memory.
        z: PointTensor = self.points(positions, features)
        x0: SparseTensor = self.stem(z.voxelized())
        z = self.to_point(x0, z)

        *skips, y = self.encode(self.to_voxel(x0.coordinates, z))
        z = self.point_transforms[0](y, z)

        y = self.to_voxel(y.coordinates, z)
        y = climb(self.up1, y.replace(self.dropout(y.features)), skips.pop())
        y = climb(self.up2, y, skips.pop())
        z = self.point_transforms[1](y, z)

        y = self.to_voxel(y.coordinates, z)
        y = climb(self.up3, y.replace(self.dropout(y.features)), skips.pop())
        y = climb(self.up4, y, x0)
        z = self.point_transforms[2](y, z)
        return self.classify(z.features)
