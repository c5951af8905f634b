# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""One small convolution stack per regressed quantity, as in CenterPoint and TransFusion."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from kestrel.nn.conv import ConvModule


class SeparateHead(nn.Module):
    """Named stacks: ConvModules of ``hidden_channels``, then a convolution with bias.

    Args:
        in_channels: of the input.
        heads: name to (output channels, number of convolutions).
        hidden_channels: between them.
        kernel_size: of all convolutions; sizes are kept.
        dimensions: 2 for maps, 1 for proposals.
    """

    def __init__(
        self,
        in_channels: int,
        heads: Mapping[str, tuple[int, int]],
        *,
        hidden_channels: int = 64,
        kernel_size: int = 3,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        conv = nn.Conv2d if dimensions == 2 else nn.Conv1d
        self.names = tuple(heads)
        padding = kernel_size // 2
        for name, (out_channels, count) in heads.items():
            layers: list[nn.Module] = []
            channels = in_channels
            for _ in range(count - 1):
                layers.append(
                    ConvModule(channels, hidden_channels, kernel_size, padding=padding, dimensions=dimensions)
                )
                channels = hidden_channels
            layers.append(conv(channels, out_channels, kernel_size, padding=padding))
            self.add_module(name, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return name to prediction, each (B, output channels, ...)."""
        return {name: self.get_submodule(name)(x) for name in self.names}
