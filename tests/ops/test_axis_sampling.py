# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Sampling grids at places along both axes is bilinear interpolation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kestrel.errors import InputError
from kestrel.nn.axis_sampler import AxisSampler
from kestrel.ops import sample_axes
from kestrel.ops.axis_sampling import sample_axes_reference
from kestrel.ops.backend import NATIVE
from tests.ops.levels import needs_kernels, on_every_level

EXTENT, SIZES = 6.0, (12, 31)
PLACES = torch.linspace(-5.9, 5.9, 20)  # the outermost lie outside of the middles of all cells


def grids(channels: tuple[int, ...] = (20, 7), batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(batch, count, size, size, generator=generator).contiguous(
            memory_format=torch.channels_last
        )
        for count, size in zip(channels, SIZES, strict=True)
    ]


def sampler(*, native: bool) -> AxisSampler:
    made = AxisSampler(PLACES, EXTENT, SIZES)
    if native:
        made.sample = sample_axes
    return made


def interpolated(grid: Tensor) -> Tensor:
    """Return what torch's own bilinear sampling gives."""
    rows, columns = torch.meshgrid(PLACES / EXTENT, PLACES / EXTENT, indexing="ij")
    where = torch.stack((columns, rows), -1).expand(len(grid), -1, -1, -1)
    return F.grid_sample(grid, where, mode="bilinear", padding_mode="border", align_corners=False)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("channels", [(20, 7), (16, 32), (1, 70)])
def test_equals_bilinear_interpolation(native: bool, channels: tuple[int, int]) -> None:
    given = grids(channels)
    wanted = torch.cat([interpolated(grid) for grid in given], 1)
    for form in (given, [grid.contiguous() for grid in given]):
        found = sampler(native=native)(*form)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last) or not native


def test_bfloat16_is_rounded_once() -> None:
    given = [grid.bfloat16() for grid in grids()]
    found = sampler(native=NATIVE is not None)(*given)
    wanted = sampler(native=False)(*(grid.float() for grid in given))
    assert found.dtype == torch.bfloat16
    tolerance = 2**-8 if NATIVE is not None else 2**-4  # in torch the shares are rounded too
    torch.testing.assert_close(found.float(), wanted, rtol=tolerance, atol=tolerance)


def test_gradients_go_through_the_torch_form() -> None:
    given = [grid.double().requires_grad_() for grid in grids((2, 1), batch=1)]
    plain = sampler(native=False).double()
    assert torch.autograd.gradcheck(plain, given)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_levels_and_thread_counts_agree(dtype: torch.dtype) -> None:
    given = [grid.to(dtype) for grid in grids()]
    wanted = sampler(native=False)(*(grid.float() for grid in given)).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    for found in on_every_level(lambda: sampler(native=True)(*given)).values():
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=1e-5)


def test_the_places_leave_no_key_in_the_state() -> None:
    assert not sampler(native=False).state_dict()


def test_grids_that_do_not_fit_are_refused() -> None:
    first, second = grids()
    for wrong in ([first, second[:1]], [first, second.double()], [first[:, :, :5], second]):
        with pytest.raises(InputError, match="grids to sample"):
            sampler(native=True)(*wrong)
    for dtype in (torch.float32, torch.float64):  # of which torch computes the second
        small = second[:, :, :12, :12].to(dtype)
        with pytest.raises(InputError, match=r"lines of a grid.*0 to 10"):
            sampler(native=True)(small, small)


def test_the_reference_keeps_the_type() -> None:
    made = sampler(native=False)
    given = [grid.bfloat16() for grid in grids()]
    found = sample_axes_reference(given, [made.lower0, made.lower1], [made.share0, made.share1])
    assert found.dtype == torch.bfloat16


def test_places_that_the_compiled_code_would_misread_are_refused() -> None:
    grid = torch.randn(1, 3, 5, 5)
    lower, share = torch.tensor([0, 3], dtype=torch.int32), torch.tensor([0.25, 0.5])
    assert sample_axes([grid], [lower], [share]).shape == (1, 3, 2, 2)
    for wrong in (
        ([lower.long()], [share]),
        ([lower], [share.double()]),
        ([lower], [share[:1]]),
        ([lower[:0]], [share[:0]]),
        ([], []),
    ):
        with pytest.raises(InputError, match="lower and share"):
            sample_axes([grid], *wrong)
    with pytest.raises(InputError, match="lower and share"):
        sample_axes([grid, grid], [lower, lower[:1]], [share, share[:1]])
    with pytest.raises(InputError, match="grids to sample"):
        sample_axes([grid[0]], [lower], [share])
