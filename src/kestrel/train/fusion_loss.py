# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Losses of Kestrel-Fusion: centre heatmap, boxes, map and depth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kestrel.eval.labelled import outside
from kestrel.models.kestrel_fusion import KestrelFusion
from kestrel.models.kestrel_fusion_types import FusionConfig, FusionOutput
from kestrel.train.fusion_sample import FusionBatch, FusionSample

REGRESSION_WEIGHT = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 1.0, 1.0])
"""Of what BoxRegression answers but the velocity."""

VELOCITY_WEIGHT = 0.3
MOVING_MPS = 1.0
MOVING_WEIGHT = 3.0
"""How much more a cell of what is faster than MOVING_MPS counts: most objects stand."""

DEPTH_WEIGHT = 0.2
MAP_WEIGHT = 6.0
AROUND = 0.1
"""What an object is still called around its middle, from which on a cell belongs to its surroundings."""

LAYER_WEIGHT = torch.tensor([1.0, 3.0, 1.5, 4.0, 2.0, 4.0])
"""How much more a cell of each map layer counts than a cell without it."""


@dataclass(frozen=True)
class CenterTargets:
    """What heatmap and boxes of one frame should be.

    heatmap: (classes, X, Y), 1 at the cell of each object. weight: (X, Y), 0 around unseen boxes and where
    the labels say nothing. Boxes are answered at several cells: cell (K, 2), row (K,) the box of each, near
    (K,) 0..1, 1 where its middle is.
    """

    heatmap: Tensor
    weight: Tensor
    cell: Tensor
    row: Tensor
    near: Tensor


def center_targets(sample: FusionSample, config: FusionConfig) -> CenterTargets:
    """Return the targets of one frame (CenterPoint, section 4).

    Boxes without a LiDAR point are neither object nor background: a sensor can hardly know them. Of where the
    labels say nothing the objects that they have all the same are known, and what is around these.

    A middle by the border of two cells is as likely found in either, so that a box is answered at all nine
    cells around its middle, but for those that are nearer to another object of its class.
    """
    side = config.pillars // 2
    heatmap = torch.zeros(config.num_classes, side, side)
    weight = torch.ones(side, side)
    known = outside(cell_middles(config), sample.unlabelled)
    place = (sample.boxes[:, :2] + config.extent) / config.cell_size
    cell = place.floor().long()
    inside = ((cell >= 0) & (cell < side)).all(1)
    extent = sample.boxes[:, 3:5].norm(dim=1) / config.cell_size
    cells, rows, bumps = [], [], []
    for row in inside.nonzero()[:, 0].tolist():
        sigma = float((0.15 * extent[row]).clamp(0.6, 2.0))
        reach = int(3 * sigma) + 1
        low = (cell[row] - reach).clamp(min=0)
        high = (cell[row] + reach + 1).clamp(max=side)
        x, y = (torch.arange(int(low[axis]), int(high[axis])) for axis in range(2))
        away = (x[:, None] + 0.5 - place[row, 0]) ** 2 + (y + 0.5 - place[row, 1]) ** 2
        bump = torch.exp(-away / (2 * sigma**2))
        window = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))
        if sample.box_points[row] > 0:
            patch = heatmap[int(sample.box_label[row])][window]
            torch.maximum(patch, bump, out=patch)
            known[window] |= bump >= AROUND
            around = ((x - cell[row, 0]).abs() <= 1)[:, None] & ((y - cell[row, 1]).abs() <= 1)
            cells.append(around.nonzero() + low)
            rows.append(torch.full((len(cells[-1]),), row))
            bumps.append(bump[around])
        else:
            weight[window] = torch.minimum(weight[window], (bump < AROUND).float())
    weight *= known
    if not rows:
        nothing = torch.zeros(0, dtype=torch.int64)
        return CenterTargets(heatmap, weight, nothing.view(0, 2), nothing, torch.zeros(0))
    answered, row, near = torch.cat(cells), torch.cat(rows), torch.cat(bumps)
    middle = (answered == cell[row]).all(1)
    mine = middle | (near >= heatmap[sample.box_label[row], answered[:, 0], answered[:, 1]])
    heatmap[sample.box_label[row[middle]], answered[middle, 0], answered[middle, 1]] = 1.0
    weight[answered[middle, 0], answered[middle, 1]] = 1.0
    near = torch.where(middle, 1.0, near)
    return CenterTargets(heatmap, weight, answered[mine], row[mine], near[mine])


