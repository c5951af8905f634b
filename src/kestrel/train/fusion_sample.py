# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What Kestrel-Fusion is trained with: frames as tensors, and batches of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from kestrel.classes import DETECTION_CLASSES
from kestrel.models.kestrel_fusion import KestrelFusion
from kestrel.models.kestrel_fusion_types import EarlierPictures, FusionInput


@dataclass(frozen=True)
class FusionSample:
    """One frame as tensors.

    points: (P, 5). pictures: (M, 3, H, W) uint8. earlier: (K, M, 3, H, W) uint8, what the same cameras saw
    before, a hop apart, the oldest first. rays: (M, h, w, 3). origins: (M, 3). has_lidar: whether
    points took part. boxes: (N, 9), NaN where the velocity is not known; box_label, box_points: (N,).
    map_truth: (layers, X, Y) float, 0 or 1, NaN where it is not known. depth: (M, h, w) int64 depth bin that
    LiDAR sees, -1 where none. vehicle: (2,) where the vehicle is from the middle of boxes, points and map,
    metres. unlabelled: (K, 7), labelled_classes: (classes,) bool: as of CachedFrame.
    """

    points: Tensor
    pictures: Tensor
    earlier: Tensor
    rays: Tensor
    origins: Tensor
    has_lidar: bool
    boxes: Tensor
    box_label: Tensor
    box_points: Tensor
    map_truth: Tensor
    depth: Tensor
    vehicle: Tensor = field(default_factory=partial(torch.zeros, 2))
    unlabelled: Tensor = field(default_factory=partial(torch.zeros, 0, 7))
    labelled_classes: Tensor = field(
        default_factory=partial(torch.ones, len(DETECTION_CLASSES), dtype=torch.bool)
    )


@dataclass(frozen=True)
class FusionBatch:
    """inputs of the network, what its cameras saw before, and the truth of every frame."""

    inputs: FusionInput
    earlier: EarlierPictures
    samples: tuple[FusionSample, ...]

    def inputs_of(self, network: KestrelFusion) -> FusionInput:
        """Return the inputs with what ``network`` keeps of the earlier pictures."""
        return replace(self.inputs, past=network.camera.remember(self.earlier))


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
            vehicle=torch.stack([sample.vehicle for sample in samples]),
        ),
        collate_earlier([sample.earlier for sample in samples]),
        tuple(samples),
    )


def collate_earlier(earlier: list[Tensor]) -> EarlierPictures:
    """Put the earlier pictures of frames into one batch; (K, M, 3, H, W) uint8 each, with any K."""
    most = max(len(each) for each in earlier)
    images = [
        torch.cat((each.new_zeros(most - len(each), *each.shape[1:]), each)).float() / 255 for each in earlier
    ]
    known = [(torch.arange(most) >= most - len(each))[:, None].expand(-1, each.shape[1]) for each in earlier]
    return EarlierPictures(torch.cat(images, 1), torch.cat(known, 1))
