# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Dynamic pillars (Zhou et al., CoRL 2019): every point is used, features are reduced with max."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from kestrel.errors import InputError, describe
from kestrel.ops.backend import call, native_for, triton_for
from kestrel.ops.operator import differentiable, operator

LEAST_POINTS: Final = 2
"""With fewer points inside of the grid the canvas stays empty: of one, training knows no variance."""


@dataclass(frozen=True)
class PillarGrid:
    """Square grid of pillars around the origin.

    extent: half its side [m]. size: side of a pillar [m]. height_range: from which to below which z [m].
    """

    extent: float
    size: float
    height_range: tuple[float, float]

    @property
    def side(self) -> int:
        """Pillars along one side."""
        return round(2 * self.extent / self.size)

    def centers(self, like: Tensor) -> Tensor:
        """Return the middles of the pillars along one axis, (side,) metres."""
        return (torch.arange(self.side, device=like.device) + 0.5).to(like) * self.size - self.extent


def points_in_pillars(points: Tensor, batch: Tensor, grid: PillarGrid) -> tuple[Tensor, Tensor, Tensor]:
    """Return the points inside of the grid, their (n, 2) cells, and the (n,) pillar, by frame, x, y."""
    side, (low, high) = grid.side, grid.height_range
    # Compared before they are integers: what is not a number would be zero on some processors.
    place = torch.floor((points[:, :2] + grid.extent) / grid.size)
    inside = ((place >= 0) & (place < side)).all(1) & (points[:, 2] >= low) & (points[:, 2] < high)
    points, cell, batch = points[inside], place[inside].long(), batch[inside]
    return points, cell, (batch * side + cell[:, 0]) * side + cell[:, 1]


def pillar_features(points: Tensor, batch: Tensor, grid: PillarGrid, frames: int) -> tuple[Tensor, Tensor]:
    """Describe the points inside of the grid.

    Args:
        points: (P, 5) x, y, z [m], intensity, age [s].
        batch: (P,) int64 frame of each.
        grid: which pillars there are.
        frames: number of frames.

    Returns:
        (n, 9) the columns of the points, their x and y from the centre of the pillar and from the mean of its
        points; and the (n,) int64 pillar, counted by frame, x, y.
    """
    points, cell, pillar = points_in_pillars(points, batch, grid)
    places = points[:, :2]
    total = places.new_zeros(frames * grid.side**2, 2).index_add_(0, pillar, places)
    number = torch.bincount(pillar, minlength=len(total)).clamp(min=1)
    mean = (total / number[:, None])[pillar]
    return torch.cat((points, places - grid.centers(points)[cell], places - mean), 1), pillar


def pillar_maximum(
    features: Tensor, pillar: Tensor, weight: Tensor, bias: Tensor, frames: int, side: int
) -> Tensor:
    """Return the maximum of relu(features @ weight + bias) over the points of each pillar.

    Args:
        features: (n, 9) and
        pillar: (n,) of pillar_features.
        weight: (9, C).
        bias: (C,).
        frames: number of frames.
        side: pillars along one side.

    Returns:
        (frames, C, side, side), zero where no point is, with gradients for weight and bias; the features,
        which come from the sensor, get none.
    """
    canvas: Tensor = torch.ops.kestrel.pillar_maximum(features, pillar, weight, bias, frames * side * side)
    return canvas.view(frames, side, side, -1).permute(0, 3, 1, 2)


@differentiable("pillar_maximum")
def _pillar_maximum(features: Tensor, pillar: Tensor, weight: Tensor, bias: Tensor, pillars: int) -> Tensor:
    answers = torch.addmm(bias, features, weight).relu_()
    # Nothing is below zero, so that the empty canvas takes no part in the maximum.
    canvas = answers.new_zeros(pillars, answers.shape[1])
    return canvas.scatter_reduce_(0, pillar[:, None].expand_as(answers), answers, "amax")


@_pillar_maximum.register_fake
def _(features: Tensor, pillar: Tensor, weight: Tensor, bias: Tensor, pillars: int) -> Tensor:
    return features.new_empty(pillars, weight.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4], output)


def _backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor, Tensor, None]:
    """Every point that has the maximum gets the gradient.

    That of torch's scatter_reduce shares it among equals; in training these are rare but for the zeros, which
    have none. What the points answered is computed once more, by the same operation and so to the same bits:
    that takes less time than to keep it.
    """
    features, pillar, weight, bias, canvas = ctx.saved_tensors
    answers = torch.addmm(bias, features, weight)
    best = answers.eq_(canvas.index_select(0, pillar))
    passed = best.mul_(torch.where(canvas > 0, grad, 0).index_select(0, pillar))
    return None, None, features.t() @ passed, passed.sum(0), None


