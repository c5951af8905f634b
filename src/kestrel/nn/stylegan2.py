# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Layers of StyleGAN2 that can run with the first channels only.

From Karras et al. 2020 and AnyCost (Lin et al. 2021). Weights have unit variance; every layer scales them
when it runs ("equalized learning rate"). A layer called with fewer input channels than it has uses the first
ones; ``out_channels`` limits its output in the same way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def fused_leaky_relu(x: Tensor, bias: Tensor) -> Tensor:
    """Add the bias, apply leaky ReLU (0.2), scale by sqrt(2) so that the variance stays."""
    return F.leaky_relu(x + bias, 0.2) * math.sqrt(2)


class EqualLinear(nn.Module):
    """A linear layer, with ``activate`` followed by leaky ReLU; ``lr_mul`` scales weights and bias."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bias_init: float = 0.0,
        lr_mul: float = 1.0,
        activate: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels) / lr_mul)
        self.bias = nn.Parameter(torch.full((out_channels,), bias_init))
        self.lr_mul = lr_mul
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_channels) to (..., out_channels)."""
        weight = self.weight * (self.lr_mul / math.sqrt(self.weight.shape[1]))
        if self.activate:
            return fused_leaky_relu(F.linear(x, weight), self.bias * self.lr_mul)
        return F.linear(x, weight, self.bias * self.lr_mul)


class EqualConv2d(nn.Module):
    """A convolution without bias."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.stride = stride
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H', W')."""
        weight = self.weight / math.sqrt(self.weight[0].numel())
        return F.conv2d(x, weight, stride=self.stride, padding=self.padding)


class FusedLeakyReLU(nn.Module):
    """Bias, leaky ReLU, scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape; C may be smaller than the number of channels."""
        return fused_leaky_relu(x, self.bias[: x.shape[1], None, None])


class Resample(nn.Module):
    """Filter with the binomial kernel (1, 3, 3, 1), possibly while doubling the resolution.

    Args:
        pad: (before, after) zeros on both axes, after the doubling.
        up: 2 inserts a zero behind every sample, 1 does not.
        gain: of the kernel; 4 keeps the brightness where three of four samples are zero.
    """

    kernel: Tensor

    def __init__(self, pad: tuple[int, int], *, up: int = 1, gain: float = 1.0) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", torch.outer(taps, taps) / taps.sum() ** 2 * gain)
        self.pad = pad
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, up * H + pads - 3, up * W + pads - 3)."""
        batch, channels, height, width = x.shape
        if self.up > 1:
            spread = x.new_zeros(batch, channels, height, self.up, width, self.up)
            spread[:, :, :, 0, :, 0] = x
            x = spread.view(batch, channels, height * self.up, width * self.up)
        x = F.pad(x, (*self.pad, *self.pad))
        # The stored kernel is mirrored already, as convolution asks for.
        return F.conv2d(x, self.kernel.expand(channels, 1, 4, 4), groups=channels)


class ModulatedConv2d(nn.Module):
    """A convolution whose weights are scaled per sample by the style and normalised (equation 3).

    Args:
        in_channels, out_channels, kernel_size: of the convolution.
        style_channels: of the style.
        demodulate: whether to normalise.
        upsample: whether the resolution doubles.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        style_channels: int,
        *,
        demodulate: bool = True,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, out_channels, in_channels, kernel_size, kernel_size))
        self.modulation = EqualLinear(style_channels, in_channels, bias_init=1.0)
        self.demodulate = demodulate
        self.upsample = upsample
        if upsample:
            self.blur = Resample((1, 1), gain=4.0)

    def forward(self, x: Tensor, style: Tensor, out_channels: int | None = None) -> Tensor:
        """Convolve.

        Args:
            x: (B, C, H, W).
            style: (B, style_channels).
            out_channels: number of outputs; all if not given.
        """
        batch, channels, height, width = x.shape
        scale = 1 / math.sqrt(self.weight[0, 0].numel())
        weight = self.weight[:, :out_channels, :channels] * scale
        weight = weight * self.modulation(style)[:, None, :channels, None, None]
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
        x = x.reshape(1, batch * channels, height, width)
        if self.upsample:
            kernels = weight.transpose(1, 2).flatten(0, 1)
            x = F.conv_transpose2d(x, kernels, stride=2, groups=batch)
        else:
            x = F.conv2d(x, weight.flatten(0, 1), padding=weight.shape[-1] // 2, groups=batch)
        x = x.view(batch, -1, *x.shape[2:])
        return self.blur(x) if self.upsample else x


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, style_channels: int, *, upsample: bool = False
    ) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, out_channels, 3, style_channels, upsample=upsample)
        self.noise = NoiseInjection()
        self.activate = FusedLeakyReLU(out_channels)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor, out_channels: int | None = None) -> Tensor:
        """(B, C, H, W) to (B, out_channels, H', W')."""
        out: Tensor = self.activate(self.noise(self.conv(x, style, out_channels), noise))
        return out


class NoiseInjection(nn.Module):
    """Add noise with a learned strength."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Add (1 or B, 1, H, W) noise to (B, C, H, W)."""
        return x + self.weight * noise


class ToRGB(nn.Module):
    """Features to a picture, added to the upsampled picture of the coarser resolution."""

    def __init__(self, in_channels: int, style_channels: int, *, upsample: bool = True) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, 3, 1, style_channels, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        if upsample:
            self.upsample = Resample((2, 1), up=2, gain=4.0)

    def forward(self, x: Tensor, style: Tensor, coarser: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to (B, 3, H, W)."""
        picture: Tensor = self.conv(x, style) + self.bias
        return picture if coarser is None else picture + self.upsample(coarser)
