# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Temporal shift: frames exchange a part of their channels (TSM, Lin et al. 2019, section 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kestrel.errors import InputError, describe
from kestrel.ops.backend import triton_for
from kestrel.ops.operator import differentiable


def temporal_shift(x: Tensor, n_segment: int, fold_div: int = 8, *, bidirectional: bool = True) -> Tensor:
    """Shift channels of the frames of each clip along time.

    With fold = C // fold_div, bidirectional: channels [0, fold) come from frame t + 1 and [fold, 2 fold) from
    t - 1 (offline TSM, figure 1b). Unidirectional: channels [0, fold) come from t - 1 (online TSM, figure
    1c). What has no source is zero.

    Args:
        x: (N * n_segment, C, ...) features; the frames of one clip are adjacent.
        n_segment: frames per clip.
        fold_div: inverse of the fraction of channels that moves in one direction.
        bidirectional: False for the shift that a stream can do.

    Returns:
        A new tensor of the shape of ``x``.

    Raises:
        InputError: the number of frames is not a multiple of ``n_segment``, or no channels that can move.
    """
    _check_channels(x, fold_div)
    if n_segment < 1 or x.shape[0] % n_segment:
        raise InputError(
            describe("frames of a temporal shift", expected=f"a multiple of {n_segment}", found=x.shape[0])
        )
    first, second = (1, -1) if bidirectional else (-1, 0)
    shifted: Tensor = _temporal_shift(x, n_segment, x.shape[1] // fold_div, first, second)
    return shifted


def _check_channels(x: Tensor, fold_div: int) -> None:
    if x.ndim < 2 or not 1 <= fold_div <= x.shape[1]:
        found = f"{tuple(x.shape)}, fold_div {fold_div}"
        expected = "(N, C >= fold_div, ...), fold_div >= 1"
        raise InputError(describe("temporal shift", expected=expected, found=found))


@differentiable("temporal_shift")
def _temporal_shift(x: Tensor, n_segment: int, fold: int, first: int, second: int) -> Tensor:
    """Take channels [0, fold) from frame t + first, [fold, 2 fold) from t + second; steps of -1, 0 and 1."""
    return temporal_shift_reference(x, n_segment, fold, first, second)


@_temporal_shift.register_cuda
def temporal_shift_cuda(x: Tensor, n_segment: int, fold: int, first: int, second: int) -> Tensor:
    """Compute the operator on a GPU: in Triton where it is installed."""
    if not triton_for(x):
        return temporal_shift_reference(x, n_segment, fold, first, second)
    from kestrel.ops.gpu import temporal_shift as gpu

    return gpu.temporal_shift(x, n_segment, fold, first, second)


@_temporal_shift.register_fake
def _(x: Tensor, n_segment: int, fold: int, first: int, second: int) -> Tensor:
    return torch.empty_like(x)


def _setup_context(ctx: Any, inputs: tuple[Tensor, int, int, int, int], output: Tensor) -> None:
    ctx.arguments = inputs[1:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The shift is a partial permutation: its gradient flows back along the same paths."""
    n_segment, fold, first, second = ctx.arguments
    return _temporal_shift(grad, n_segment, fold, -first, -second), None, None, None, None


_temporal_shift.register_autograd(_backward, setup_context=_setup_context)


def temporal_shift_reference(x: Tensor, n_segment: int, fold: int, first: int, second: int) -> Tensor:
    """Compute the operator in torch."""
    # Not -1 clips: where there are no elements, torch could not say how many these are.
    clips = x.reshape(x.shape[0] // n_segment, n_segment, *x.shape[1:])
    shifted = clips.clone()
    for channels, step in ((slice(0, fold), first), (slice(fold, 2 * fold), second)):
        if step > 0:
            shifted[:, :-1, channels] = clips[:, 1:, channels]
            shifted[:, -1:, channels] = 0
        elif step < 0:
            shifted[:, 1:, channels] = clips[:, :-1, channels]
            shifted[:, :1, channels] = 0
    return shifted.flatten(0, 1)


def temporal_shift_step(x: Tensor, state: Tensor | None, fold_div: int = 8) -> tuple[Tensor, Tensor]:
    """Do the unidirectional shift for one new frame of a stream.

    Args:
        x: (B, C, ...) features of the newest frame.
        state: (B, C // fold_div, ...) what the previous step returned, in any floating type, or None at the
            start (zeros).
        fold_div: inverse of the fraction of channels that moves.

    Returns:
        The shifted features and the state for the next frame: the first channels of ``x`` before the shift.

    Raises:
        InputError: a state of another shape, or no channels that can move.
    """
    _check_channels(x, fold_div)
    fold = x.shape[1] // fold_div
    kept = x[:, :fold]
    if state is not None and state.shape != kept.shape:
        expected, found = tuple(kept.shape), tuple(state.shape)
        raise InputError(describe("state of a temporal shift", expected=expected, found=found))
    past = torch.zeros_like(kept) if state is None else state.to(x.dtype)
    return torch.cat((past, x[:, fold:]), dim=1), kept
