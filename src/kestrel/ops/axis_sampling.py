# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Bilinear values of square grids at places that are the same along both axes, as of a map of other cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kestrel.errors import InputError, describe
from kestrel.ops.backend import call, native_for, triton_for
from kestrel.ops.operator import operator


def sample_axes(grids: Sequence[Tensor], lower: Sequence[Tensor], share: Sequence[Tensor]) -> Tensor:
    """Sample grids at one set of places; no gradients.

    Args:
        grids: each (B, C, S, S) with its own C and S; fastest in channels_last.
        lower: for each grid the (N,) int32 line at or before each place, 0 to S - 2.
        share: for each grid the (N,) float32 share of the line after that.

    Returns:
        (B, sum of C, N, N) in channels_last: the samples of all grids, one after the other.

    Raises:
        InputError: grids that are not square, or of different batches or types; places of another shape or
            type, or beyond a grid.
    """
    kinds = {(len(grid), grid.dtype, grid.ndim == 4 and grid.shape[2] == grid.shape[3]) for grid in grids}
    if len(kinds) != 1 or not next(iter(kinds))[2]:
        found = [(tuple(grid.shape), grid.dtype) for grid in grids]
        raise InputError(
            describe("grids to sample", expected="square ones of one batch and type", found=found)
        )
    places = [(tuple(each.shape), each.dtype) for each in (*lower, *share)]
    count = lower[0].numel() if len(lower) else 0
    known = [((count,), torch.int32)] * len(grids) + [((count,), torch.float32)] * len(grids)
    if places != known or not count:
        expected = f"int32 and float32 (N >= 1,) for each of {len(grids)} grids"
        raise InputError(describe("lower and share", expected=expected, found=places))
    sampled: Tensor = torch.ops.kestrel.sample_axes(grids, lower, share)
    return sampled


@operator("sample_axes")
def _sample_axes(grids: Sequence[Tensor], lower: Sequence[Tensor], share: Sequence[Tensor]) -> Tensor:
    _check_lines(grids, lower)
    native = native_for(*grids)
    if native is None:
        return sample_axes_reference(grids, lower, share).contiguous(memory_format=torch.channels_last)
    batch, places, channels = len(grids[0]), len(lower[0]), sum(grid.shape[1] for grid in grids)
    out = grids[0].new_empty(batch, places, places, channels)
    first = 0
    for grid, below, part in zip(grids, lower, share, strict=True):
        call(
            native.sample_axes,
            *(grid.permute(0, 2, 3, 1), below, part, out.data_ptr() + first * out.element_size()),
            *(batch, grid.shape[2], grid.shape[1], places, channels),
            *(out.dtype == torch.bfloat16, torch.get_num_threads()),
        )
        first += grid.shape[1]
    return out.permute(0, 3, 1, 2)


@_sample_axes.register_cuda
def sample_axes_cuda(grids: Sequence[Tensor], lower: Sequence[Tensor], share: Sequence[Tensor]) -> Tensor:
    """Compute the operator on a GPU: in Triton where it is installed."""
    _check_lines(grids, lower)
    if not triton_for(*grids):
        return sample_axes_reference(grids, lower, share).contiguous(memory_format=torch.channels_last)
    from kestrel.ops.gpu import axis_sampling as gpu

    return gpu.sample_axes(grids, lower, share)


@_sample_axes.register_fake
def _(grids: Sequence[Tensor], lower: Sequence[Tensor], share: Sequence[Tensor]) -> Tensor:
    places, channels = lower[0].shape[0], sum(grid.shape[1] for grid in grids)
    return grids[0].new_empty(grids[0].shape[0], places, places, channels).permute(0, 3, 1, 2)


def _check_lines(grids: Sequence[Tensor], lower: Sequence[Tensor]) -> None:
    for grid, below in zip(grids, lower, strict=True):
        if not 0 <= int(below.min()) <= int(below.max()) <= grid.shape[2] - 2:
            found = f"{int(below.min())} to {int(below.max())}"
            raise InputError(describe("lines of a grid", expected=f"0 to {grid.shape[2] - 2}", found=found))


def sample_axes_reference(
    grids: Sequence[Tensor], lower: Sequence[Tensor], share: Sequence[Tensor]
) -> Tensor:
    """Do the same in torch, with gradients; fastest in channels_last, where whole cells are copied."""
    sampled = []
    for grid, below, part in zip(grids, lower, share, strict=True):
        part = part.to(grid.dtype)
        rows = _between(grid.permute(0, 2, 3, 1), 1, below, part[:, None, None])
        sampled.append(_between(rows, 2, below, part[:, None]).permute(0, 3, 1, 2))
    return torch.cat(sampled, 1)


def _between(x: Tensor, axis: int, lower: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(x.index_select(axis, lower), x.index_select(axis, lower + 1), share)
