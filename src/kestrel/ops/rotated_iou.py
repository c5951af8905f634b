# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Overlap of turned rectangles in the plane, as boxes are seen from above.

No polygon is clipped. In the frame of one rectangle, |x| <= a and |y| <= b, the field (0, clamp(x, -a, a)),
zero where |y| > b, has a curl of one inside and of zero outside. By Green's theorem its integral along the
border of the other rectangle is the area they share: four edges, in closed form, and no case for edges that
touch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kestrel.errors import InputError, describe
from kestrel.ops.backend import NATIVE, call, triton_installed
from kestrel.ops.operator import operator


def rotated_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the intersection over union of every pair of rectangles.

    Computed in double precision. Gradients flow where an input asks for them.

    Args:
        boxes: (N, 5) x, y of the middle, length, width [m], yaw of the length [rad]; sizes are not negative.
        others: (M, 5), the same.

    Returns:
        (N, M) in 0..1, in the dtype of the boxes; 0 where neither of a pair has an area.

    Raises:
        InputError: inputs of another shape or dtype.
    """
    for given in (boxes, others):
        if given.ndim != 2 or given.shape[1] != 5 or not given.is_floating_point():
            found = f"{given.dtype} of shape {tuple(given.shape)}"
            raise InputError(describe("rectangles", expected="floating point (N, 5)", found=found))
    if torch.is_grad_enabled() and (boxes.requires_grad or others.requires_grad):
        return rotated_iou_reference(boxes, others)
    result: Tensor = _rotated_iou(boxes, others)
    return result


@operator("rotated_iou")
def _rotated_iou(boxes: Tensor, others: Tensor) -> Tensor:
    if NATIVE is None or boxes.device.type != "cpu":
        return rotated_iou_reference(boxes, others)
    out = torch.empty(len(boxes), len(others), dtype=torch.float64, device="cpu")
    threads = torch.get_num_threads()
    call(NATIVE.rotated_iou, boxes.double(), len(boxes), others.double(), len(others), out, threads)
    return out.to(boxes.dtype)


@_rotated_iou.register_cuda
def rotated_iou_cuda(boxes: Tensor, others: Tensor) -> Tensor:
    """Compute the operator on a GPU: in Triton where it is installed."""
    if not triton_installed():
        return rotated_iou_reference(boxes, others)
    from kestrel.ops.gpu import rotated_iou as gpu

    return gpu.rotated_iou(boxes, others)


@_rotated_iou.register_fake
def _(boxes: Tensor, others: Tensor) -> Tensor:
    return boxes.new_empty(boxes.shape[0], others.shape[0])


def rotated_iou_reference(boxes: Tensor, others: Tensor) -> Tensor:
    """Compute the operator in torch."""
    one, other = boxes.double()[:, None], others.double()[None]
    half_length, half_width = one[..., 2] / 2, one[..., 3] / 2
    x, y = _corners(one, other)
    following = torch.tensor([1, 2, 3, 0], device=boxes.device)
    parts = _along(x, y, x[following], y[following], half_length, half_width)
    areas = one[..., 2] * one[..., 3], other[..., 2] * other[..., 3]
    shared = parts.sum(0).clamp(min=0)
    union = areas[0] + areas[1] - shared
    return torch.where(union > 0, shared / torch.where(union > 0, union, 1), 0 * shared).to(boxes.dtype)


def _corners(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and y of the corners of ``other`` in the frame of ``one``, (4, N, M), counter-clockwise."""
    cos, sin = one[..., 4].cos(), one[..., 4].sin()
    other_cos, other_sin = other[..., 4].cos(), other[..., 4].sin()
    dx, dy = (other[..., :2] - one[..., :2]).unbind(-1)
    turn_cos, turn_sin = cos * other_cos + sin * other_sin, cos * other_sin - sin * other_cos
    along = torch.tensor([0.5, -0.5, -0.5, 0.5], dtype=one.dtype, device=one.device).view(4, 1, 1)
    across = along.roll(-1, 0)
    length, width = along * other[..., 2], -across * other[..., 3]
    x = cos * dx + sin * dy + turn_cos * length - turn_sin * width
    y = cos * dy - sin * dx + turn_sin * length + turn_cos * width
    return x, y


def _along(x0: Tensor, y0: Tensor, x1: Tensor, y1: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Integrate clamp(x, -a, a) dy over the part of each edge with |y| <= b."""
    low, high = y0.clamp(-b, b), y1.clamp(-b, b)
    # All of an edge that does not rise is meant: what it is worth decides how a turn changes the area.
    flat = y1 == y0
    rise = torch.where(flat, 1, y1 - y0)
    start = x0 + (x1 - x0) * torch.where(flat, 0, (low - y0) / rise)
    end = x0 + (x1 - x0) * torch.where(flat, 1, (high - y0) / rise)
    left, right = start.clamp(-a, a), end.clamp(-a, a)
    # Constant up to the border, linear inside, constant behind it: the mean along the edge.
    level = left == right
    share = torch.where(
        level, 0.5, ((left - start) + (right - left) / 2) / torch.where(level, 1, end - start)
    )
    mean = right + (left - right) * share
    return (high - low) * mean
