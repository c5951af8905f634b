# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""AnyCost GAN (Lin et al. 2021): a StyleGAN2 whose generator runs at any resolution and channel ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kestrel.errors import ConfigError, describe
from kestrel.nn.stylegan2 import (
    EqualConv2d,
    EqualLinear,
    FusedLeakyReLU,
    Resample,
    StyledConv,
    ToRGB,
)

MAX_CHANNELS = 512
BASE_CHANNELS = 16384
"""Width times resolution of a layer, before MAX_CHANNELS limits it."""
RATIOS = (0.25, 0.5, 0.75, 1.0)


def channels_at(resolution: int, multiplier: float) -> int:
    """Return the width at a resolution: halves with every doubling, at most MAX_CHANNELS."""
    return min(MAX_CHANNELS, int(multiplier * BASE_CHANNELS / resolution))


class PixelNorm(nn.Module):
    """Normalise every vector to unit mean square."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to the same shape."""
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-8)


class ConstantInput(nn.Module):
    """The learned 4 x 4 start of every picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))

    def forward(self, batch: int) -> Tensor:
        """Return (batch, C, 4, 4)."""
        return self.input.expand(batch, -1, -1, -1)


class AnyCostGenerator(nn.Module):
    """StyleGAN2 generator; one set of weights serves all costs.

    Args:
        resolution: of the finest picture, a power of two.
        channel_multiplier: scales all widths.
        style_channels: of the latent vectors.
        n_mlp: layers of the mapping network.
    """

    def __init__(
        self, resolution: int, channel_multiplier: float = 2, style_channels: int = 512, n_mlp: int = 8
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.channel_multiplier = channel_multiplier
        mapping = [
            EqualLinear(style_channels, style_channels, lr_mul=0.01, activate=True) for _ in range(n_mlp)
        ]
        self.style = nn.Sequential(PixelNorm(), *mapping)
        channels = channels_at(4, channel_multiplier)
        self.input = ConstantInput(channels)
        self.conv1 = StyledConv(channels, channels, style_channels)
        self.to_rgb1 = ToRGB(channels, style_channels, upsample=False)
        self.convs, self.to_rgbs, self.noises = nn.ModuleList(), nn.ModuleList(), nn.Module()
        self.noises.register_buffer("noise_0", torch.randn(1, 1, 4, 4))
        for level in range(3, int(math.log2(resolution)) + 1):
            size = 2**level
            wide = channels_at(size, channel_multiplier)
            self.convs.append(StyledConv(channels, wide, style_channels, upsample=True))
            self.convs.append(StyledConv(wide, wide, style_channels))
            self.to_rgbs.append(ToRGB(wide, style_channels))
            for index in (2 * level - 5, 2 * level - 4):
                self.noises.register_buffer(f"noise_{index}", torch.randn(1, 1, size, size))
            channels = wide

    @property
    def n_style(self) -> int:
        """Number of style vectors that a picture of full resolution takes."""
        return len(self.convs) + 2

    def map_styles(self, z: Tensor) -> Tensor:
        """(B, 1 or n_style, style_channels) normal vectors to styles of the same shape."""
        w: Tensor = self.style(z)
        return w

    def layer_channels(self, channel_ratio: float) -> list[int]:
        """Return the width of every styled convolution at a uniform ratio, limited by MAX_CHANNELS."""
        ratio = channel_ratio * self.channel_multiplier
        sizes = [4] + [2 ** (3 + index // 2) for index in range(len(self.convs))]
        return [channels_at(size, ratio) for size in sizes]

    def forward(
        self,
        w: Tensor,
        target_res: int | None = None,
        channel_ratio: float = 1.0,
        channels: Sequence[int] | None = None,
    ) -> Tensor:
        """Draw pictures.

        Args:
            w: (B, 1 or n_style, style_channels) what map_styles returned.
            target_res: resolution of the picture; the finest if not given.
            channel_ratio: part of the channels that every layer uses.
            channels: width of every styled convolution (of the finest resolution) instead of a uniform ratio.

        Returns:
            (B, 3, target_res, target_res), about -1..1.

        Raises:
            ConfigError: there is no such resolution.
        """
        target_res = target_res or self.resolution
        if not 4 <= target_res <= self.resolution or target_res & (target_res - 1):
            raise ConfigError(
                describe("target_res", expected=f"a power of two up to {self.resolution}", found=target_res)
            )
        styles = w.expand(-1, self.n_style, -1).unbind(1)
        widths = self.layer_channels(channel_ratio) if channels is None else channels
        x = self.conv1(self.input(len(w)), styles[0], self.noises.noise_0, widths[0])
        picture: Tensor = self.to_rgb1(x, styles[1])
        for level in range(int(math.log2(target_res)) - 2):
            for index in (2 * level, 2 * level + 1):
                noise = self.noises.get_buffer(f"noise_{index + 1}")
                x = self.convs[index](x, styles[index + 1], noise, widths[index + 1])
            picture = self.to_rgbs[level](x, styles[2 * level + 3], picture)
        return picture


class AdaptiveModulate(nn.Module):
    """Scale and shift channels according to the generator's architecture (section 3.3)."""

    def __init__(self, channels: int, arch_channels: int) -> None:
        super().__init__()
        self.weight_mapping = nn.Linear(arch_channels, channels)
        self.bias_mapping = nn.Linear(arch_channels, channels)

    def forward(self, x: Tensor, g_arch: Tensor) -> Tensor:
        """(B, C, H, W) with the (arch_channels,) description of the generator to the same shape."""
        weight, bias = self.weight_mapping(g_arch) + 1, self.bias_mapping(g_arch)
        out: Tensor = x * weight[:, None, None] + bias[:, None, None]
        return out


