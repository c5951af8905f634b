# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Cached frames for Kestrel-Fusion: drawn, augmented, with some sensors left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.pipelines.fusion_frame import camera_rays, distance_scale
from kestrel.train import cache
from kestrel.train.drawing import drawing_weights
from kestrel.train.fusion_augmentation import augment_pictures, augment_points, augment_view
from kestrel.train.fusion_cut import cut_out
from kestrel.train.fusion_sample import FusionSample
from kestrel.train.object_paste import paste_objects
from kestrel.train.sweep_augmentation import uniform
from kestrel.types import Calibration, Float64Array

WITH_PICTURES: Final = 0.65
"""Share of the frames drawn from those with pictures, where cameras are trained at all.

The boxes come from the LiDAR, of which there are many more drives without pictures.
"""

CHOICES: Final = (0.4, 0.1, 0.35, 0.15)
"""How often a frame with pictures has all sensors, the LiDAR alone, the cameras alone and some cameras."""

WITH_PICTURES_CUT: Final = 0.9
CHOICES_CUT: Final = (0.25, 0.0, 0.6, 0.15)
"""The same for quarters of frames: what cameras alone see takes longest to learn."""

PASTS: Final = (0.2, 0.4, 0.4)
"""How often the pictures of a sample look back on none, one and two earlier ones."""

ALL_SWEEPS: Final = 0.6
"""Share of the frames that have all sweeps; of the others any number was lost."""

PASTED_INTO: Final = 0.5
"""Share of the frames of the LiDAR alone into which objects of another frame are set."""


