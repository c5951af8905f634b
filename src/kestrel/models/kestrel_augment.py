# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Kestrel-Augment: a small generator of camera pictures from label images, and the critic that trains it.

Image-to-image translation after pix2pix (Isola et al., CVPR 2017): an encoder and decoder around residual
blocks, judged by a PatchGAN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class AugmentConfig:
    """Sizes of the generator.

    num_labels: label values; each becomes a plane. weathers: names of the weather codes.
    noise_channels: planes of noise at an eighth of the size. image_size: (H, W) it is trained for; both sides
    of any other size must be multiples of 8.
    """

    num_labels: int = 31
    weathers: tuple[str, ...] = ("day", "dusk", "fog", "rain")
    noise_channels: int = 4
    width: int = 24
    blocks: int = 4
    image_size: tuple[int, int] = (128, 352)


def _block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
        nn.InstanceNorm2d(out_channels, affine=True),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """Two normalised convolutions around an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            _block(channels, channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.InstanceNorm2d(channels, affine=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        changed: Tensor = self.net(x)
        return x + changed


class KestrelAugment(nn.Module):
    """The generator; skip connections carry the borders of the labels."""

    def __init__(self, config: AugmentConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AugmentConfig()
        w = config.width
        planes = config.num_labels + len(config.weathers)
        self.enter = nn.Sequential(nn.Conv2d(planes, w, 3, padding=1), nn.ReLU(inplace=True))
        self.down = nn.ModuleList((_block(w, 2 * w, 2), _block(2 * w, 4 * w, 2), _block(4 * w, 4 * w, 2)))
        self.mix = nn.Sequential(
            _block(4 * w + config.noise_channels, 4 * w), *(Residual(4 * w) for _ in range(config.blocks))
        )
        self.up = nn.ModuleList((_block(8 * w, 2 * w), _block(4 * w, w), _block(2 * w, w)))
        self.leave = nn.Conv2d(w, 3, 3, padding=1)

    def forward(self, labels: Tensor, weather: Tensor, noise: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W), 0..1.

        Args:
            labels: (B, H, W) int64 label values.
            weather: (B,) int64 index into ``config.weathers``.
            noise: (B, noise_channels, H / 8, W / 8).
        """
        x = self.enter(self.planes(labels, weather))
        skips = []
        for layer in self.down:
            skips.append(x)
            x = layer(x)
        x = self.mix(torch.cat((x, noise.to(x.dtype)), 1))
        for layer, skip in zip(self.up, reversed(skips), strict=True):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = layer(torch.cat((x, skip), 1))
        return torch.sigmoid(self.leave(x).float())

    def planes(self, labels: Tensor, weather: Tensor) -> Tensor:
        """Return one plane per label value and per weather, (B, planes, H, W)."""
        num_labels, num_weathers = self.config.num_labels, len(self.config.weathers)
        planes = torch.zeros(*labels.shape, num_labels + num_weathers, device=labels.device)
        planes.scatter_(3, labels.clamp(max=num_labels - 1)[..., None], 1.0)
        planes[..., num_labels:] = F.one_hot(weather, num_weathers)[:, None, None]
        return planes.permute(0, 3, 1, 2)


class PatchCritic(nn.Module):
    """PatchGAN: says of every patch of a picture with its labels whether it looks real."""

    def __init__(self, planes: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            (
                nn.Sequential(nn.Conv2d(planes + 3, width, 4, 2, 1), nn.LeakyReLU(0.2)),
                nn.Sequential(
                    nn.utils.parametrizations.spectral_norm(nn.Conv2d(width, 2 * width, 4, 2, 1)),
                    nn.LeakyReLU(0.2),
                ),
                nn.Sequential(
                    nn.utils.parametrizations.spectral_norm(nn.Conv2d(2 * width, 4 * width, 4, 2, 1)),
                    nn.LeakyReLU(0.2),
                ),
            )
        )
        self.answer = nn.Conv2d(4 * width, 1, 3, padding=1)

    def forward(self, pictures: Tensor, planes: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return scores (B, 1, h, w) and the features of every layer."""
        x = torch.cat((pictures * 2 - 1, planes), 1)
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return self.answer(x), features
