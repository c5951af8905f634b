# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Swin Transformer (Liu et al. 2021) with the parameter names of the BEVFusion checkpoints.

Feature maps are kept as (B, H, W, C) between blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from kestrel.nn.patch_merging import PatchMerging
from kestrel.nn.shifted_windows import ShiftedWindows


class FeedForward(nn.Module):
    """Two linear layers with GELU."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(channels, hidden_channels), nn.GELU())
        self.layers = nn.Sequential(first, nn.Linear(hidden_channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to the same shape."""
        out: Tensor = self.layers(x)
        return out


class SwinBlock(nn.Module):
    """Windowed attention and feed-forward, each normalised first and beside an identity (equation 3)."""

    def __init__(self, channels: int, num_heads: int, window_size: int, shift: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = ShiftedWindows(channels, num_heads, window_size, shift)
        self.norm2 = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, channels * mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.ffn(self.norm2(x))
        return out


class SwinStage(nn.Module):
    """Blocks with alternating shift, and the merging that follows all stages but the last."""

    def __init__(
        self, channels: int, depth: int, num_heads: int, window_size: int, mlp_ratio: int, *, merge: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(channels, num_heads, window_size, window_size // 2 * (block % 2), mlp_ratio)
            for block in range(depth)
        )
        self.downsample = PatchMerging(channels) if merge else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the stage's features and the input of the next stage."""
        for block in self.blocks:
            x = block(x)
        return x, x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """One linear projection per patch."""

    def __init__(self, in_channels: int, channels: int, patch_size: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, channels, patch_size, patch_size)
        self.norm = nn.LayerNorm(channels)
        self.patch_size = patch_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, H / patch, W / patch, C), padded with zeros to whole patches."""
        size = self.patch_size
        x = F.pad(x, (0, -x.shape[3] % size, 0, -x.shape[2] % size))
        out: Tensor = self.norm(self.projection(x).permute(0, 2, 3, 1))
        return out


class SwinTransformer(nn.Module):
    """The backbone; the defaults are Swin-T.

    Args:
        embed_dims: channels of the first stage; every further stage doubles them.
        depths, num_heads: per stage.
        window_size: cells per side of a window.
        mlp_ratio: hidden channels of the feed-forward layers per channel.
        out_indices: stages that are returned.
        in_channels: of the picture.
        patch_size: pixels per side of a patch.
    """

    def __init__(
        self,
        embed_dims: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: int = 4,
        out_indices: Sequence[int] = (1, 2, 3),
        in_channels: int = 3,
        patch_size: int = 4,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(in_channels, embed_dims, patch_size)
        self.out_indices = tuple(out_indices)
        self.stages = nn.ModuleList()
        last = len(depths) - 1
        for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            channels = embed_dims * 2**stage
            self.stages.append(SwinStage(channels, depth, heads, window_size, mlp_ratio, merge=stage < last))
            if stage in self.out_indices:
                self.add_module(f"norm{stage}", nn.LayerNorm(channels))
        self.out_channels = tuple(embed_dims * 2**stage for stage in self.out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised pictures to one (B, C, H', W') per stage in out_indices, finest first."""
        x = self.patch_embed(x)
        outputs = []
        for index, stage in enumerate(self.stages):
            features, x = stage(x)
            if index in self.out_indices:
                normalised = self.get_submodule(f"norm{index}")(features)
                outputs.append(normalised.permute(0, 3, 1, 2).contiguous())
        return outputs
