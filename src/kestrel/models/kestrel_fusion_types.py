# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes, input and output of Kestrel-Fusion."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kestrel.models.mobilenetv2 import State


@dataclass(frozen=True)
class FusionConfig:
    """Sizes of the network.

    extent: half side of the square around base_link, metres. pillar_size: metres; the heads work on cells
        of twice that. image_size: (H, W) the pictures are resized to. focal_px: focal length in pixels of
        that size that all cameras have to the network: through twice as long a lens things look half as far
        away, and are put twice as far. With 256 the cameras of nuScenes reach as far as the grid. depth:
        (first, step, count) of the depth bins, metres as things look. sweeps: earlier sweeps that it wants,
        sweep_s: seconds from one to the next. map_extent, map_resolution: the map's grid. hop_s: seconds from
        the picture whose features are mixed in to the current one, 0: none are.
    """

    num_classes: int = 10
    num_layers: int = 6
    extent: float = 51.2
    pillar_size: float = 0.4
    height_range: tuple[float, float] = (-3.0, 6.0)
    sweeps: int = 2
    sweep_s: float = 0.2
    image_size: tuple[int, int] = (128, 352)
    focal_px: float = 256.0
    depth: tuple[float, float, int] = (1.5, 1.0, 48)
    trunk_width: float = 0.75
    camera_channels: int = 32
    pillar_channels: int = 32
    bev_channels: int = 64
    map_extent: float = 50.0
    map_resolution: float = 0.5
    hop_s: float = 0.5

    @property
    def pillars(self) -> int:
        """Pillars along one side."""
        return round(2 * self.extent / self.pillar_size)

    @property
    def cell_size(self) -> float:
        """Side of a cell of the heads, metres."""
        return 2 * self.pillar_size

    @property
    def feature_size(self) -> tuple[int, int]:
        """(h, w) of the camera features: an eighth of the picture."""
        return self.image_size[0] // 8, self.image_size[1] // 8


@dataclass(frozen=True)
class EarlierPictures:
    """What was seen before the M pictures of a batch, K hops back.

    images: (K, M, 3, H, W) float32, 0..1, the oldest first. known: (K, M) bool, which of them there are.
    """

    images: Tensor
    known: Tensor


@dataclass(frozen=True)
class FusionInput:
    """A batch of frames, flat over points and pictures.

    points: (P, 5) float32 [x, y, z, intensity, age in seconds]; point_batch: (P,) int64 frame of each.
    images: (M, 3, H, W) float32, 0..1; image_batch: (M,) int64 frame of each.
    rays: (M, h, w) float32, base_link displacement per metre of optical depth at each feature cell;
    origins: (M, 3) float32 camera positions. has_lidar: (B,) bool, one per frame.
    past: FusionOutput.state of the pictures one hop earlier, zeros where there was none; (): nowhere.
    vehicle: (B, 2) where the vehicle is from the middle of the grid, metres; None: there.
    """

    points: Tensor
    point_batch: Tensor
    images: Tensor
    image_batch: Tensor
    rays: Tensor
    origins: Tensor
    has_lidar: Tensor
    past: State = ()
    vehicle: Tensor | None = None


@dataclass(frozen=True)
class FusionOutput:
    """Raw answers of the network.

    heatmap: (B, classes, X, Y) logits. features: (B, C, X, Y) from which boxes are regressed.
    map_logits: (B, layers, Xm, Ym), of these frames alone. depth: (M, D, h, w) logits, or None without
    pictures. state: what the camera branch kept, (M, c, h, w) for each block that mixes.
    """

    heatmap: Tensor
    features: Tensor
    map_logits: Tensor
    depth: Tensor | None
    state: State