class FrameSource:
    """Cached frames as samples; :meth:`draw` prefers those with objects of classes that few frames have.

    with_cameras: whether pictures are read at all. cuts: whether a quarter of each frame is drawn.
    """

    def __init__(
        self, files: list[Path], config: FusionConfig, *, with_cameras: bool, cuts: bool = False
    ) -> None:
        self.files = files
        self.config = config
        self.with_cameras = with_cameras
        self.cuts = cuts
        described = [described_frame(path) for path in files]
        self._chance = torch.from_numpy(drawing_weights(np.array([classes for classes, _ in described])))
        self._cameras = torch.tensor([cameras for _, cameras in described])

    @property
    def has_pictures(self) -> Tensor:
        """Which frames have pictures, (N,) bool."""
        return self._cameras > 0

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> FusionSample:
        """Return frame ``index`` with all its sensors, as it is."""
        cameras = range(int(self._cameras[index])) if self.with_cameras else range(0)
        return self._load(index, cameras, self.config.sweeps, len(PASTS) - 1)

    def draw(self, generator: torch.Generator) -> FusionSample:
        """Return a random frame with a random set of sensors, augmented."""
        index = self._index(generator)
        cameras, lidar = self._sensors(int(self._cameras[index]), generator)
        sweeps = int(torch.randint(self.config.sweeps + 1, (1,), generator=generator))
        sweeps = self.config.sweeps if uniform(0, 1, generator) < ALL_SWEEPS else sweeps
        sample = self._load(index, cameras, sweeps, draw_past(generator))
        if not len(sample.pictures) and uniform(0, 1, generator) < PASTED_INTO:
            other = self._load(self._index(generator), range(0), sweeps, 0)
            sample = paste_objects(sample, other, self.config, generator)
        sample = augment_view(augment_points(sample, generator), self.config, generator)
        if self.cuts:
            sample = cut_out(sample, self.config, generator)
        sample = augment_pictures(sample, generator)  # last: a cut has few of the pictures
        return without_lidar(sample, self.config) if not lidar and len(sample.pictures) else sample

    def _index(self, generator: torch.Generator) -> int:
        chance = self._chance
        share = WITH_PICTURES_CUT if self.cuts else WITH_PICTURES
        if self.with_cameras and self.has_pictures.any() and uniform(0, 1, generator) < share:
            chance = chance * self.has_pictures
        return int(torch.multinomial(chance, 1, generator=generator))

    def _sensors(self, count: int, generator: torch.Generator) -> tuple[range | list[int], bool]:
        """Draw which of ``count`` cameras take part and whether LiDAR does."""
        if not self.with_cameras or not count:
            return range(0), True
        shares = torch.tensor(CHOICES_CUT if self.cuts else CHOICES)
        choice = int(torch.multinomial(shares, 1, generator=generator))
        if choice < 3:
            return range(0 if choice == 1 else count), choice < 2
        kept = 1 + int(torch.randint(max(count - 1, 1), (1,), generator=generator))
        return torch.randperm(count, generator=generator)[:kept].tolist(), uniform(0, 1, generator) < 0.8

    def _load(self, index: int, cameras: range | list[int], sweeps: int, past: int) -> FusionSample:
        frame = cache.read(cache.CachedFrame, self.files[index])
        config = self.config
        chosen = [number for number in range(len(frame.matrices)) if number in cameras]
        height, width = config.image_size
        pictures = [torch.from_numpy(frame.picture(number)).permute(2, 0, 1) for number in chosen]
        calibrations = [frame.calibration(number, config.image_size) for number in chosen]
        looks = [camera_rays(calibration, config) for calibration in calibrations]
        current = frame.cloud(0)[:, :3]
        h, w = config.feature_size
        earlier = earlier_pictures(self.files[index], frame.base_from_camera, config, past)[:, chosen]
        return FusionSample(
            points=torch.from_numpy(frame.cloud(sweeps)),
            pictures=torch.stack(pictures)
            if pictures
            else torch.zeros(0, 3, height, width, dtype=torch.uint8),
            earlier=earlier,
            rays=torch.from_numpy(np.stack([ray for ray, _ in looks])) if looks else torch.zeros(0, h, w, 3),
            origins=torch.from_numpy(np.stack([at for _, at in looks])) if looks else torch.zeros(0, 3),
            has_lidar=True,
            boxes=torch.from_numpy(frame.boxes),
            box_label=torch.from_numpy(frame.box_label),
            box_points=torch.from_numpy(frame.box_points),
            map_truth=map_truth(frame, config),
            depth=torch.stack([depth_bins(current, calibration, config) for calibration in calibrations])
            if calibrations
            else torch.zeros(0, h, w, dtype=torch.int64),
            unlabelled=torch.from_numpy(frame.unlabelled),
            labelled_classes=torch.from_numpy(frame.labelled_classes),
        )


class CamerasAlone:
    """The frames of a source that have pictures, as they are but without their LiDAR."""

    def __init__(self, source: FrameSource) -> None:
        self._source = source
        self._rows = source.has_pictures.nonzero()[:, 0].tolist()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> FusionSample:
        """Return frame ``index`` of those with pictures."""
        return without_lidar(self._source[self._rows[index]], self._source.config)


def without_lidar(sample: FusionSample, config: FusionConfig) -> FusionSample:
    """Return what the cameras alone see; boxes beside or beyond all their views count as having no point."""
    first, step, count = config.depth
    seen = in_view(sample.boxes[:, :2], sample.rays, sample.origins, first + step * (count - 0.5))
    return replace(
        sample,
        points=sample.points[:0],
        has_lidar=False,
        box_points=sample.box_points * seen,
    )


def in_view(places: Tensor, rays: Tensor, origins: Tensor, reach: float) -> Tensor:
    """Return which places lie between the outermost rays of a picture, seen from above, and no farther.

    Args:
        places: (N, 2) metres.
        rays: (M, h, w, 3) of pictures that are less than 360 degrees wide, however they are turned.
        origins: (M, 3) of their cameras.
        reach: how far away along the middle of a picture, in lengths of its rays.

    Returns:
        (N,) bool.
    """
    ahead = rays.mean((1, 2))[:, :2]
    seen = _bearing(ahead[:, None], rays.flatten(1, 2)[..., :2])
    offset = places[:, None] - origins[:, :2]
    away = _bearing(ahead, offset)
    near = (offset * ahead).sum(-1) < reach * ahead.square().sum(-1)
    return ((away > seen.amin(1)) & (away < seen.amax(1)) & near).any(1)


