# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""PointNet for semantic segmentation (Qi et al., CVPR 2017, figure 2), without its transform networks.

What point-voxel networks are compared with: points that know the whole cloud, but not their neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kestrel.nn.pvconv import SharedMLP


class PointNet(nn.Module):
    """Shared MLPs, the maximum over the cloud, and shared MLPs on both.

    Args:
        num_classes: classes.
        in_channels: of the points; the first three are their position.
        width: multiplies all channels.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 4, width: float = 1.0) -> None:
        super().__init__()
        near, middle, wide = (int(width * channels) for channels in (64, 128, 1024))
        self.point_features = nn.Sequential(SharedMLP(in_channels, near), SharedMLP(near, near))
        self.cloud_features = nn.Sequential(
            SharedMLP(near, near), SharedMLP(near, middle), SharedMLP(middle, wide)
        )
        first, second, third = (int(width * channels) for channels in (512, 256, 128))
        self.classifier = nn.Sequential(
            SharedMLP(near + wide, first),
            SharedMLP(first, second),
            SharedMLP(second, third),
            nn.Conv1d(third, num_classes, 1),
        )

    def forward(self, points: Tensor) -> Tensor:
        """Return (B, num_classes, N) logits of (B, in_channels, N) points."""
        near: Tensor = self.point_features(points)
        cloud = self.cloud_features(near).amax(2, keepdim=True).expand(-1, -1, points.shape[2])
        logits: Tensor = self.classifier(torch.cat((near, cloud), 1))
        return logits
