# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Heads of Kestrel-Fusion that are more than a convolution: boxes and map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.nn.axis_sampler import AxisSampler
from kestrel.nn.conv import conv_block


class BoxRegression(nn.Module):
    """Box of the object at a cell, computed only at the cells asked for.

    The 3x3 neighbourhoods of the cells go through two linear layers, which is a convolution evaluated at
    a few places; with some hundred candidates it costs nothing. The class picks one of the answers.

    Front and rear of many objects look alike to a LiDAR. Where a yaw may as well be its opposite, the safest
    sine and cosine are the mean of both, which is no direction at all. So the axis, which is the yaw without
    its sense, is answered as well: by sine and cosine of twice the yaw.

    The velocity, a first estimate that BoxMotion corrects, is one for all classes: how points move from sweep
    to sweep does not depend on the class, and of most classes few objects move.
    """

    OUTPUTS = 12
    """Offset x y in cells, z, log length width height, sine and cosine of the yaw, axis, velocity x y."""

    VELOCITY_UNIT = 5.0
    """Metres per second of what the last layer calls 1, so that all answers are of one size."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.hidden = nn.Linear(9 * channels, 128)
        self.answer = nn.Linear(128, num_classes * (self.OUTPUTS - 2))
        self.velocity = nn.Linear(128, 2)

    def forward(self, features: Tensor, frame: Tensor, cell: Tensor, label: Tensor) -> Tensor:
        """Return (K, OUTPUTS) for K objects of frame (K,), cell (K, 2) and class (K,)."""
        hidden = self._hidden(features, frame, cell)
        answers = self.answer(hidden).view(-1, self.num_classes, self.OUTPUTS - 2)
        chosen = answers[torch.arange(len(label), device=cell.device), label]
        return torch.cat((chosen, self._velocity(hidden)), 1)

    def velocities(self, features: Tensor, frame: Tensor, cell: Tensor) -> Tensor:
        """Return (K, 2) the velocities in m/s of what is at frame (K,), cell (K, 2)."""
        return self._velocity(self._hidden(features, frame, cell))

    def _velocity(self, hidden: Tensor) -> Tensor:
        answer: Tensor = self.VELOCITY_UNIT * self.velocity(hidden)
        return answer

    def _hidden(self, features: Tensor, frame: Tensor, cell: Tensor) -> Tensor:
        step = torch.arange(-1, 2, device=cell.device)
        place = cell[:, None, None] + torch.stack(torch.meshgrid(step, step, indexing="ij"), -1)
        size = torch.tensor(features.shape[2:], device=cell.device)
        outside = ((place < 0) | (place >= size)).any(-1, keepdim=True)
        rows, columns = torch.minimum(place.clamp(min=0), size - 1).unbind(-1)
        # Only what is asked for is copied; padding would copy everything.
        found = features.permute(0, 2, 3, 1)[frame[:, None, None], rows, columns]
        patch = found.float().masked_fill(outside, 0).flatten(1)
        return torch.relu(self.hidden(patch))


class MapHead(nn.Module):
    """Map layers on their own grid, from the decoder's features and the fine LiDAR canvas."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        cells = round(2 * config.map_extent / config.map_resolution)
        middle = (torch.arange(cells) + 0.5) * config.map_resolution - config.map_extent
        self.sampler = AxisSampler(middle, config.extent, (config.pillars // 2, config.pillars))
        self.mix = conv_block(config.bev_channels + config.pillar_channels, 48)
        self.answer = nn.Conv2d(48, config.num_layers, 1)

    def forward(self, features: Tensor, fine: Tensor) -> Tensor:
        """Return logits (B, layers, Xm, Ym)."""
        answer: Tensor = self.answer(self.mix(self.sampler(features, fine)))
        return answer
