# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Batches for Kestrel-Fusion: cached frames, augmented in bird's-eye view, with some sensors left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kestrel.classes import MAP_LAYERS
from kestrel.models.kestrel_fusion import FusionConfig, FusionInput
from kestrel.pipelines.fusion import camera_rays
from kestrel.train import cache
from kestrel.train.sweep_augmentation import uniform
from kestrel.types import Calibration


@dataclass(frozen=True)
class FusionSample:
    """One frame as tensors.

    points: (P, 5). pictures: (M, 3, H, W) uint8. rays: (M, h, w, 3). origins: (M, 3). has_lidar: whether
    points took part. boxes: (N, 9), box_label, box_points: (N,). map_truth: (layers, X, Y) float, 0 or 1, NaN
    where it is not known. depth: (M, h, w) int64 depth bin that LiDAR sees, -1 where none.
    """

    points: Tensor
    pictures: Tensor
    rays: Tensor
    origins: Tensor
    has_lidar: bool
    boxes: Tensor
    box_label: Tensor
    box_points: Tensor
    map_truth: Tensor
    depth: Tensor


@dataclass(frozen=True)
class FusionBatch:
    """inputs of the network and the truth of every frame."""

    inputs: FusionInput
    samples: tuple[FusionSample, ...]


class FrameSource:
    """Cached frames as samples.

    with_cameras: whether pictures are read at all (the first stage trains on LiDAR alone).
    """

    def __init__(self, files: list[Path], config: FusionConfig, *, with_cameras: bool) -> None:
        self.files = files
        self.config = config
        self.with_cameras = with_cameras

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> FusionSample:
        """Return frame ``index`` with all its sensors, as it is."""
        return self._load(index, range(100) if self.with_cameras else range(0), self.config.sweeps)

    def draw(self, generator: torch.Generator) -> FusionSample:
        """Return a random frame with a random set of sensors, augmented."""
        index = int(torch.randint(len(self.files), (1,), generator=generator))
        cameras, lidar = self._sensors(generator)
        sweeps = int(torch.randint(self.config.sweeps + 1, (1,), generator=generator))
        sweeps = self.config.sweeps if uniform(0, 1, generator) < 0.6 else sweeps
        sample = self._load(index, cameras, sweeps)
        if not lidar and len(sample.pictures):
            sample = replace(sample, points=sample.points[:0], has_lidar=False)
        return augment_view(augment_sensors(sample, generator), self.config, generator)

    def _sensors(self, generator: torch.Generator) -> tuple[range | list[int], bool]:
        """Draw which cameras take part and whether LiDAR does."""
        if not self.with_cameras:
            return range(0), True
        chance = uniform(0, 1, generator)
        if chance < 0.5:
            return range(100), True
        if chance < 0.75:
            return range(0), True
        if chance < 0.87:
            return range(100), False
        kept = torch.randperm(6, generator=generator)[: 1 + int(torch.randint(5, (1,), generator=generator))]
        return kept.tolist(), uniform(0, 1, generator) < 0.8

    def _load(self, index: int, cameras: range | list[int], sweeps: int) -> FusionSample:
        frame = cache.read(cache.CachedFrame, self.files[index])
        config = self.config
        chosen = [number for number in range(len(frame.matrices)) if number in cameras]
        height, width = config.image_size
        pictures = [torch.from_numpy(frame.picture(number)).permute(2, 0, 1) for number in chosen]
        calibrations = [
            Calibration(frame.matrices[number], width, height, frame.base_from_camera[number])
            for number in chosen
        ]
        looks = [camera_rays(calibration, config) for calibration in calibrations]
        current = frame.cloud(0)[:, :3]
        h, w = config.feature_size
        cells = round(2 * config.map_extent / config.map_resolution)
        return FusionSample(
            points=torch.from_numpy(frame.cloud(sweeps)),
            pictures=torch.stack(pictures)
            if pictures
            else torch.zeros(0, 3, height, width, dtype=torch.uint8),
            rays=torch.from_numpy(np.stack([ray for ray, _ in looks])) if looks else torch.zeros(0, h, w, 3),
            origins=torch.from_numpy(np.stack([at for _, at in looks])) if looks else torch.zeros(0, 3),
            has_lidar=True,
            boxes=torch.from_numpy(frame.boxes),
            box_label=torch.from_numpy(frame.box_label),
            box_points=torch.from_numpy(frame.box_points),
            map_truth=torch.from_numpy(frame.map_truth(len(MAP_LAYERS), cells)).float(),
            depth=torch.stack([depth_bins(current, calibration, config) for calibration in calibrations])
            if calibrations
            else torch.zeros(0, h, w, dtype=torch.int64),
        )


