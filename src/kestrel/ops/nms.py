# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression from above: of boxes that are too close, the best stays."""

from __future__ import annotations

import torch
from torch import Tensor

from kestrel.errors import InputError, describe
from kestrel.ops.backend import NATIVE, call, triton_installed
from kestrel.ops.operator import operator
from kestrel.ops.rotated_iou import rotated_iou, rotated_iou_reference


def rotated_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    limit: int | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """Keep, best first, every box that overlaps no better kept one.

    Args:
        boxes: (K, 5) x, y, length, width [m], yaw [rad].
        scores: (K,); one that is NaN counts as the lowest.
        iou_threshold: a box is dropped if its intersection over union with a kept one is above this.
        limit: number of boxes to keep at most.
        labels: (K,) integers; only boxes of one label compete. None: all do.

    Returns:
        (M,) int64 indices, best first; of equal scores the first.

    Raises:
        InputError: numbers of boxes, scores and labels that differ, or a negative limit.
    """
    order, labels = _ranking(boxes, 5, scores, labels)
    kept: Tensor = _rotated_nms(boxes[order], labels[order], iou_threshold, _limit(limit, order))
    return order[kept]


def circle_nms(
    centers: Tensor,
    scores: Tensor,
    min_distance_squared: float | Tensor,
    limit: int | None = None,
    *,
    labels: Tensor | None = None,
) -> Tensor:
    """Keep, best first, every box that is near no better kept one (CenterPoint, Yin et al. 2021, section 4).

    Args:
        centers: (K, 2) metres.
        scores: (K,); one that is NaN counts as the lowest.
        min_distance_squared: a box is dropped if a better kept one is at most this far, square metres: one
            number for all, or (K,), of which that of the kept box counts (the released configurations call
            it "min_radius" but compare it with the squared distance)
        limit: number of boxes to keep at most.
        labels: (K,) integers; only boxes of one label compete. None: all do.

    Returns:
        (M,) int64 indices, best first; of equal scores the first.

    Raises:
        InputError: numbers of boxes, scores, labels and distances that differ, or a negative limit.
    """
    order, labels = _ranking(centers, 2, scores, labels)
    squared = torch.as_tensor(min_distance_squared, dtype=torch.float64, device=centers.device)
    if squared.ndim and tuple(squared.shape) != (len(order),):
        expected = f"one number or ({len(order)},)"
        raise InputError(describe("min_distance_squared", expected=expected, found=tuple(squared.shape)))
    squared = squared.expand(len(order))[order]
    kept: Tensor = _circle_nms(centers[order], labels[order], squared, _limit(limit, order))
    return order[kept]


def _ranking(boxes: Tensor, columns: int, scores: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the order of the scores, and labels in the order of the boxes."""
    labels = torch.zeros_like(scores, dtype=torch.int64) if labels is None else labels.long()
    count = len(boxes)
    if tuple(boxes.shape) != (count, columns) or not tuple(scores.shape) == tuple(labels.shape) == (count,):
        expected = f"(K, {columns}), (K,), (K,)"
        found = f"{tuple(boxes.shape)}, {tuple(scores.shape)}, {tuple(labels.shape)}"
        raise InputError(describe("boxes, scores and labels", expected=expected, found=found))
    known = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return known.argsort(descending=True, stable=True), labels


def _limit(limit: int | None, order: Tensor) -> int:
    if limit is not None and limit < 0:
        raise InputError(describe("limit", expected="at least 0", found=limit))
    return len(order) if limit is None else limit


@operator("rotated_nms")
def _rotated_nms(boxes: Tensor, labels: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """Return the ranks to keep of boxes that come best first."""
    if NATIVE is None or boxes.device.type != "cpu":
        return rotated_nms_reference(boxes, labels, iou_threshold, limit)
    kept = torch.empty(len(boxes), dtype=torch.int64, device="cpu")
    found = call(NATIVE.rotated_nms, boxes.double(), labels, len(boxes), iou_threshold, limit, kept)
    return kept[:found].clone()


@_rotated_nms.register_cuda
def rotated_nms_cuda(boxes: Tensor, labels: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """Compute the operator on a GPU: in Triton where it is installed."""
    wide = boxes.double()
    return _chosen_there(rotated_iou(wide, wide) > iou_threshold, labels, limit)


@_rotated_nms.register_fake
def _(boxes: Tensor, labels: Tensor, iou_threshold: float, limit: int) -> Tensor:
    return labels.new_empty(torch.library.get_ctx().new_dynamic_size())


@operator("circle_nms")
def _circle_nms(centers: Tensor, labels: Tensor, squared: Tensor, limit: int) -> Tensor:
    """Return the ranks to keep of boxes that come best first."""
    if NATIVE is None or centers.device.type != "cpu":
        return circle_nms_reference(centers, labels, squared, limit)
    kept = torch.empty(len(centers), dtype=torch.int64, device="cpu")
    found = call(NATIVE.circle_nms, centers.double(), labels, squared, len(centers), limit, kept)
    return kept[:found].clone()


@_circle_nms.register_cuda
def circle_nms_cuda(centers: Tensor, labels: Tensor, squared: Tensor, limit: int) -> Tensor:
    """Compute the operator on a GPU: in Triton where it is installed."""
    return _chosen_there(_within(centers, squared), labels, limit)


@_circle_nms.register_fake
def _(centers: Tensor, labels: Tensor, squared: Tensor, limit: int) -> Tensor:
    return labels.new_empty(torch.library.get_ctx().new_dynamic_size())


def rotated_nms_reference(boxes: Tensor, labels: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """Compute the operator in torch."""
    wide = boxes.double()  # the overlap has the type of the boxes: of integers it would be 0 or 1
    return _greedy(rotated_iou_reference(wide, wide) > iou_threshold, labels, limit)


def circle_nms_reference(centers: Tensor, labels: Tensor, squared: Tensor, limit: int) -> Tensor:
    """Compute the operator in torch."""
    return _greedy(_within(centers, squared), labels, limit)


def _within(centers: Tensor, squared: Tensor) -> Tensor:
    """Return which boxes are within the distance of which (first)."""
    wide = centers.double()
    return (wide[:, None] - wide[None]).square().sum(dim=-1) <= squared[:, None]


def _chosen_there(close: Tensor, labels: Tensor, limit: int) -> Tensor:
    """Go down the ranking on the device of the boxes, or on the CPU without Triton."""
    if not triton_installed():
        return _greedy(close, labels, limit)
    from kestrel.ops.gpu import nms as gpu

    return gpu.greedy(close, labels, limit)


def _greedy(close: Tensor, labels: Tensor, limit: int) -> Tensor:
    """Go down the ranking on the CPU: every step depends on the one before."""
    drops = (close & (labels[:, None] == labels[None])).cpu()
    alive = torch.ones(len(drops), dtype=torch.bool)
    kept: list[int] = []
    for rank, dropped in enumerate(drops):
        if len(kept) == limit:
            break
        if alive[rank]:
            kept.append(rank)
            alive &= ~dropped
    return torch.tensor(kept, dtype=torch.int64, device=labels.device)
