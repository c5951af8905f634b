# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from kestrel.ops import torchsparse_offsets
from kestrel.ops.point_voxel import (
    devoxelize_gradient_reference,
    devoxelize_reference,
    scatter_mean_reference,
    trilinear_reference,
)
from tests.ops.test_point_voxel import odd_gradient, odd_reading, random_points
from tests.ops.voxels import random_voxels

DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 8e-3)]


def test_neighbours_and_their_weights_equal_the_reference(device: str) -> None:
    from kestrel.ops.gpu import point_voxel as gpu

    voxels = random_voxels(200)
    coarse = voxels.downsample(torchsparse_offsets(2), (2, 2, 2))[0]
    points = random_points(250).to(device) - torch.tensor((0, 1, 1, 1.5), device=device)
    points[3, 1:] = 1e9
    points[4, 1:] = -1e9
    for level in (voxels, coarse, random_voxels(0)):
        rows, weights = gpu.trilinear_neighbours(points, level.keys.to(device), level.stride)
        expected = trilinear_reference(points, level.keys.to(device), level.stride)
        assert torch.equal(rows, expected[0])
        torch.testing.assert_close(weights, expected[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 37, 130])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_readings_and_means_and_gradients_equal_the_reference(
    device: str, channels: int, dtype: torch.dtype, tolerance: float
) -> None:
    from kestrel.ops.gpu import point_voxel as gpu

    voxels, points = random_voxels(60, extent=5), random_points(90, 5.0).to(device)
    keys, count = voxels.keys.to(device), len(voxels)
    rows, weights = trilinear_reference(points, keys, voxels.stride)
    owner = rows[:, 0].contiguous()
    close = {"atol": tolerance, "rtol": tolerance}
    features = torch.randn(count, channels, device=device).to(dtype)
    narrow = weights.to(dtype)
    found = gpu.devoxelize(features, rows, narrow)
    expected = devoxelize_reference(features.double(), rows, narrow.double())
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, **close)
    values = torch.randn(len(points), channels, device=device).to(dtype)
    found = gpu.devoxelize_gradient(values, rows, narrow, count)
    expected = devoxelize_gradient_reference(values.double(), rows, narrow.double(), count)
    torch.testing.assert_close(found.double(), expected, **close)
    means, counts = gpu.scatter_mean(values, owner, count)
    expected, counted = scatter_mean_reference(values.double(), owner, count)
    assert means.dtype == counts.dtype == dtype
    assert torch.equal(counts.double(), counted)
    torch.testing.assert_close(means.double(), expected, **close)


def test_missing_rows_have_no_weight_and_weights_of_zero_hide_no_infinity(device: str) -> None:
    from kestrel.ops.gpu import point_voxel as gpu

    values, rows, weights = (each.to(device) for each in odd_reading())
    read = gpu.devoxelize(values, rows, weights)
    assert read[:, 18].nan_to_num(-1).tolist() == [0.5, 0.25, -1, 1]
    gradient = gpu.devoxelize_gradient(odd_gradient().to(device), rows, weights, 4)
    assert gradient[:, 18].nan_to_num(-1, posinf=-2).tolist() == [0, -2, -1, 0]


def test_nothing_in_gives_nothing_out(device: str) -> None:
    from kestrel.ops.gpu import point_voxel as gpu

    rows = torch.full((3, 8), -1, dtype=torch.int32, device=device)
    weights = torch.zeros(3, 8, device=device)
    assert not gpu.devoxelize(torch.zeros(0, 4, device=device), rows, weights).any()
    assert gpu.devoxelize(torch.zeros(5, 4, device=device), rows[:0], weights[:0]).shape == (0, 4)
    assert not gpu.devoxelize_gradient(torch.ones(3, 4, device=device), rows, weights, 2).any()
    means, counts = gpu.scatter_mean(torch.zeros(0, 4, device=device), rows[:0, 0], 2)
    assert means.tolist() == [[0] * 4] * 2
    assert counts.tolist() == [0, 0]
