# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Picture-to-picture networks of GAN Compression (Li et al. 2020).

The generator is CycleGAN's ResNet with nine blocks whose convolutions are separable; its eight widths are
what the paper searches. Instance normalisation has neither parameters nor running statistics. Key names are
the released ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

Widths: TypeAlias = Sequence[int]
"""Stem, first and second downsampling, blocks 0-2, 3-5 and 6-8 (inner width), first and second upsampling.

In units of the layer's multiple: 1 at full resolution, 2 at half, 4 at a quarter."""


class SeparableConv2d(nn.Module):
    """Depthwise 3x3, instance normalisation, 1x1."""

    def __init__(self, in_channels: int, out_channels: int, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, padding=padding, groups=in_channels),
            nn.InstanceNorm2d(in_channels),
            nn.Conv2d(in_channels, out_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W), less the border that is not padded."""
        out: Tensor = self.conv(x)
        return out


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions, mirrored at the border, beside an identity.

    Args:
        channels: of input and output.
        inner_channels: between the convolutions.
        dropout: after the first one.
        separable: whether the convolutions are separable.
    """

    def __init__(self, channels: int, inner_channels: int, dropout: float, *, separable: bool) -> None:
        super().__init__()

        def conv(in_channels: int, out_channels: int) -> nn.Module:
            if separable:
                return SeparableConv2d(in_channels, out_channels)
            return nn.Conv2d(in_channels, out_channels, 3)

        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            conv(channels, inner_channels),
            nn.InstanceNorm2d(inner_channels),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.ReflectionPad2d(1),
            conv(inner_channels, channels),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        out: Tensor = x + self.conv_block(x)
        return out


class ResnetGenerator(nn.Module):
    """Stem, two downsamplings, blocks, two upsamplings, tanh.

    Args:
        widths: eight numbers, see Widths.
        in_channels, out_channels: of the pictures.
        n_blocks: number of residual blocks, in three groups of equal size.
        dropout: within the blocks.
        separable: False for the uncompressed network.
        clamp: limit the input to -1..1, as all but the unsearched student do.
    """

    def __init__(
        self,
        widths: Widths,
        in_channels: int = 3,
        out_channels: int = 3,
        *,
        n_blocks: int = 9,
        dropout: float = 0.0,
        separable: bool = True,
        clamp: bool = True,
    ) -> None:
        super().__init__()
        stem, down1, down2, *blocks, up1, up2 = widths
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.clamp = clamp
        bottom = 4 * down2
        self.model = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(in_channels, stem, 7),
            *_norm_relu(stem),
            nn.Conv2d(stem, 2 * down1, 3, 2, 1),
            *_norm_relu(2 * down1),
            nn.Conv2d(2 * down1, bottom, 3, 2, 1),
            *_norm_relu(bottom),
            *(
                ResnetBlock(bottom, 4 * blocks[block * len(blocks) // n_blocks], dropout, separable=separable)
                for block in range(n_blocks)
            ),
            nn.ConvTranspose2d(bottom, 2 * up1, 3, 2, 1, output_padding=1),
            *_norm_relu(2 * up1),
            nn.ConvTranspose2d(2 * up1, up2, 3, 2, 1, output_padding=1),
            *_norm_relu(up2),
            nn.ReflectionPad2d(3),
            nn.Conv2d(up2, out_channels, 7),
            nn.Tanh(),
        )

    def prepare(self, x: Tensor) -> Tensor:
        """Limit the input where the network was trained so."""
        return x.clamp(-1, 1) if self.clamp else x

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) in -1..1 to (B, out_channels, H, W) in -1..1."""
        out: Tensor = self.model(self.prepare(x))
        return out


def _norm_relu(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.InstanceNorm2d(channels), nn.ReLU(inplace=True)


class SuperResnetGenerator(ResnetGenerator):
    """A generator that holds all narrower ones: a layer of width k uses the first k channels of its weights.

    The paper's "once-for-all" training samples the widths (section 3.3).
    """

    def subnetwork_weights(self, widths: Widths) -> tuple[ResnetGenerator, dict[str, Tensor]]:
        """Return the (empty) narrower network and the part of this network's weights that it uses."""
        with torch.device("meta"):
            narrow = ResnetGenerator(widths, self.in_channels, self.out_channels, clamp=self.clamp)
        own = dict(self.named_parameters())
        weights = {
            name: own[name][tuple(slice(length) for length in value.shape)]
            for name, value in narrow.named_parameters()
        }
        return narrow, weights

    def forward(self, x: Tensor, widths: Widths | None = None) -> Tensor:
        """Run the sub-network of these widths; the whole one if none are given."""
        if widths is None:
            return super().forward(x)
        narrow, weights = self.subnetwork_weights(widths)
        out: Tensor = torch.func.functional_call(narrow.train(self.training), weights, (x,))
        return out


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017): one score per patch.

    Args:
        in_channels: of the picture, or of the label and the picture together.
        width: of the first layer; doubles up to eight times.
        n_layers: strided layers.
    """

    def __init__(self, in_channels: int, width: int = 64, n_layers: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        channels = width
        for layer in range(1, n_layers + 1):
            out_channels = width * min(2**layer, 8)
            stride = 2 if layer < n_layers else 1
            layers += [
                nn.Conv2d(channels, out_channels, 4, stride, 1),
                nn.InstanceNorm2d(out_channels),
                nn.LeakyReLU(0.2),
            ]
            channels = out_channels
        self.model = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, 1, H', W') scores."""
        out: Tensor = self.model(x)
        return out
