# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""CenterPoint's head on a bird's-eye-view map (Yin et al. 2021): heat maps and boxes per cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kestrel.nn.boxes import DecodedBoxes, inside_range
from kestrel.nn.conv import ConvModule
from kestrel.nn.separate_head import SeparateHead
from kestrel.ops import circle_nms

REGRESSIONS = {"reg": (2, 2), "height": (1, 2), "dim": (3, 2), "rot": (2, 2), "vel": (2, 2)}
"""Per cell: offset of the centre (cells), height of the middle, log sizes, sine and cosine, velocity."""


class CenterHead(nn.Module):
    """Heat maps and boxes of groups of similar classes ("tasks").

    Args:
        in_channels: of the decoded map.
        tasks: class names of each task.
        lower: (x, y) of the map's corner, metres.
        cell_size: (x, y) of a cell of the map, metres (voxel size times out_size_factor).
        share_channels: of the common convolution.
        post_center_range: boxes outside are dropped; lower x, y, z, upper x, y, z.
        score_threshold: boxes must score more.
        max_num: candidates per task.
        nms_limit: boxes per task after suppression.
        min_radius: per task, see circle_nms (a squared distance).
    """

    def __init__(
        self,
        in_channels: int,
        tasks: Sequence[Sequence[str]],
        lower: tuple[float, float],
        cell_size: tuple[float, float],
        *,
        share_channels: int = 64,
        post_center_range: Sequence[float] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0),
        score_threshold: float = 0.1,
        max_num: int = 500,
        nms_limit: int = 83,
        min_radius: Sequence[float] = (4, 12, 10, 1, 0.85, 0.175),
    ) -> None:
        super().__init__()
        self.tasks = tuple(tuple(task) for task in tasks)
        self.lower = lower
        self.cell_size = cell_size
        self.post_center_range = tuple(post_center_range)
        self.score_threshold = score_threshold
        self.max_num = max_num
        self.nms_limit = nms_limit
        self.min_radius = tuple(min_radius)
        self.shared_conv = ConvModule(in_channels, share_channels, 3, padding=1)
        self.task_heads = nn.ModuleList(
            SeparateHead(share_channels, {**REGRESSIONS, "heatmap": (len(task), 2)}) for task in self.tasks
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes, in the order of the labels that decode returns."""
        return tuple(name for task in self.tasks for name in task)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        """(B, in_channels, X, Y) to, per task, name to (B, channels, X, Y); heat maps are logits."""
        x = self.shared_conv(x)
        return [head(x) for head in self.task_heads]

    def candidates(self, prediction: dict[str, Tensor]) -> list[DecodedBoxes]:
        """Return the best cells of one task as boxes, per sample, best first, before suppression.

        z is the middle of the box here. Labels count within the task.
        """
        heat = prediction["heatmap"].sigmoid()
        batch, _, _, columns = heat.shape
        # Best cells per class first, then best overall: ties resolve as in the released code.
        scores, cells = heat.flatten(2).topk(min(self.max_num, heat[0, 0].numel()))
        scores, picks = scores.flatten(1).topk(min(self.max_num, scores[0].numel()))
        labels = picks // cells.shape[2]
        cells = cells.flatten(1).gather(1, picks)

        def at(name: str) -> Tensor:
            values = prediction[name].flatten(2)
            return values.gather(2, cells[:, None].expand(-1, values.shape[1], -1)).transpose(1, 2)

        offset, rotation = at("reg"), at("rot")
        x = (cells // columns + offset[..., 0]) * self.cell_size[0] + self.lower[0]
        y = (cells % columns + offset[..., 1]) * self.cell_size[1] + self.lower[1]
        yaw = torch.atan2(rotation[..., 0], rotation[..., 1])
        boxes = torch.cat(
            (torch.stack((x, y), -1), at("height"), at("dim").exp(), yaw[..., None], at("vel")), dim=-1
        )
        return [DecodedBoxes(boxes[b], scores[b], labels[b]) for b in range(batch)]

    def decode(self, predictions: list[dict[str, Tensor]]) -> list[DecodedBoxes]:
        """Return the detections of every sample: thresholded, in range, without neighbours of better ones."""
        samples: list[list[DecodedBoxes]] = [[] for _ in range(len(predictions[0]["heatmap"]))]
        first_label = 0
        for task, prediction in enumerate(predictions):
            for sample, found in enumerate(self.candidates(prediction)):
                kept = (found.scores > self.score_threshold) & inside_range(
                    found.boxes, self.post_center_range
                )
                boxes, scores, labels = (values[kept] for values in found)
                keep = circle_nms(boxes[:, :2], scores, self.min_radius[task], self.nms_limit)
                boxes = boxes[keep]
                boxes = torch.cat((boxes[:, :2], boxes[:, 2:3] - boxes[:, 5:6] / 2, boxes[:, 3:]), dim=1)
                samples[sample].append(DecodedBoxes(boxes, scores[keep], labels[keep] + first_label))
            first_label += len(self.tasks[task])
        return [DecodedBoxes(*(torch.cat(parts) for parts in zip(*found, strict=True))) for found in samples]
