# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""First stage of Kestrel-Fusion: its camera branch learns from single pictures what is how far away.

The later stages tell it little: there a picture only matters where its features happen to fall into a cell
with an object. Here every cell of the picture has a depth, as the LiDAR sees it, and shows something known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kestrel.errors import InputError, describe
from kestrel.models.kestrel_fusion import KestrelFusion
from kestrel.models.kestrel_fusion_camera import CameraEncoder
from kestrel.models.kestrel_fusion_types import EarlierPictures, FusionConfig
from kestrel.pipelines.fusion import CLASSES
from kestrel.pipelines.runtime import fast_arithmetic
from kestrel.sim.semantics import Semantic
from kestrel.train import cache
from kestrel.train.drawing import drawing_weights
from kestrel.train.fusion_augmentation import recolour
from kestrel.train.fusion_data import PASTS, depth_bins, described_frame, draw_past, earlier_pictures
from kestrel.train.fusion_sample import collate_earlier
from kestrel.train.loop import Task, mean_loss
from kestrel.train.plan import Plan
from kestrel.train.sweep_augmentation import uniform
from kestrel.types import UInt8Array

KINDS: Final = len(Semantic)

_IN_BACKGROUND: Final = (
    *(Semantic.VOID, Semantic.SKY, Semantic.ROAD, Semantic.SIDEWALK, Semantic.TERRAIN, Semantic.BUILDING),
    *(Semantic.VEGETATION, Semantic.OTHER_STRUCTURE, Semantic.OTHER_GROUND),
)
WEIGHT: Final = torch.tensor([1.0 if kind in _IN_BACKGROUND else 4.0 for kind in Semantic])
"""How much a cell of each kind counts: objects, paint and other small things more than large surfaces."""


@dataclass(frozen=True)
class Pictures:
    """Pictures and what they show at an eighth of their size.

    images: (M, 3, H, W) uint8. earlier: (K, M, 3, H, W) uint8, what the same cameras saw before, a hop apart,
    the oldest first. depth: (M, h, w) int64 bin, -1 where the LiDAR
    sees nothing. shares: (M, KINDS, h, w) float32 share of the pixels of a cell that show a kind of surface,
    NaN in a picture of which nobody knows what it shows.
    """

    images: Tensor
    earlier: Tensor
    depth: Tensor
    shares: Tensor


@dataclass(frozen=True)
class PictureBatch:
    """images: (M, 3, H, W) float32, 0..1. earlier: what was seen before. depth, shares: as of Pictures."""

    images: Tensor
    earlier: EarlierPictures
    depth: Tensor
    shares: Tensor

    @property
    def told(self) -> Tensor:
        """Of which pictures it is known what they show, (M,) bool."""
        return ~self.shares.isnan().flatten(1).any(1)

    def answer(self, camera: CameraEncoder) -> tuple[Tensor, Tensor]:
        """Return depth logits and context features."""
        images = self.images.contiguous(memory_format=torch.channels_last)
        depth, context, *_ = camera(images, *camera.remember(self.earlier))
        return depth, context


class PictureSource:
    """The pictures of cached key frames; :meth:`draw` prefers frames with classes that few frames have.

    Raises:
        InputError: no frame has pictures.
    """

    def __init__(self, files: list[Path], config: FusionConfig) -> None:
        self.config = config
        described = [(path, *described_frame(path)) for path in files]
        self.files = [path for path, _, pictures in described if pictures]
        if not self.files:
            expected = "some with pictures, as the splits train, train_cameras and validation have"
            raise InputError(describe(f"{len(files)} key frames", expected=expected, found="none"))
        there = np.array([classes for _, classes, pictures in described if pictures])
        self._chance = torch.from_numpy(drawing_weights(there))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Pictures:
        """Return all pictures of frame ``index`` as they are."""
        return self._load(index, len(PASTS) - 1)

    def _load(self, index: int, past: int) -> Pictures:
        frame = cache.read(cache.CachedFrame, self.files[index])
        points = frame.cloud(0)[:, :3]
        cameras = range(len(frame.matrices))
        calibrations = [frame.calibration(number, self.config.image_size) for number in cameras]
        return Pictures(
            torch.stack([torch.from_numpy(frame.picture(number)).permute(2, 0, 1) for number in cameras]),
            earlier_pictures(self.files[index], frame.base_from_camera, self.config, past),
            torch.stack([depth_bins(points, calibration, self.config) for calibration in calibrations]),
            torch.stack([self._shares(frame, number) for number in cameras]),
        )

    def _shares(self, frame: cache.CachedFrame, number: int) -> Tensor:
        if not frame.has_semantics:
            return torch.full((KINDS, *self.config.feature_size), torch.nan)
        return shares_of_kinds(frame.semantic(number), self.config)

    def draw(self, generator: torch.Generator) -> Pictures:
        """Return the pictures of a random frame, recoloured, half of the time mirrored."""
        index = int(torch.multinomial(self._chance, 1, generator=generator))
        chosen = self._load(index, draw_past(generator))
        parts = *recolour(chosen.images, chosen.earlier, generator), chosen.depth, chosen.shares
        if uniform(0, 1, generator) < 0.5:
            return Pictures(*(part.flip(-1) for part in parts))
        return Pictures(*parts)


