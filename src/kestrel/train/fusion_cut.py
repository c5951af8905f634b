# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Parts of a frame, so that a training sees more streets in its time.

What a step costs grows with the area, most of which has no object. The network is a convolution but for the
places of points and the bearings of cells, both seen from the vehicle; it is told where that is, so that a
quarter of the area teaches the same weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.train.fusion_sample import FusionSample
from kestrel.train.sweep_augmentation import uniform

AT_OBJECTS: Final = 0.75
"""Share of the cuts that have an object in them for certain."""

BORDER_M: Final = 4.0
"""How far within the cut that object is."""


def cut_config(config: FusionConfig) -> FusionConfig:
    """Return the network for cuts of half the side."""
    return replace(config, extent=config.extent / 2, map_extent=config.map_extent / 2)


def cut_out(sample: FusionSample, config: FusionConfig, generator: torch.Generator) -> FusionSample:
    """Return a quarter of a frame of ``config``, at a random place, mostly one with an object."""
    return cut_at(sample, config, _middle(sample, config, generator))


def cut_at(sample: FusionSample, config: FusionConfig, middle: Tensor) -> FusionSample:
    """Return the quarter of a frame around ``middle`` (2,), metres from the vehicle, in its coordinates.

    ``middle`` lies on a corner of four cells of the map, and the cut within it. Cameras that do not look
    into the cut are left out.
    """
    cut = cut_config(config)
    shift = torch.cat((middle, torch.zeros(1)))
    points, boxes, unlabelled = sample.points.clone(), sample.boxes.clone(), sample.unlabelled.clone()
    for placed in (points, boxes, unlabelled):
        placed[:, :3] -= shift
    cells = round(2 * cut.map_extent / cut.map_resolution)
    first = ((middle + config.map_extent - cut.map_extent) / config.map_resolution).round().int()
    row, column = first.tolist()
    origins = sample.origins - shift
    looking = _looking_in(sample.rays, origins, cut)
    return replace(
        sample,
        points=points[(points[:, :2].abs() < cut.extent).all(1)],
        pictures=sample.pictures[looking],
        earlier=sample.earlier[:, looking],
        rays=sample.rays[looking],
        origins=origins[looking],
        depth=sample.depth[looking],
        boxes=boxes,
        unlabelled=unlabelled,
        map_truth=sample.map_truth[:, row : row + cells, column : column + cells],
        vehicle=sample.vehicle - middle,
    )


def _looking_in(rays: Tensor, origins: Tensor, cut: FusionConfig) -> Tensor:
    """Return which cameras, rays (M, h, w, 3) and origins (M, 3), look into the cut: (M,) bool."""
    first, step, count = cut.depth
    ends = rays[:, [0, -1], :, :2].flatten(1, 2)  # from above all others lie between top and bottom
    depths = first + step * torch.arange(count)
    places = origins[:, None, None, :2] + ends[:, :, None] * depths[:, None]
    return (places.abs() < cut.extent).all(-1).any((1, 2))


def _middle(sample: FusionSample, config: FusionConfig, generator: torch.Generator) -> Tensor:
    cut = cut_config(config)
    reach = config.map_extent - cut.map_extent
    seen = (sample.box_points > 0) & (sample.boxes[:, :2].abs() < config.extent - BORDER_M).all(1)
    middle = reach * (2 * torch.rand(2, generator=generator) - 1)
    if seen.any() and uniform(0, 1, generator) < AT_OBJECTS:
        # Of a class that is there once as often as of one that is there in rows.
        count = torch.bincount(sample.box_label[seen], minlength=config.num_classes)[sample.box_label]
        row = int(torch.multinomial(seen / count.clamp(min=1), 1, generator=generator))
        offset = (cut.extent - BORDER_M) * (2 * torch.rand(2, generator=generator) - 1)
        middle = (sample.boxes[row, :2] + offset).clamp(-reach, reach)
    return (middle / config.map_resolution).round() * config.map_resolution