def depth_bins(points: np.ndarray, calibration: Calibration, config: FusionConfig) -> Tensor:
    """Return the depth bin of the nearest point in every feature cell, (h, w) int64, -1 where none is."""
    h, w = config.feature_size
    first, step, count = config.depth
    camera_from_base = np.linalg.inv(calibration.reference_from_camera)
    optical = points @ camera_from_base[:3, :3].T + camera_from_base[:3, 3]
    optical = optical[optical[:, 2] > 0.5]
    pixel = optical @ calibration.camera_matrix.T
    column = np.floor((pixel[:, 0] / pixel[:, 2] + 0.5) * w / calibration.width).astype(np.int64)
    row = np.floor((pixel[:, 1] / pixel[:, 2] + 0.5) * h / calibration.height).astype(np.int64)
    bins = np.floor((optical[:, 2] - first) / step + 0.5).astype(np.int64)
    seen = (column >= 0) & (column < w) & (row >= 0) & (row < h) & (bins >= 0) & (bins < count)
    nearest = np.full(h * w, count, np.int64)
    np.minimum.at(nearest, row[seen] * w + column[seen], bins[seen])
    return torch.from_numpy(np.where(nearest == count, -1, nearest).reshape(h, w))


def augment_sensors(sample: FusionSample, generator: torch.Generator) -> FusionSample:
    """Disturb what differs between sensors: density and intensity of points, colours and sharpness."""
    kept = torch.rand(len(sample.points), generator=generator) < uniform(0.7, 1.0, generator)
    points = sample.points[kept].clone()
    gain = uniform(0.6, 1.5, generator) if uniform(0, 1, generator) < 0.9 else 0.0
    points[:, 3] = (points[:, 3] * gain + uniform(-0.03, 0.05, generator)).clamp(0, 1)
    pictures = sample.pictures
    if len(pictures):
        bright = pictures.float() * uniform(0.7, 1.3, generator)
        middle = bright.mean((2, 3), keepdim=True)
        changed = (bright - middle) * uniform(0.7, 1.3, generator) + middle
        changed *= 1 + 0.1 * torch.randn(1, 3, 1, 1, generator=generator)
        if uniform(0, 1, generator) < 0.5:
            changed = F.avg_pool2d(F.pad(changed, (1, 1, 1, 1), mode="replicate"), 3, 1) * 0.5 + changed * 0.5
        pictures = changed.clamp(0, 255).to(torch.uint8)
    return replace(sample, points=points, pictures=pictures)


def augment_view(sample: FusionSample, config: FusionConfig, generator: torch.Generator) -> FusionSample:
    """Turn, mirror and scale everything about the vehicle: points, rays, boxes and map."""
    angle = uniform(-torch.pi / 4, torch.pi / 4, generator)
    scale = uniform(0.95, 1.05, generator)
    flips = [1.0 if uniform(0, 1, generator) < 0.5 else -1.0 for _ in range(2)]
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    turn = torch.tensor([[cosine, -sine], [sine, cosine]]) @ torch.diag(torch.tensor(flips))
    full = torch.eye(3)
    full[:2, :2] = turn
    full *= scale
    points, boxes = sample.points.clone(), sample.boxes.clone()
    points[:, :3] = points[:, :3] @ full.T
    boxes[:, :3] = boxes[:, :3] @ full.T
    boxes[:, 3:6] *= scale
    ahead = torch.stack((boxes[:, 6].cos(), boxes[:, 6].sin()), 1) @ turn.T
    boxes[:, 6] = torch.atan2(ahead[:, 1], ahead[:, 0])
    boxes[:, 7:9] = boxes[:, 7:9] @ turn.T * scale
    return replace(
        sample,
        points=points,
        boxes=boxes,
        rays=sample.rays @ full.T,
        origins=sample.origins @ full.T,
        map_truth=_turn_map(sample.map_truth, full[:2, :2], config),
    )


def _turn_map(truth: Tensor, matrix: Tensor, config: FusionConfig) -> Tensor:
    """Return the map as seen after points moved by ``matrix``; NaN where the truth does not reach."""
    cells = truth.shape[1]
    middle = (torch.arange(cells) + 0.5) * config.map_resolution - config.map_extent
    x, y = torch.meshgrid(middle, middle, indexing="ij")
    source = torch.stack((x, y), -1) @ torch.linalg.inv(matrix).T
    index = torch.floor((source + config.map_extent) / config.map_resolution).long()
    known = ((index >= 0) & (index < cells)).all(-1)
    index = index.clamp(0, cells - 1)
    return torch.where(known, truth[:, index[..., 0], index[..., 1]], torch.nan)


def collate(samples: list[FusionSample]) -> FusionBatch:
    """Put frames with any sensors into one batch."""
    frames = torch.arange(len(samples))
    return FusionBatch(
        FusionInput(
            points=torch.cat([sample.points for sample in samples]),
            point_batch=frames.repeat_interleave(torch.tensor([len(s.points) for s in samples])),
            images=torch.cat([sample.pictures for sample in samples]).float() / 255,
            image_batch=frames.repeat_interleave(torch.tensor([len(s.pictures) for s in samples])),
            rays=torch.cat([sample.rays for sample in samples]),
            origins=torch.cat([sample.origins for sample in samples]),
            has_lidar=torch.tensor([sample.has_lidar for sample in samples]),
        ),
        tuple(samples),
    )