_pillar_maximum.register_autograd(_backward, setup_context=_setup_context)


def pillar_canvas(
    points: Tensor, batch: Tensor, weight: Tensor, bias: Tensor, grid: PillarGrid, frames: int
) -> Tensor:
    """Return the maximum of relu(features @ weight + bias) over the points of each pillar; no gradients.

    Args:
        points: (P, 5) float32 x, y, z [m], intensity, age [s].
        batch: (P,) int64 frame of each, below ``frames``.
        weight: (9, C) of what pillar_features returns.
        bias: (C,).
        grid: which pillars there are.
        frames: number of frames.

    Returns:
        (frames, C, side, side) in channels_last; zero where no point is, and everywhere with fewer than
        LEAST_POINTS of them.

    Raises:
        InputError: other shapes, frames that are not int64, or a frame that does not exist.
    """
    fits = points.ndim == 2 and points.shape[1] == 5 and tuple(batch.shape) == (len(points),)
    if not fits or tuple(weight.shape) != (9, len(bias)) or batch.dtype != torch.int64:
        expected = "points (P, 5), int64 batch (P,), weight (9, C), bias (C,)"
        found = ", ".join(str(tuple(each.shape)) for each in (points, batch, weight, bias))
        found += f" with {batch.dtype} batch"
        raise InputError(describe("points of pillars", expected=expected, found=found))
    lengths = [grid.extent, grid.size, *grid.height_range]
    canvas: Tensor = torch.ops.kestrel.pillar_canvas(points, batch, weight, bias, lengths, frames)
    return canvas


@operator("pillar_canvas")
def _pillar_canvas(
    points: Tensor, batch: Tensor, weight: Tensor, bias: Tensor, lengths: Sequence[float], frames: int
) -> Tensor:
    grid = PillarGrid(lengths[0], lengths[1], (lengths[2], lengths[3]))
    side, channels = grid.side, len(bias)
    native = native_for(points, weight, bias)
    if native is None or points.dtype != torch.float32 or frames * side * side >= 1 << 31:
        return pillar_canvas_reference(points, batch, weight, bias, grid, frames)
    out = points.new_empty(frames, side, side, channels)
    threads = torch.get_num_threads()
    known = call(
        native.pillar_canvas,
        *(points, batch, len(points), weight, bias, grid.centers(points), out),
        *(frames, side, channels, lengths, LEAST_POINTS, threads),
    )
    if not known:
        raise _unknown_frame(batch, frames)
    return out.permute(0, 3, 1, 2)


@_pillar_canvas.register_cuda
def pillar_canvas_cuda(
    points: Tensor, batch: Tensor, weight: Tensor, bias: Tensor, lengths: Sequence[float], frames: int
) -> Tensor:
    """Compute the operator on a GPU: in Triton where it is installed."""
    grid = PillarGrid(lengths[0], lengths[1], (lengths[2], lengths[3]))
    if points.dtype != torch.float32 or not triton_for(points, weight, bias):
        return pillar_canvas_reference(points, batch, weight, bias, grid, frames)
    from kestrel.ops.gpu import pillars as gpu

    _check_frames(batch, frames)
    points, _, pillar = points_in_pillars(points, batch, grid)
    if len(points) < LEAST_POINTS:
        points, pillar = points[:0], pillar[:0]
    return gpu.pillar_canvas(points, pillar, weight, bias, grid.centers(points), frames)


@_pillar_canvas.register_fake
def _(
    points: Tensor, batch: Tensor, weight: Tensor, bias: Tensor, lengths: Sequence[float], frames: int
) -> Tensor:
    side = PillarGrid(lengths[0], lengths[1], (lengths[2], lengths[3])).side
    return points.new_empty(frames, side, side, bias.shape[0]).permute(0, 3, 1, 2)


def pillar_canvas_reference(
    points: Tensor, batch: Tensor, weight: Tensor, bias: Tensor, grid: PillarGrid, frames: int
) -> Tensor:
    """Do the same in torch."""
    _check_frames(batch, frames)
    features, pillar = pillar_features(points, batch, grid, frames)
    if len(features) < LEAST_POINTS:
        features, pillar = features[:0], pillar[:0]
    return pillar_maximum(features, pillar, weight, bias, frames, grid.side)


def _check_frames(batch: Tensor, frames: int) -> None:
    if len(batch) and not 0 <= int(batch.min()) <= int(batch.max()) < frames:
        raise _unknown_frame(batch, frames)


def _unknown_frame(batch: Tensor, frames: int) -> InputError:
    found = f"{int(batch.min())} to {int(batch.max())}"
    return InputError(describe("frame of a point", expected=f"0 to {frames - 1}", found=found))
