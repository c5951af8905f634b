# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A generator that turns label images into pictures.

SPADE (Park et al. 2019) with the separable normalisation layers of GAN Compression (Li et al. 2020). Written
from the papers; key names are the released ones.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kestrel.models.gan_compression import SeparableConv2d

UPSAMPLINGS = {"normal": 5, "more": 6, "most": 7}


class SpatiallyAdaptiveNorm(nn.Module):
    """Normalise without parameters, then scale and shift each position as its label says (equation 1).

    Args:
        channels: of the features.
        label_channels: of the one-hot label image.
        hidden_channels: of the layer that scale and shift share.
        norm: which normalisation.
    """

    def __init__(
        self,
        channels: int,
        label_channels: int,
        hidden_channels: int,
        norm: Literal["batch", "instance"] = "batch",
    ) -> None:
        super().__init__()
        self.param_free_norm = (
            nn.BatchNorm2d(channels, affine=False) if norm == "batch" else nn.InstanceNorm2d(channels)
        )
        self.mlp_shared = nn.Sequential(nn.Conv2d(label_channels, hidden_channels, 3, padding=1), nn.ReLU())
        self.mlp_gamma = SeparableConv2d(hidden_channels, channels, padding=1)
        self.mlp_beta = SeparableConv2d(hidden_channels, channels, padding=1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Normalise (B, C, H, W) features with the one-hot (B, K, H', W') labels."""
        hidden = self.mlp_shared(F.interpolate(labels, x.shape[2:], mode="nearest"))
        out: Tensor = self.param_free_norm(x) * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)
        return out


class SpadeBlock(nn.Module):
    """Two normalised convolutions beside an identity or a learned shortcut (figure 4)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        label_channels: int,
        hidden_channels: int,
        norm: Literal["batch", "instance"],
    ) -> None:
        super().__init__()
        middle = min(in_channels, out_channels)
        labelled = (label_channels, hidden_channels, norm)
        self.conv_0 = nn.Conv2d(in_channels, middle, 3, padding=1)
        self.conv_1 = nn.Conv2d(middle, out_channels, 3, padding=1)
        self.norm_0 = SpatiallyAdaptiveNorm(in_channels, *labelled)
        self.norm_1 = SpatiallyAdaptiveNorm(middle, *labelled)
        self.learned_shortcut = in_channels != out_channels
        if self.learned_shortcut:
            self.conv_s = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.norm_s = SpatiallyAdaptiveNorm(in_channels, *labelled)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        shortcut = self.conv_s(self.norm_s(x, labels)) if self.learned_shortcut else x
        x = self.conv_0(F.leaky_relu(self.norm_0(x, labels), 0.2))
        x = self.conv_1(F.leaky_relu(self.norm_1(x, labels), 0.2))
        out: Tensor = shortcut + x
        return out


class MobileSpadeGenerator(nn.Module):
    """Label image to picture, from coarse to fine.

    Args:
        label_channels: classes (and instance edges) of the one-hot label image.
        width: channels at full resolution; 16 times as many at the start.
        image_size: (H, W) of the picture.
        upsampling: ``normal``, ``more`` or ``most``: how many times the resolution doubles (5, 6, 7).
        norm: which normalisation without parameters.
    """

    def __init__(
        self,
        label_channels: int,
        width: int,
        image_size: tuple[int, int],
        *,
        upsampling: Literal["normal", "more", "most"] = "more",
        norm: Literal["batch", "instance"] = "batch",
    ) -> None:
        super().__init__()
        factor = 2 ** UPSAMPLINGS[upsampling]
        self.upsampling = upsampling
        columns = image_size[1] // factor
        self.start_size = (round(columns * image_size[0] / image_size[1]), columns)
        self.fc = nn.Conv2d(label_channels, 16 * width, 3, padding=1)

        def block(in_width: int, out_width: int) -> SpadeBlock:
            return SpadeBlock(in_width * width, out_width * width, label_channels, 2 * width, norm)

        self.head_0 = block(16, 16)
        self.G_middle_0 = block(16, 16)
        self.G_middle_1 = block(16, 16)
        self.up_0 = block(16, 8)
        self.up_1 = block(8, 4)
        self.up_2 = block(4, 2)
        self.up_3 = block(2, 1)
        last = width
        if upsampling == "most":
            self.up_4 = SpadeBlock(width, width // 2, label_channels, 2 * width, norm)
            last = width // 2
        self.conv_img = nn.Conv2d(last, 3, 3, padding=1)

    def stages(self) -> list[tuple[str, bool]]:
        """Return the blocks in their order, each with whether the resolution doubles in front of it."""
        names = [("head_0", False), ("G_middle_0", True), ("G_middle_1", self.upsampling != "normal")]
        names += [(f"up_{index}", True) for index in range(5 if self.upsampling == "most" else 4)]
        return names

    def features(self, labels: Tensor) -> list[tuple[str, Tensor]]:
        """Return the output of every stage by name, coarsest first."""
        x = self.fc(F.interpolate(labels, self.start_size, mode="nearest"))
        outputs = [("fc", x)]
        for name, doubles in self.stages():
            if doubles:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = self.get_submodule(name)(x, labels)
            outputs.append((name, x))
        return outputs

    def forward(self, labels: Tensor) -> Tensor:
        """(B, label_channels, H, W) one-hot labels to (B, 3, H, W) pictures in -1..1."""
        _, x = self.features(labels)[-1]
        return torch.tanh(self.conv_img(F.leaky_relu(x, 0.2)))
