# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""TransFusion's detection head (Bai et al. 2022) on a bird's-eye-view map, in the form of BEVFusion.

Proposals are the peaks of a class heat map; a transformer decoder layer lets each look at all others and at
the whole map; small networks regress a box for each.

Places on the map, the heat whose peaks are sought and what is regressed are float32 also where the rest of
the head is not: bfloat16 has no half cells from the 128th on, and neighbours of equal heat are peaks all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kestrel.nn.boxes import DecodedBoxes, inside_range
from kestrel.nn.conv import ConvModule
from kestrel.nn.separate_head import SeparateHead

REGRESSIONS = {"center": (2, 2), "height": (1, 2), "dim": (3, 2), "rot": (2, 2), "vel": (2, 2)}
"""Per proposal: centre (cells), height of the middle (m), log sizes, sine and cosine of yaw, velocity."""


class Proposals(TypedDict):
    """Predictions of all decoder layers, newest last; P proposals per layer.

    center (B, 2, P), height (B, 1, P), dim (B, 3, P), rot (B, 2, P), vel (B, 2, P): see REGRESSIONS.
    heatmap: (B, classes, P) logits. query_heatmap_score: (B, classes, P) peak values of the dense map, of
        one layer.
    dense_heatmap: (B, classes, X, Y) logits. query_labels: (B, P) int64 class of the peak, of one layer.
    """

    center: Tensor
    height: Tensor
    dim: Tensor
    rot: Tensor
    vel: Tensor
    heatmap: Tensor
    query_heatmap_score: Tensor
    dense_heatmap: Tensor
    query_labels: Tensor


class _Wide(nn.Module):
    """Goes before the class of a layer: one that computes in float32, whatever autocast says.

    Its parameters are not narrowed with those of the network that it is in.
    """

    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Do what the layer does, in the type of its parameters."""
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = super().forward(x.to(self.weight.dtype))
        return out

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def without_narrowing(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            narrowed = changed.dtype.itemsize < tensor.dtype.itemsize
            return tensor.to(changed.device) if narrowed else changed

        # torch says of this method no types.
        return super()._apply(without_narrowing, recurse)  # type: ignore[no-untyped-call]


class WideConv1d(_Wide, nn.Conv1d):
    """nn.Conv1d in float32."""


class WideConv2d(_Wide, nn.Conv2d):
    """nn.Conv2d in float32."""


def _as_wide(layer: nn.Module) -> WideConv1d:
    """Return a layer of size 1 with the same parameters."""
    assert isinstance(layer, nn.Conv1d)
    with torch.device("meta"):
        wide = WideConv1d(layer.in_channels, layer.out_channels, 1)
    wide.weight, wide.bias = layer.weight, layer.bias
    return wide


class PositionEmbedding(nn.Module):
    """Two position-wise layers from map coordinates to features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.position_embedding_head = nn.Sequential(
            WideConv1d(2, channels, 1),
            nn.BatchNorm1d(channels),
            nn.ReLU(inplace=True),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, position: Tensor) -> Tensor:
        """(B, P, 2) cells to (B, P, channels)."""
        embedded: Tensor = self.position_embedding_head(position.transpose(1, 2))
        return embedded.transpose(1, 2)


