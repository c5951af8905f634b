# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from kestrel.errors import InputError
from kestrel.models.semantickitti import quantize
from kestrel.nn.sparse import SparseTensor
from kestrel.nn.sparse_points import PointTensor, PointTransform
from kestrel.ops import devoxelize, point_rows, torchsparse_offsets, trilinear_neighbours


def sweep(channels: int) -> tuple[PointTensor, SparseTensor]:
    """Points with features, and the voxels of a grid twice as coarse as theirs."""
    generator = torch.Generator().manual_seed(3)
    positions = torch.cat((torch.zeros(90, 1), 9 * torch.rand(90, 3, generator=generator) - 3), 1)
    points = PointTensor(torch.randn(90, 5, generator=generator), positions)
    coarse = points.voxelized().coordinates.downsample(torchsparse_offsets(2), (2, 2, 2))[0]
    return points, SparseTensor(torch.randn(len(coarse), channels, generator=generator), coarse)


@torch.no_grad()
def test_a_folded_point_transform_follows_its_weights_and_its_norm() -> None:
    torch.manual_seed(0)
    layer, (points, x) = PointTransform(5, 16).eval(), sweep(16)
    read = devoxelize(x.features, *trilinear_neighbours(points.positions, x.coordinates))
    for changed in (None, layer[0].weight, layer[0].bias, layer[1].running_var, layer[1].weight):
        if changed is not None:
            changed.mul_(3.0)
        expected = torch.relu(layer[1](layer[0](points.features))) + read
        torch.testing.assert_close(layer(x, points).features, expected)


@pytest.mark.parametrize("channels", [3, 16, 61, 96])
def test_a_point_transform_gives_the_same_with_and_without_gradients(channels: int) -> None:
    torch.manual_seed(0)
    layer, (points, x) = PointTransform(5, channels).eval(), sweep(channels)
    with torch.no_grad():
        fused = layer(x, points).features
    torch.testing.assert_close(fused, layer(x, points).features.detach())


def test_rows_and_corners_through_a_finer_grid_are_those_of_a_search() -> None:
    points, x = sweep(4)
    coarser = x.coordinates.downsample(torchsparse_offsets(2), (2, 2, 2))[0]
    for voxels in (x.coordinates, coarser):
        assert torch.equal(points.rows(voxels), point_rows(points.positions, voxels))
        for ours, searched in zip(
            points.trilinear(voxels), trilinear_neighbours(points.positions, voxels), strict=True
        ):
            assert torch.equal(ours, searched)


def test_points_that_are_no_numbers_have_no_voxels() -> None:
    points, _ = sweep(4)
    points.positions[7, 2] = torch.nan
    for make in (points.voxelized, lambda: quantize(points.positions)):
        with pytest.raises(InputError, match="voxel indices"):
            make()