class ConvLayer(nn.Sequential):
    """(Blur), convolution, (modulation), (bias and leaky ReLU)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        downsample: bool = False,
        activate: bool = True,
        arch_channels: int = 0,
    ) -> None:
        layers: list[nn.Module] = []
        if downsample:
            pad = kernel_size + 1
            layers.append(Resample(((pad + 1) // 2, pad // 2)))
        stride, padding = (2, 0) if downsample else (1, kernel_size // 2)
        layers.append(EqualConv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding))
        if arch_channels:
            layers.append(AdaptiveModulate(out_channels, arch_channels))
        if activate:
            layers.append(FusedLeakyReLU(out_channels))
        super().__init__(*layers)

    def forward(self, x: Tensor, g_arch: Tensor | None = None) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H', W')."""
        for layer in self:
            x = layer(x, g_arch) if isinstance(layer, AdaptiveModulate) else layer(x)
        return x


class ResBlock(nn.Module):
    """Two convolutions beside a shortcut; halves the resolution."""

    def __init__(self, in_channels: int, out_channels: int, arch_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvLayer(in_channels, in_channels, 3, arch_channels=arch_channels)
        self.conv2 = ConvLayer(in_channels, out_channels, 3, downsample=True, arch_channels=arch_channels)
        self.skip = ConvLayer(
            in_channels, out_channels, 1, downsample=True, activate=False, arch_channels=arch_channels
        )

    def forward(self, x: Tensor, g_arch: Tensor | None) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H / 2, W / 2)."""
        branch = self.conv2(self.conv1(x, g_arch), g_arch)
        out: Tensor = (branch + self.skip(x, g_arch)) / math.sqrt(2)
        return out


class AnyCostDiscriminator(nn.Module):
    """Judges pictures of several resolutions, knowing which sub-generator drew them.

    Args:
        resolution: of the finest picture.
        channel_multiplier: scales all widths.
        n_res: number of resolutions, each half of the one before.
        conditioned: whether the last two blocks see the generator's architecture.
        stddev_group: samples over which the deviation is measured.
    """

    def __init__(
        self,
        resolution: int,
        channel_multiplier: float = 2,
        n_res: int = 4,
        *,
        conditioned: bool = True,
        stddev_group: int = 4,
    ) -> None:
        super().__init__()
        levels = int(math.log2(resolution))
        self.resolution = resolution
        self.stddev_group = stddev_group
        n_style = 2 * levels - 2
        widths = [channels_at(2**level, channel_multiplier) for level in range(levels, 1, -1)]
        self.convs = nn.ModuleList(ConvLayer(3, widths[index], 1) for index in range(n_res))
        blocks = levels - 2
        self.blocks = nn.ModuleList(
            ResBlock(
                widths[index],
                widths[index + 1],
                n_style * len(RATIOS) if conditioned and index >= blocks - 2 else 0,
            )
            for index in range(blocks)
        )
        last = widths[-1]
        self.final_conv = ConvLayer(last + 1, last, 3)
        self.final_linear = nn.Sequential(EqualLinear(last * 16, last, activate=True), EqualLinear(last, 1))

    def _with_deviation(self, x: Tensor) -> Tensor:
        """Append the deviation within groups of samples as a channel (Karras et al. 2018, section 3)."""
        batch, channels, height, width = x.shape
        group = min(batch, self.stddev_group)
        groups = x.view(group, -1, channels, height, width)
        deviation = (groups.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))
        plane = deviation.repeat(group)[:, None, None, None].expand(-1, 1, height, width)
        return torch.cat((x, plane), dim=1)

    def forward(self, x: Tensor, g_arch: Tensor | None = None) -> Tensor:
        """Score pictures.

        Args:
            x: (B, 3, R, R) of one of the resolutions.
            g_arch: see architecture_code; None for an unconditioned network.

        Returns:
            (B, 1).
        """
        first = int(math.log2(self.resolution // x.shape[2]))
        x = self.convs[first](x)
        for block in self.blocks[first:]:
            x = block(x, g_arch)
        x = self.final_conv(self._with_deviation(x))
        score: Tensor = self.final_linear(x.flatten(1))
        return score


def architecture_code(ratios: Sequence[float]) -> Tensor:
    """Return (4 n_style,): one-hot over RATIOS for the channel ratio of each of the generator's layers."""
    index = torch.tensor([RATIOS.index(ratio) for ratio in ratios])
    return nn.functional.one_hot(index, len(RATIOS)).flatten().float()
