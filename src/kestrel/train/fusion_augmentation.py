# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Changes a frame into one that other sensors might have taken elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.train.fusion_sample import FusionSample
from kestrel.train.sweep_augmentation import PIERCED, TILT_RAD, disturbed_intensity, in_holes, uniform

DISTURBED: Final = 0.4
"""Share of the frames whose intensity tells little; in the others paint on the road is seen by it."""

NOISE_M: Final = 0.01
"""Standard deviation of what is added to every point."""

LIFT_M: Final = 0.15
"""How much higher or lower the vehicle may stand than it should."""


def augment_points(sample: FusionSample, generator: torch.Generator) -> FusionSample:
    """Disturb what differs between LiDARs: which points there are, where, and their intensity."""
    kept = torch.rand(len(sample.points), generator=generator) < uniform(0.7, 1.0, generator)
    if uniform(0, 1, generator) < PIERCED:
        kept &= ~in_holes(sample.points, generator)
    points = sample.points[kept].clone()
    if uniform(0, 1, generator) < DISTURBED:
        points[:, 3] = disturbed_intensity(points, generator)
    else:
        gain, offset = uniform(0.6, 1.5, generator), uniform(-0.03, 0.05, generator)
        points[:, 3] = (points[:, 3] * gain + offset).clamp(0, 1)
    points[:, :3] += NOISE_M * torch.randn(len(points), 3, generator=generator)
    return replace(sample, points=points)


def augment_pictures(sample: FusionSample, generator: torch.Generator) -> FusionSample:
    """Change what differs between cameras: colours and sharpness."""
    pictures, earlier = recolour(sample.pictures, sample.earlier, generator)
    return replace(sample, pictures=pictures, earlier=earlier)


def recolour(pictures: Tensor, earlier: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Change brightness, contrast, tint and sharpness of pictures and what was seen before, all alike.

    pictures: (M, 3, H, W) uint8. earlier: (K, M, 3, H, W) uint8.
    """
    if not len(pictures):
        return pictures, earlier
    changed = _recolour(torch.cat((pictures, earlier.flatten(0, 1))), generator)
    return changed[: len(pictures)], changed[len(pictures) :].view_as(earlier)


def _recolour(pictures: Tensor, generator: torch.Generator) -> Tensor:
    brightness, contrast = uniform(0.7, 1.3, generator), uniform(0.7, 1.3, generator)
    tint = brightness * (1 + 0.1 * torch.randn(1, 3, 1, 1, generator=generator))
    changed = pictures.float()
    middle = changed.mean((2, 3), keepdim=True)
    changed.mul_(contrast * tint).add_((1 - contrast) * tint * middle)
    if uniform(0, 1, generator) < 0.5:
        changed = F.avg_pool2d(F.pad(changed, (1, 1, 1, 1), mode="replicate"), 3, 1) * 0.5 + changed * 0.5
    return changed.clamp_(0, 255).to(torch.uint8)


def augment_view(sample: FusionSample, config: FusionConfig, generator: torch.Generator) -> FusionSample:
    """Turn, mirror, scale, tilt and lift everything about the vehicle: points, rays, boxes and map.

    What is mirrored once is also mirrored in the pictures, or else what moves to the left in them would move
    to the right.
    """
    angle = uniform(-torch.pi / 4, torch.pi / 4, generator)
    scale = uniform(0.95, 1.05, generator)
    flips = [1.0 if uniform(0, 1, generator) < 0.5 else -1.0 for _ in range(2)]
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    turn = torch.tensor([[cosine, -sine], [sine, cosine]]) @ torch.diag(torch.tensor(flips))
    full = torch.eye(3)
    full[:2, :2] = turn
    full *= scale
    full[2, :2] = TILT_RAD * torch.randn(2, generator=generator)
    lift = torch.tensor([0, 0, uniform(-LIFT_M, LIFT_M, generator)])
    points, boxes, unlabelled = sample.points.clone(), sample.boxes.clone(), sample.unlabelled.clone()
    points[:, :3] = points[:, :3] @ full.T + lift
    for placed in (boxes, unlabelled):
        placed[:, :3] = placed[:, :3] @ full.T + lift
        placed[:, 3:6] *= scale
        ahead = torch.stack((placed[:, 6].cos(), placed[:, 6].sin()), 1) @ turn.T
        placed[:, 6] = torch.atan2(ahead[:, 1], ahead[:, 0])
    boxes[:, 7:9] = boxes[:, 7:9] @ turn.T * scale
    if flips[0] != flips[1]:
        sample = replace(
            sample,
            pictures=sample.pictures.flip(-1),
            earlier=sample.earlier.flip(-1),
            depth=sample.depth.flip(-1),
            rays=sample.rays.flip(2),
        )
    return replace(
        sample,
        points=points,
        boxes=boxes,
        unlabelled=unlabelled,
        rays=sample.rays @ full.T,
        origins=sample.origins @ full.T + lift,
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