def focal_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the penalty-reduced focal loss of a centre heatmap (CornerNet, ECCV 2018, eq. 1)."""
    probability = logits.sigmoid()
    positive = target == 1
    log_yes, log_no = F.logsigmoid(logits), F.logsigmoid(-logits)
    hit = -((1 - probability) ** 2) * log_yes * positive
    miss = -(probability**2) * (1 - target) ** 4 * log_no * ~positive
    return ((hit + miss) * weight).sum() / positive.sum().clamp(min=1)


def cell_middles(config: FusionConfig) -> Tensor:
    """Return where the middles of the cells of the heads are, (X, Y, 2) metres from that of the grid."""
    middles = (torch.arange(config.pillars // 2) + 0.5) * config.cell_size - config.extent
    return torch.stack(torch.meshgrid(middles, middles, indexing="ij"), -1)


def covered_cells(sample: FusionSample, config: FusionConfig) -> tuple[Tensor, Tensor]:
    """Return the cells (K, 2) that boxes with LiDAR points cover, and the rows of these boxes (K,).

    A box has at least the cell of its middle; a cell that two boxes cover is there twice.
    """
    seen = (sample.box_points > 0).nonzero()[:, 0]
    boxes = sample.boxes[seen]
    middles = cell_middles(config)
    x = middles[..., 0] - boxes[:, 0, None, None]
    y = middles[..., 1] - boxes[:, 1, None, None]
    cosine, sine = boxes[:, 6, None, None].cos(), boxes[:, 6, None, None].sin()
    # Half of its diagonal is how far the middle of a cell may be from an object in it.
    half = (boxes[:, 3:5, None, None] / 2).clamp(min=config.cell_size * 0.5**0.5)
    ahead, aside = x * cosine + y * sine, y * cosine - x * sine
    box, *cell = ((ahead.abs() <= half[:, 0]) & (aside.abs() <= half[:, 1])).nonzero().unbind(1)
    return torch.stack(cell, 1), seen[box]


def velocity_loss(output: FusionOutput, batch: FusionBatch, network: KestrelFusion) -> Tensor | None:
    """Return the error of the velocity at every cell that an object covers whose velocity is known, or None.

    Of its middle alone it takes many times as long to learn: what tells a velocity, points of several sweeps
    beside each other, is at the borders of an object, and few objects move.
    """
    cells, velocities, frames = [], [], []
    for number, sample in enumerate(batch.samples):
        cell, row = covered_cells(sample, network.config)
        told = sample.boxes[row, 7:9].isfinite().all(1)
        cell, row = cell[told], row[told]
        cells.append(cell)
        velocities.append(sample.boxes[row, 7:9])
        frames.append(torch.full_like(row, number))
    truth = torch.cat(velocities)
    if not len(truth):
        return None
    answer = network.regression.velocities(output.features, torch.cat(frames), torch.cat(cells))
    error = F.smooth_l1_loss(answer, truth, beta=0.5, reduction="none").sum(1)
    weight = torch.where(truth.norm(dim=1) > MOVING_MPS, MOVING_WEIGHT, 1.0)
    return (error * weight).sum() / weight.sum()


def regression_target(boxes: Tensor, cell: Tensor, config: FusionConfig) -> Tensor:
    """Return what BoxRegression should answer but the velocity for boxes (K, 9) at cells (K, 2)."""
    offset = (boxes[:, :2] + config.extent) / config.cell_size - cell - 0.5
    yaw = boxes[:, 6:7]
    direction = torch.cat((yaw.sin(), yaw.cos()), 1)
    axis = torch.cat(((2 * yaw).sin(), (2 * yaw).cos()), 1)
    return torch.cat((offset, boxes[:, 2:3], boxes[:, 3:6].log(), direction, axis), 1)


def box_loss(
    output: FusionOutput, batch: FusionBatch, targets: list[CenterTargets], network: KestrelFusion
) -> Tensor | None:
    """Return the error of the boxes but for the velocity, None without objects."""
    cell = torch.cat([target.cell for target in targets])
    if not len(cell):
        return None
    pairs = list(zip(batch.samples, targets, strict=True))
    boxes = torch.cat([sample.boxes[target.row] for sample, target in pairs])
    label = torch.cat([sample.box_label[target.row] for sample, target in pairs])
    near = torch.cat([target.near for target in targets])
    counts = torch.tensor([len(target.row) for target in targets])
    frame = torch.repeat_interleave(torch.arange(len(targets)), counts)
    answer = network.regression(output.features, frame, cell, label)[:, : len(REGRESSION_WEIGHT)]
    target = regression_target(boxes, cell, network.config)
    error = F.smooth_l1_loss(answer, target, beta=0.1, reduction="none")
    return ((error * REGRESSION_WEIGHT).sum(1) * near).sum() / near.sum()


def map_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Return weighted cross-entropy plus Dice per layer, over the cells with truth (not NaN)."""
    known = ~truth.isnan()
    truth = truth.nan_to_num()
    more = LAYER_WEIGHT.view(-1, 1, 1)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, pos_weight=more, reduction="none")
    probability = logits.sigmoid() * known
    shared = (probability * truth).sum((0, 2, 3))
    total = probability.sum((0, 2, 3)) + truth.sum((0, 2, 3))
    dice = 1 - (2 * shared + 50) / (total + 50)
    return (entropy * known).sum() / known.sum().clamp(min=1) + 0.5 * dice.mean()


def fusion_loss(output: FusionOutput, batch: FusionBatch, network: KestrelFusion) -> dict[str, Tensor]:
    """Return the weighted terms of the loss; those of which the truth says nothing are left out."""
    config = network.config
    targets = [center_targets(sample, config) for sample in batch.samples]
    heatmap = torch.stack([target.heatmap for target in targets])
    classes = torch.stack([sample.labelled_classes for sample in batch.samples])
    weight = torch.stack([target.weight for target in targets])[:, None] * classes[:, :, None, None]
    parts = {"heatmap": focal_loss(output.heatmap, heatmap, weight)}
    boxes = box_loss(output, batch, targets, network)
    if boxes is not None:
        parts["boxes"] = boxes
    velocity = velocity_loss(output, batch, network)
    if velocity is not None:
        parts["velocity"] = VELOCITY_WEIGHT * velocity
    truth = torch.stack([sample.map_truth for sample in batch.samples])
    if not truth.isnan().all():
        parts["map"] = MAP_WEIGHT * map_loss(output.map_logits, truth)
    if output.depth is not None:
        depth = torch.cat([sample.depth for sample in batch.samples])
        if bool((depth >= 0).any()):
            parts["depth"] = DEPTH_WEIGHT * F.cross_entropy(output.depth, depth, ignore_index=-1)
    return parts
