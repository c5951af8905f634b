# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The map of Kestrel-Fusion from what this frame and those before it say of each cell.

Frames are averaged cell by cell (kestrel.pipelines.map_memory). What that does not know is how a map looks:
lines go on, areas have no holes, a crossing ends at the kerb. So a small network looks at the average, at the
frame itself and at how closely each cell was seen, and corrects the average.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.nn.conv import conv_block

LOGIT_SCALE = 0.25
"""Brings log-odds to about one."""


class MapRefiner(nn.Module):
    """An hourglass (U-Net, Ronneberger et al., MICCAI 2015) of two scales on the cells of the map."""

    def __init__(self, config: FusionConfig, fine: int = 24, coarse: int = 40) -> None:
        super().__init__()
        layers = config.num_layers
        self.layers = layers
        self.fine = conv_block(2 * layers + 2, fine)
        self.coarse = nn.Sequential(
            conv_block(fine, coarse, stride=2), *(conv_block(coarse, coarse) for _ in range(3))
        )
        self.up = nn.Sequential(
            nn.ConvTranspose2d(coarse, fine, 2, stride=2, bias=False), nn.BatchNorm2d(fine), nn.ReLU()
        )
        self.mix = conv_block(2 * fine, fine)
        self.answer = nn.Conv2d(fine, layers, 1)
        # Untrained it leaves the average as it is.
        for parameter in self.answer.parameters():
            nn.init.zeros_(parameter)

    def forward(self, evidence: Tensor) -> Tensor:
        """Return logits (B, layers, X, Y), X and Y even, of evidence as MapMemory.look returns it."""
        now, averaged, weights = torch.split(evidence, [self.layers, self.layers, 2], 1)
        scaled = torch.cat((LOGIT_SCALE * now, LOGIT_SCALE * averaged, weights), 1)
        fine = self.fine(scaled.contiguous(memory_format=torch.channels_last))
        mixed = self.mix(torch.cat((fine, self.up(self.coarse(fine))), 1))
        answer: Tensor = averaged + self.answer(mixed)
        return answer