def _bearing(ahead: Tensor, way: Tensor) -> Tensor:
    """Return the angle from vectors (..., 2) to others, in radians, anticlockwise."""
    across = ahead[..., 0] * way[..., 1] - ahead[..., 1] * way[..., 0]
    return torch.atan2(across, (ahead * way).sum(-1))


def map_truth(frame: cache.CachedFrame, config: FusionConfig) -> Tensor:
    """Return what the ground around a frame is, as of FusionSample: NaN where it does not say it."""
    layers, cells = len(MAP_LAYERS), round(2 * config.map_extent / config.map_resolution)
    if not frame.has_map:
        return torch.full((layers, cells, cells), torch.nan)
    return torch.from_numpy(frame.map_truth(layers, cells)).float()


def draw_past(generator: torch.Generator) -> int:
    """Return how many earlier pictures a sample looks back on, by PASTS."""
    return int(torch.multinomial(torch.tensor(PASTS), 1, generator=generator))


def earlier_pictures(path: Path, base_from_camera: Float64Array, config: FusionConfig, count: int) -> Tensor:
    """Return what the M cameras saw before a key frame, (K, M, 3, H, W) uint8, the oldest first.

    K is at most ``count``; at the start of a drive, and where the network looks back on nothing, it is less.

    Raises:
        InputError: there were other cameras before.
    """
    cameras = len(base_from_camera)
    files = cache.earlier_frames(path, config.hop_s, count) if cameras and config.hop_s else []
    if not files:
        return torch.zeros(0, cameras, 3, *config.image_size, dtype=torch.uint8)
    shown = [torch.from_numpy(np.stack(cache.pictures(file, base_from_camera))) for file in files]
    return torch.stack(shown).permute(0, 1, 4, 2, 3)


def described_frame(path: Path) -> tuple[NDArray[np.bool_], int]:
    """Return objects of which classes the LiDAR sees in a cached frame, and how many pictures it has.

    Raises:
        InputError: the file is damaged.
    """
    with cache.opened(path) as stored:
        seen = stored["box_label"][stored["box_points"] > 0]
        return np.isin(np.arange(len(DETECTION_CLASSES)), seen), len(stored["picture_ends"])


def depth_bins(points: np.ndarray, calibration: Calibration, config: FusionConfig) -> Tensor:
    """Return the depth bin of the nearest point in every feature cell, (h, w) int64, -1 where none is.

    By how far away things look to the network, see kestrel.pipelines.fusion_frame.distance_scale.
    """
    h, w = config.feature_size
    first, step, count = config.depth
    camera_from_base = np.linalg.inv(calibration.reference_from_camera)
    optical = points @ camera_from_base[:3, :3].T + camera_from_base[:3, 3]
    optical = optical[optical[:, 2] > 0.5]
    pixel = optical @ calibration.camera_matrix.T
    column = np.floor((pixel[:, 0] / pixel[:, 2] + 0.5) * w / calibration.width).astype(np.int64)
    row = np.floor((pixel[:, 1] / pixel[:, 2] + 0.5) * h / calibration.height).astype(np.int64)
    looks = optical[:, 2] / distance_scale(calibration, config)
    bins = np.floor((looks - first) / step + 0.5).astype(np.int64)
    seen = (column >= 0) & (column < w) & (row >= 0) & (row < h) & (bins >= 0) & (bins < count)
    nearest = np.full(h * w, count, np.int64)
    np.minimum.at(nearest, row[seen] * w + column[seen], bins[seen])
    return torch.from_numpy(np.where(nearest == count, -1, nearest).reshape(h, w))
