# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Convolution, batch normalisation and ReLU as one layer, with the key names of the released checkpoints."""

from __future__ import annotations

from torch import Tensor, nn


class ConvModule(nn.Module):
    """``conv`` (without bias), ``bn``, ReLU; in one or two dimensions."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dimensions == 2 else (nn.Conv1d, nn.BatchNorm1d)
        self.conv = conv(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.bn = norm(out_channels)
        self.activate = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, ...) to (B, out_channels, ...)."""
        out: Tensor = self.activate(self.bn(self.conv(x)))
        return out


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, bias: bool = False
) -> list[nn.Module]:
    """Return the three layers for an nn.Sequential; the convolution keeps the size (up to the stride)."""
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=bias),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


def conv_block(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> nn.Sequential:
    """Return these layers, the convolution without bias, as one."""
    return nn.Sequential(*conv_bn_relu(in_channels, out_channels, kernel_size, stride=stride))
