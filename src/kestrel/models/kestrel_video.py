# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Kestrel-Video: what goes on in front of the vehicle, from a stream of pictures.

An online TSM MobileNetV2 whose state advances in steps of sensor time, not of frames, so that it sees the
same motion at any frame rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from kestrel.models.mobilenetv2 import InvertedResidual, OnlineTSMMobileNetV2, State
from kestrel.ops.temporal_shift import temporal_shift

STRIDE: Final = 32
"""Pixels along one side of a cell of the features."""


@dataclass(frozen=True)
class VideoConfig:
    """Sizes of the network.

    image_size: (H, W) the pictures are cropped and resized to. hop_s: sensor time between two states.
    """

    num_classes: int = 8
    width: float = 0.5
    fold_div: int = 8
    image_size: tuple[int, int] = (96, 264)
    hop_s: float = 0.2


class PlacedClassifier(nn.Module):
    """A linear layer at every cell of the picture, and for every class its own weighted mean over the cells.

    A mean over all cells drowns what happens in one of them, such as the lamps of the vehicle in front. How
    much a cell counts for a class is learned from what it shows and where it lies. At first all count alike.

    Args:
        in_channels: of the features.
        num_classes: of the answer.
        cells: (H, W) of the features.
    """

    def __init__(self, in_channels: int, num_classes: int, cells: tuple[int, int]) -> None:
        super().__init__()
        self.evidence = nn.Conv2d(in_channels, num_classes, 1)
        self.weight = nn.Conv2d(in_channels, num_classes, 1, bias=False)
        self.place = nn.Parameter(torch.zeros(num_classes, *cells))
        nn.init.zeros_(self.weight.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, num_classes) logits of features (B, C, H, W)."""
        share = (self.weight(features) + self.place).flatten(2).softmax(2)
        logits: Tensor = (self.evidence(features).flatten(2) * share).sum(2)
        return logits


class KestrelVideo(nn.Module):
    """The whole network; the state is explicit and belongs to the caller.

    Beside the picture it sees how the brightness changed since the last hop. The shifts could learn that, but
    a plain difference shows motion from the first step of training. The state is that brightness, then what
    the shifting blocks keep.
    """

    def __init__(self, config: VideoConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VideoConfig()
        self.network = OnlineTSMMobileNetV2(
            0,
            fold_div=config.fold_div,
            width_multiplier=config.width,
            in_channels=4,
            last_channels=640,
        )
        height, width = config.image_size
        cells = (-(-height // STRIDE), -(-width // STRIDE))
        self.head = PlacedClassifier(self.network.num_features, config.num_classes, cells)

    @property
    def memory(self) -> int:
        """Number of past frames that the newest answer can depend on."""
        return self.network.num_shifts

    def forward(self, images: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Classify the newest pictures of some streams.

        Args:
            images: (B, 3, H, W) float32, 0..1.
            state: what the previous call returned, None at the start.

        Returns:
            (B, num_classes) logits and the new state.
        """
        brightness = images.mean(1, keepdim=True)
        past = brightness if state is None else state[0]
        planes = _planes(images, brightness - past)
        features, kept = self.network.step_last(planes, state[1:] if state else None)
        return self.head(features).float(), (brightness, *kept)

    def clip(self, images: Tensor) -> Tensor:
        """Return the logits (B, T, num_classes) of clips (B, T, 3, H, W), as a stream gives them."""
        batch, frames = images.shape[:2]
        brightness = images.mean(2, keepdim=True)
        past = torch.cat((brightness[:, :1], brightness[:, :-1]), 1)
        x = _planes(images.flatten(0, 1), (brightness - past).flatten(0, 1))
        x = x.contiguous(memory_format=torch.channels_last)
        for layer in self.network.features:
            if isinstance(layer, InvertedResidual) and layer.shifts:
                shifted = temporal_shift(x, frames, self.network.fold_div, bidirectional=False)
                x = layer.residual(x, shifted)
            else:
                x = layer(x)
        logits: Tensor = self.head(x)
        return logits.float().view(batch, frames, -1)


def _planes(images: Tensor, change: Tensor) -> Tensor:
    """Return normalised pictures and change of brightness, (B, 4, H, W)."""
    return torch.cat(((images - 0.45) / 0.25, change * 8), 1)
