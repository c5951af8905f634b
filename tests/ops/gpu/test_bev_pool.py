# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kestrel.ops.bev_pool import bev_pool_reference, lift_splat_backward_reference, lift_splat_reference
from kestrel.ops.frustum import index_reference

CELLS = 12
DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)]


def cameras(channels: int, device: str) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Two level cameras, some of whose points fall into other cells than their column does, or into none."""
    generator = torch.Generator().manual_seed(2)
    cells = torch.randint(-1, CELLS, (2, 3, 1, 3), generator=generator).repeat(1, 1, 11, 1)
    moved = torch.rand(cells.shape, generator=generator) < 0.2
    cells = torch.where(moved, torch.randint(-1, CELLS, cells.shape, generator=generator), cells)
    depth = torch.rand(cells.shape, generator=generator).to(device)
    context = torch.randn(2, channels, 11, 3, generator=generator).to(device)
    return depth, context, index_reference(cells.to(device), CELLS)


@pytest.mark.parametrize("channels", [1, 33, 130])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_lift_splat_and_its_gradients_equal_the_reference(
    device: str, channels: int, dtype: torch.dtype, tolerance: float
) -> None:
    from kestrel.ops.gpu import bev_pool as gpu

    depth, context, (row_start, runs, by_column, column_start) = cameras(channels, device)
    depth, context = depth.to(dtype), context.to(dtype).to(memory_format=torch.channels_last)
    wide = depth.double(), context.double()
    close = {"atol": tolerance, "rtol": tolerance}
    found = gpu.lift_splat(depth, context, row_start, runs)
    expected = lift_splat_reference(*wide, row_start, runs)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, **close)
    upstream = torch.randn(found.shape, device=device).to(dtype)
    gradients = gpu.lift_splat_backward(upstream, depth, context, runs, by_column, column_start)
    wanted = lift_splat_backward_reference(upstream.double(), *wide, row_start, runs)
    for one, other in zip(gradients, wanted, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, **close)


def test_no_point_in_range_gives_an_empty_map_and_no_gradient(device: str) -> None:
    from kestrel.ops.gpu import bev_pool as gpu

    depth, context, _ = cameras(3, device)
    nowhere = torch.full(depth.shape, -1, device=device)
    row_start, runs, by_column, column_start = index_reference(nowhere, CELLS)
    assert not gpu.lift_splat(depth, context, row_start, runs).any()
    grad = torch.ones(CELLS, 3, device=device)
    assert not any(
        each.any() for each in gpu.lift_splat_backward(grad, depth, context, runs, by_column, column_start)
    )
    assert not gpu.bev_pool(torch.ones(5, 2, device=device), nowhere.flatten()[:5], CELLS).any()


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_pooling_equals_the_reference(device: str, dtype: torch.dtype, tolerance: float) -> None:
    from kestrel.ops.gpu import bev_pool as gpu

    features = torch.randn(80, 130, device=device).to(dtype)
    cells = torch.randint(-1, CELLS, (80,), device=device)
    expected = bev_pool_reference(features.double(), cells, CELLS)
    found = gpu.bev_pool(features, cells, CELLS)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
