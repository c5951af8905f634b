# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Temporal shift: frames exchange a part of their channels (TSM, Lin et al. 2019, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from kestrel.errors import InputError, describe


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
        InputError: the number of frames is not a multiple of ``n_segment``.
    """
    if n_segment < 1 or x.shape[0] % n_segment:
        raise InputError(
            describe("frames of a temporal shift", expected=f"a multiple of {n_segment}", found=x.shape[0])
        )
    shifted: Tensor = torch.ops.kestrel.temporal_shift(x, n_segment, x.shape[1] // fold_div, bidirectional)
    return shifted


@torch.library.custom_op("kestrel::temporal_shift", mutates_args=())
def _temporal_shift(x: Tensor, n_segment: int, fold: int, bidirectional: bool) -> Tensor:
    clips = x.reshape(-1, n_segment, *x.shape[1:])
    shifted = clips.clone()
    backward, forward = _moving_channels(fold, bidirectional)
    shifted[:, :-1, backward] = clips[:, 1:, backward]
    shifted[:, -1:, backward] = 0
    shifted[:, 1:, forward] = clips[:, :-1, forward]
    shifted[:, :1, forward] = 0
    return shifted.flatten(0, 1)


@_temporal_shift.register_fake
def _(x: Tensor, n_segment: int, fold: int, bidirectional: bool) -> Tensor:
    return torch.empty_like(x)


def _setup_context(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, int, int, bool], output: Tensor
) -> None:
    _, ctx.n_segment, ctx.fold, ctx.bidirectional = inputs  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None, None]:
    """The shift is a partial permutation: its gradient flows back along the same paths."""
    clips = grad.reshape(-1, ctx.n_segment, *grad.shape[1:])  # type: ignore[attr-defined]
    out = clips.clone()
    backward, forward = _moving_channels(ctx.fold, ctx.bidirectional)  # type: ignore[attr-defined]
    out[:, 1:, backward] = clips[:, :-1, backward]
    out[:, :1, backward] = 0
    out[:, :-1, forward] = clips[:, 1:, forward]
    out[:, -1:, forward] = 0
    return out.flatten(0, 1), None, None, None


_temporal_shift.register_autograd(_backward, setup_context=_setup_context)


def _moving_channels(fold: int, bidirectional: bool) -> tuple[slice, slice]:
    """Return the channels that move against time and those that move with it."""
    if bidirectional:
        return slice(0, fold), slice(fold, 2 * fold)
    return slice(0, 0), slice(0, fold)


def temporal_shift_step(x: Tensor, state: Tensor | None, fold_div: int = 8) -> tuple[Tensor, Tensor]:
    """Do the unidirectional shift for one new frame of a stream.

    Args:
        x: (B, C, ...) features of the newest frame.
        state: (B, C // fold_div, ...) what the previous step returned, or None at the start (zeros).
        fold_div: inverse of the fraction of channels that moves.

    Returns:
        The shifted features and the state for the next frame: the first channels of ``x`` before the shift.
    """
    fold = x.shape[1] // fold_div
    kept = x[:, :fold]
    past = torch.zeros_like(kept) if state is None else state
    return torch.cat((past, x[:, fold:]), dim=1), kept
