# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""CenterPoint's head on a bird's-eye-view map (Yin et al. 2021): heat maps and boxes per cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from kestrel.errors import ConfigError, describe
from kestrel.nn.boxes import DecodedBoxes, inside_range
from kestrel.nn.conv import ConvModule
from kestrel.nn.separate_head import SeparateHead
from kestrel.ops import circle_nms, rotated_nms

REGRESSIONS = {"reg": (2, 2), "height": (1, 2), "dim": (3, 2), "rot": (2, 2), "vel": (2, 2)}
"""Per cell: offset of the centre (cells), height of the middle, log sizes, sine and cosine, velocity."""

NMS_TYPES: Final = ("circle", "rotate")
"""What makes a box too close to a better one: the distance of their centres, or how much they overlap."""


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
        nms_type: per task one of NMS_TYPES; None: "circle" for all.
        nms_limit: boxes per task after suppression.
        min_radius: per task, see circle_nms (a squared distance).
        nms_threshold: with "rotate" a box is dropped if its intersection over union, seen from above, with a
            better one is above this.
        nms_scale: per task and class, by what boxes count as longer and wider than they are for that: what is
            small may be found twice without any overlap. None: they count as they are.
        pre_max_size: with "rotate" so many boxes of a task take part.

    Raises:
        ConfigError: not one type, radius and scale for each task, or another type.
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
        nms_type: Sequence[str] | None = None,
        nms_limit: int = 83,
        min_radius: Sequence[float] = (4, 12, 10, 1, 0.85, 0.175),
        nms_threshold: float = 0.2,
        nms_scale: Sequence[Sequence[float]] | None = None,
        pre_max_size: int = 1000,
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
        self.nms_type = tuple(["circle"] * len(self.tasks) if nms_type is None else nms_type)
        self.nms_threshold = nms_threshold
        self.nms_scale = tuple(map(tuple, nms_scale or [[1.0] * len(task) for task in self.tasks]))
        self.pre_max_size = pre_max_size
        self._check_suppression()
        self.shared_conv = ConvModule(in_channels, share_channels, 3, padding=1)
        self.task_heads = nn.ModuleList(
            SeparateHead(share_channels, {**REGRESSIONS, "heatmap": (len(task), 2)}) for task in self.tasks
        )

    def _check_suppression(self) -> None:
        sizes = [len(task) for task in self.tasks]
        if len(self.nms_type) != len(sizes) or not set(self.nms_type) <= set(NMS_TYPES):
            expected = f"for each of {len(sizes)} tasks one of {NMS_TYPES}"
            raise ConfigError(describe("nms_type", expected=expected, found=self.nms_type))
        if len(self.min_radius) < len(sizes):
            raise ConfigError(describe("min_radius", expected=f"{len(sizes)} numbers", found=self.min_radius))
        if [len(scales) for scales in self.nms_scale] != sizes:
            expected = f"one number for each class of the tasks {self.tasks}"
            raise ConfigError(describe("nms_scale", expected=expected, found=self.nms_scale))

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

        z is the middle of the box here. Labels count within the task. Boxes and scores are float32 at least:
        half a cell beyond the 128th is nothing that bfloat16 has.
        """
        prediction = {
            name: values.to(torch.promote_types(values.dtype, torch.float32))
            for name, values in prediction.items()
        }
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
                keep = self.suppress(task, DecodedBoxes(boxes, scores, labels))
                boxes = boxes[keep]
                boxes = torch.cat((boxes[:, :2], boxes[:, 2:3] - boxes[:, 5:6] / 2, boxes[:, 3:]), dim=1)
                samples[sample].append(DecodedBoxes(boxes, scores[keep], labels[keep] + first_label))
            first_label += len(self.tasks[task])
        return [DecodedBoxes(*(torch.cat(parts) for parts in zip(*found, strict=True))) for found in samples]

    def suppress(self, task: int, found: DecodedBoxes) -> Tensor:
        """Return the indices of the boxes of a task that are too close to no better one, best first.

        The classes of a task compete. Boxes are as the released checkpoints have them (width, length, height;
        a yaw that turns the other way, see kestrel.nn.boxes).
        """
        boxes, scores, labels = found
        if self.nms_type[task] == "circle":
            return circle_nms(boxes[:, :2], scores, self.min_radius[task], self.nms_limit)
        best = scores.argsort(descending=True, stable=True)[: self.pre_max_size]
        scale = boxes.new_tensor(self.nms_scale[task])[labels]
        # Along minus the yaw, which is the standard one and a quarter turn, lies the width, the first size.
        seen = torch.cat((boxes[:, :2], boxes[:, 3:5] * scale[:, None], -boxes[:, 6:7]), dim=1)
        return best[rotated_nms(seen[best], scores[best], self.nms_threshold, limit=self.nms_limit)]