class DecoderLayer(nn.Module):
    """Self-attention of the proposals, attention to the map, feed-forward.

    Unlike in the original transformer the position is added to queries, keys and values alike.
    """

    def __init__(self, channels: int, num_heads: int, ffn_channels: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(channels, num_heads, dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(channels, num_heads, dropout, batch_first=True)
        self.linear1 = nn.Linear(channels, ffn_channels)
        self.linear2 = nn.Linear(ffn_channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        self.self_posembed = PositionEmbedding(channels)
        self.cross_posembed = PositionEmbedding(channels)

    def forward(self, query: Tensor, key: Tensor, query_position: Tensor, key_position: Tensor) -> Tensor:
        """Refine the proposals.

        Args:
            query: (B, P, C) proposals.
            key: (B, X * Y, C) the map.
            query_position: (B, P, 2) cells.
            key_position: (B, X * Y, 2) cells.

        Returns:
            (B, P, C).
        """
        query_embedding = self.self_posembed(query_position)
        placed = query + query_embedding
        attended, _ = self.self_attn(placed, placed, placed, need_weights=False)
        query = self.norm1(query + self.dropout(attended))
        placed_map = key + self.cross_posembed(key_position)
        attended, _ = self.multihead_attn(query + query_embedding, placed_map, placed_map, need_weights=False)
        query = self.norm2(query + self.dropout(attended))
        hidden = self.dropout(F.relu(self.linear1(query)))
        out: Tensor = self.norm3(query + self.dropout(self.linear2(hidden)))
        return out


class TransFusionHead(nn.Module):
    """Detections from a map.

    Args:
        in_channels: of the decoded map.
        num_classes: classes of the heat map.
        lower: (x, y) of the map's corner, metres.
        cell_size: (x, y) of a cell of the map, metres (voxel size times out_size_factor).
        num_proposals: peaks that become proposals.
        hidden_channels, num_decoder_layers, num_heads, ffn_channels, dropout: of the decoder.
        nms_kernel_size: a peak is the maximum of so many cells per side; the ring where that window would
            leave the map holds no peaks.
        single_cell_classes: classes for which every cell is a peak (small objects stand close together).
        post_center_range: boxes outside are dropped; lower x, y, z, upper x, y, z.
        score_threshold: boxes must score more; 0 keeps all.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        lower: tuple[float, float],
        cell_size: tuple[float, float],
        *,
        num_proposals: int = 200,
        hidden_channels: int = 128,
        num_decoder_layers: int = 1,
        num_heads: int = 8,
        ffn_channels: int = 256,
        dropout: float = 0.1,
        nms_kernel_size: int = 3,
        single_cell_classes: Sequence[int] = (8, 9),
        post_center_range: Sequence[float] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0),
        score_threshold: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.lower = lower
        self.cell_size = cell_size
        self.num_proposals = num_proposals
        self.nms_kernel_size = nms_kernel_size
        self.single_cell_classes = tuple(single_cell_classes)
        self.post_center_range = tuple(post_center_range)
        self.score_threshold = score_threshold
        self.shared_conv = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        self.heatmap_head = nn.Sequential(
            ConvModule(hidden_channels, hidden_channels, 3, padding=1),
            WideConv2d(hidden_channels, num_classes, 3, padding=1),
        )
        self.class_encoding = nn.Conv1d(num_classes, hidden_channels, 1)
        self.decoder = nn.ModuleList(
            DecoderLayer(hidden_channels, num_heads, ffn_channels, dropout) for _ in range(num_decoder_layers)
        )
        heads = {**REGRESSIONS, "heatmap": (num_classes, 2)}
        self.prediction_heads = nn.ModuleList(
            SeparateHead(hidden_channels, heads, kernel_size=1, dimensions=1)
            for _ in range(num_decoder_layers)
        )
        for head in self.prediction_heads:
            for name in heads:
                stack = head.get_submodule(name)
                assert isinstance(stack, nn.Sequential)
                stack[-1] = _as_wide(stack[-1])

    def _peaks(self, heat: Tensor) -> Tensor:
        """Return the heat map with everything but its local maxima set to zero."""
        border = self.nms_kernel_size // 2
        highest = torch.zeros_like(heat)
        inner = F.max_pool2d(heat, self.nms_kernel_size, stride=1)
        highest[:, :, border : border + inner.shape[2], border : border + inner.shape[3]] = inner
        single = list(self.single_cell_classes)
        highest[:, single] = heat[:, single]
        return heat * (heat == highest)

    def forward(self, x: Tensor) -> Proposals:
        """(B, in_channels, X, Y) to the predictions for the best peaks."""
        x = self.shared_conv(x)
        dense_heatmap = self.heatmap_head(x)
        heat = self._peaks(dense_heatmap.detach().sigmoid()).flatten(2)
        cells = heat.shape[2]
        best = heat.flatten(1).argsort(dim=1, descending=True)[:, : self.num_proposals]
        labels, cell = best // cells, best % cells

        key = x.flatten(2).transpose(1, 2)
        key_position = _cell_centers(x).expand(len(x), -1, -1)
        query = key.gather(1, cell[..., None].expand(-1, -1, key.shape[2]))
        query_position = key_position.gather(1, cell[..., None].expand(-1, -1, 2))
        encoding = self.class_encoding(F.one_hot(labels, self.num_classes).transpose(1, 2).to(x.dtype))
        query = query + encoding.transpose(1, 2)

        layers = []
        for layer, head in zip(self.decoder, self.prediction_heads, strict=True):
            query = layer(query, key, query_position, key_position)
            prediction = head(query.transpose(1, 2))
            prediction["center"] = prediction["center"] + query_position.transpose(1, 2)
            query_position = prediction["center"].detach().transpose(1, 2)
            layers.append(prediction)
        merged = {name: torch.cat([layer[name] for layer in layers], dim=2) for name in layers[0]}
        return Proposals(
            center=merged["center"],
            height=merged["height"],
            dim=merged["dim"],
            rot=merged["rot"],
            vel=merged["vel"],
            heatmap=merged["heatmap"],
            query_heatmap_score=heat.gather(2, cell[:, None].expand(-1, self.num_classes, -1)),
            dense_heatmap=dense_heatmap,
            query_labels=labels,
        )

    def decode(self, proposals: Proposals) -> list[DecodedBoxes]:
        """Return the detections of every sample: the last layer's boxes, in the order of the proposals."""
        labels = proposals["query_labels"]
        last = slice(-labels.shape[1], None)
        own_class = F.one_hot(labels, self.num_classes).transpose(1, 2)
        confidence = proposals["heatmap"][..., last].sigmoid() * proposals["query_heatmap_score"] * own_class
        scores, found = confidence.max(dim=1)
        center, rotation = proposals["center"][..., last], proposals["rot"][..., last]
        sizes = proposals["dim"][..., last].exp()
        x = center[:, :1] * self.cell_size[0] + self.lower[0]
        y = center[:, 1:] * self.cell_size[1] + self.lower[1]
        z = proposals["height"][..., last] - sizes[:, 2:] / 2
        yaw = torch.atan2(rotation[:, :1], rotation[:, 1:])
        boxes = torch.cat((x, y, z, sizes, yaw, proposals["vel"][..., last]), dim=1).transpose(1, 2)
        samples = []
        for sample in range(len(boxes)):
            kept = inside_range(boxes[sample], self.post_center_range)
            if self.score_threshold > 0:
                kept &= scores[sample] > self.score_threshold
            samples.append(DecodedBoxes(boxes[sample][kept], scores[sample][kept], found[sample][kept]))
        return samples


def _cell_centers(x: Tensor) -> Tensor:
    """Return (1, X * Y, 2): the centre of every cell in cells, float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    axes = (torch.arange(size, dtype=dtype, device=x.device) + 0.5 for size in x.shape[2:])
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(1, -1, 2)
