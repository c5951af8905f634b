# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Losses of Kestrel-Fusion: centre heatmap, boxes, map and depth."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kestrel.models.kestrel_fusion import FusionConfig, FusionOutput, KestrelFusion
from kestrel.train.fusion_sample import FusionBatch, FusionSample

REGRESSION_WEIGHT = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 1.0, 1.0])
"""Of what BoxRegression answers but the velocity."""

VELOCITY_WEIGHT = 0.3
MOVING_MPS = 1.0
MOVING_WEIGHT = 3.0
"""How much more a cell of what is faster than MOVING_MPS counts: most objects stand."""

DEPTH_WEIGHT = 0.2
MAP_WEIGHT = 4.0
LAYER_WEIGHT = torch.tensor([1.0, 3.0, 1.5, 4.0, 2.0, 4.0])
"""How much more a cell of each map layer counts than a cell without it."""


def draw_heatmap(sample: FusionSample, config: FusionConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what the heatmap of one frame should be (CenterPoint, section 4).

    Boxes without a LiDAR point are neither object nor background: a sensor can hardly know them.

    Returns:
        heatmap (classes, X, Y) with a Gaussian per object, weight (X, Y) that is 0 around unseen boxes, rows
        of the boxes that are objects (K,), and their cells (K, 2).
    """
    side = config.pillars // 2
    heatmap = torch.zeros(config.num_classes, side, side)
    weight = torch.ones(side, side)
    place = (sample.boxes[:, :2] + config.extent) / config.cell_size
    cell = place.floor().long()
    inside = ((cell >= 0) & (cell < side)).all(1)
    extent = sample.boxes[:, 3:5].norm(dim=1) / config.cell_size
    chosen = []
    for row in inside.nonzero()[:, 0].tolist():
        sigma = float((0.15 * extent[row]).clamp(0.6, 2.0))
        reach = int(3 * sigma) + 1
        low = (cell[row] - reach).clamp(min=0)
        high = (cell[row] + reach + 1).clamp(max=side)
        x = torch.arange(int(low[0]), int(high[0])) - cell[row, 0]
        y = torch.arange(int(low[1]), int(high[1])) - cell[row, 1]
        bump = torch.exp(-(x[:, None] ** 2 + y[None] ** 2) / (2 * sigma**2))
        window = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))
        if sample.box_points[row] > 0:
            patch = heatmap[int(sample.box_label[row])][window]
            torch.maximum(patch, bump, out=patch)
            chosen.append(row)
        else:
            weight[window] = torch.minimum(weight[window], (bump < 0.1).float())
    rows = torch.tensor(chosen, dtype=torch.int64)
    weight[cell[rows, 0], cell[rows, 1]] = 1.0
    return heatmap, weight, rows, cell[rows]


def focal_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the penalty-reduced focal loss of a centre heatmap (CornerNet, ECCV 2018, eq. 1)."""
    probability = logits.sigmoid()
    positive = target == 1
    log_yes, log_no = F.logsigmoid(logits), F.logsigmoid(-logits)
    hit = -((1 - probability) ** 2) * log_yes * positive
    miss = -(probability**2) * (1 - target) ** 4 * log_no * ~positive
    return ((hit + miss) * weight).sum() / positive.sum().clamp(min=1)


def covered_cells(sample: FusionSample, config: FusionConfig) -> tuple[Tensor, Tensor]:
    """Return the cells (K, 2) that boxes with LiDAR points cover, and the rows of these boxes (K,).

    A box has at least the cell of its middle; a cell that two boxes cover is there twice.
    """
    seen = (sample.box_points > 0).nonzero()[:, 0]
    boxes = sample.boxes[seen]
    middles = (torch.arange(config.pillars // 2) + 0.5) * config.cell_size - config.extent
    x = middles[:, None] - boxes[:, 0, None, None]
    y = middles - boxes[:, 1, None, None]
    cosine, sine = boxes[:, 6, None, None].cos(), boxes[:, 6, None, None].sin()
    # Half of its diagonal is how far the middle of a cell may be from an object in it.
    half = (boxes[:, 3:5, None, None] / 2).clamp(min=config.cell_size * 0.5**0.5)
    ahead, aside = x * cosine + y * sine, y * cosine - x * sine
    box, *cell = ((ahead.abs() <= half[:, 0]) & (aside.abs() <= half[:, 1])).nonzero().unbind(1)
    return torch.stack(cell, 1), seen[box]


def velocity_loss(output: FusionOutput, batch: FusionBatch, network: KestrelFusion) -> Tensor | None:
    """Return the error of the velocity at every cell that an object covers, None without objects.

    Of its middle alone it takes many times as long to learn: what tells a velocity, points of several sweeps
    beside each other, is at the borders of an object, and few objects move.
    """
    cells, velocities, frames = [], [], []
    for number, sample in enumerate(batch.samples):
        cell, row = covered_cells(sample, network.config)
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
    """Return the weighted terms of the loss."""
    config = network.config
    drawn = [draw_heatmap(sample, config) for sample in batch.samples]
    heat = torch.stack([heatmap for heatmap, _, _, _ in drawn])
    weight = torch.stack([weight for _, weight, _, _ in drawn])[:, None]
    parts = {"heatmap": focal_loss(output.heatmap, heat, weight)}
    frame = torch.repeat_interleave(
        torch.arange(len(drawn)), torch.tensor([len(rows) for _, _, rows, _ in drawn])
    )
    if len(frame):
        cell = torch.cat([cell for _, _, _, cell in drawn])
        boxes = torch.cat(
            [sample.boxes[rows] for sample, (_, _, rows, _) in zip(batch.samples, drawn, strict=True)]
        )
        label = torch.cat(
            [sample.box_label[rows] for sample, (_, _, rows, _) in zip(batch.samples, drawn, strict=True)]
        )
        answer = network.regression(output.features, frame, cell, label)[:, : len(REGRESSION_WEIGHT)]
        target = regression_target(boxes, cell, config)
        error = F.smooth_l1_loss(answer, target, beta=0.1, reduction="none")
        parts["boxes"] = (error * REGRESSION_WEIGHT).sum(1).mean()
    velocity = velocity_loss(output, batch, network)
    if velocity is not None:
        parts["velocity"] = VELOCITY_WEIGHT * velocity
    truth = torch.stack([sample.map_truth for sample in batch.samples])
    parts["map"] = MAP_WEIGHT * map_loss(output.map_logits, truth)
    if output.depth is not None:
        depth = torch.cat([sample.depth for sample in batch.samples])
        if bool((depth >= 0).any()):
            parts["depth"] = DEPTH_WEIGHT * F.cross_entropy(output.depth, depth, ignore_index=-1)
    return parts