def shares_of_kinds(semantic: UInt8Array, config: FusionConfig) -> Tensor:
    """Return which share of each feature cell shows which kind of surface, (KINDS, h, w) float32.

    Args:
        semantic: (H, W) label image, values of Semantic.
        config: says how large a feature cell is.
    """
    h, w = config.feature_size
    height, width = semantic.shape
    cell = (np.arange(height) * h // height)[:, None] * w + np.arange(width) * w // width
    counts = np.bincount((semantic.astype(np.int64) * (h * w) + cell).ravel(), minlength=KINDS * h * w)
    return torch.from_numpy(counts.reshape(KINDS, h, w).astype(np.float32) * (h * w / semantic.size))


def collate(samples: list[Pictures]) -> PictureBatch:
    """Put the pictures of several frames into one batch."""
    return PictureBatch(
        torch.cat([sample.images for sample in samples]).float() / 255,
        collate_earlier([sample.earlier for sample in samples]),
        torch.cat([sample.depth for sample in samples]),
        torch.cat([sample.shares for sample in samples]),
    )


class CameraTask(Task[KestrelFusion]):
    """Depth and kind of every feature cell; the rest of the network stays as it is.

    The kinds are told from the context features by one linear layer, which is of no use afterwards.
    """

    name = "kestrel-fusion"
    classes = CLASSES

    def __init__(self, plan: Plan, config: FusionConfig | None = None) -> None:
        super().__init__(KestrelFusion(config), plan)
        self.kinds = nn.Conv2d(self.network.config.camera_channels, KINDS, 1)
        self._restart()

    def _restart(self) -> None:
        self.confusion = torch.zeros(KINDS, KINDS, dtype=torch.int64)
        self.depths = torch.zeros(2, dtype=torch.int64)

    def training_step(self, batch: PictureBatch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        with fast_arithmetic():
            depth, context = batch.answer(self.network.camera)
        told = batch.told
        parts = {}
        if bool(told.any()):
            shown = context if bool(told.all()) else context[told]
            parts["kinds"] = F.cross_entropy(self.kinds(shown), batch.shares[told], weight=WEIGHT)
        if bool((batch.depth >= 0).any()):
            parts["depth"] = F.cross_entropy(depth, batch.depth, ignore_index=-1)
        if not parts:  # as where the LiDAR sees nothing of what pictures without labels show
            return 0 * depth.sum()
        self.log_dict({key: value.detach() for key, value in parts.items()}, prog_bar=True)
        return mean_loss(parts)

    def validation_step(self, batch: PictureBatch, batch_idx: int) -> None:
        """Count right answers of the averaged network."""
        with fast_arithmetic():
            depth, context = batch.answer(self.averaged.camera)
        known = batch.depth >= 0
        near = (depth.argmax(1) - batch.depth).abs() <= 1
        self.depths += torch.stack(((near & known).sum(), known.sum()))
        truth = batch.shares[batch.told].argmax(1).flatten()
        answer = self.kinds(context[batch.told]).argmax(1).flatten()
        self.confusion += torch.bincount(truth * KINDS + answer, minlength=KINDS**2).view(KINDS, KINDS)

    def scores(self) -> dict[str, float]:
        """Return the share of depths that are right to one bin, and the IoU of the kinds that occur.

        Where no picture is known to show anything it is judged by the depths alone.
        """
        shared, true, named = self.confusion.diag(), self.confusion.sum(1), self.confusion.sum(0)
        iou = {
            f"iou/{kind.name.lower()}": float(shared[kind] / (true[kind] + named[kind] - shared[kind]))
            for kind in Semantic
            if true[kind]
        }
        depth = float(self.depths[0] / self.depths[1].clamp(min=1))
        self._restart()
        if not iou:
            return {"mean": depth, "depth": depth}
        mean_iou = sum(iou.values()) / len(iou)
        return {"mean": (depth + mean_iou) / 2, "depth": depth, "miou": mean_iou, **iou}
