# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math

import pytest
import torch

from kestrel.errors import InputError
from kestrel.ops import (
    coordinate_set,
    devoxelize,
    point_rows,
    point_to_voxel,
    torchsparse_offsets,
    trilinear_neighbours,
)
from kestrel.ops.point_voxel import (
    devoxelize_gradient_reference,
    devoxelize_reference,
    scatter_mean_reference,
    trilinear_reference,
)
from tests.ops.levels import needs_kernels, on_every_level
from tests.ops.voxels import random_voxels


def random_points(count: int = 200, extent: float = 8.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randint(0, 2, (count, 1), generator=generator)
    return torch.cat((batch, torch.rand(count, 3, generator=generator) * extent), dim=1)


def test_a_point_belongs_to_the_voxel_around_it_at_any_stride():
    points = random_points() - torch.tensor((0, 4.0, 4.0, 4.0))
    voxels, rows = coordinate_set(points.floor().long())
    assert torch.equal(point_rows(points, voxels).long(), rows)
    coarse = voxels.downsample(torchsparse_offsets(2), (2, 2, 2))[0]
    found = coarse.indices[point_rows(points, coarse).long()]
    assert torch.equal(found[:, 1:], (points[:, 1:] / 2).floor().long())


def test_a_point_outside_of_all_voxels_has_row_minus_one():
    voxels, _ = coordinate_set(torch.tensor([[0, 1, 1, 1]]))
    points = torch.tensor([[0, 1.5, 1.5, 1.5], [1, 1.5, 1.5, 1.5], [0, 1.5, 1.5, 2.5], [0, 1e9, -1e9, 0]])
    assert point_rows(points, voxels).tolist() == [0, -1, -1, -1]


def test_trilinear_reading_of_a_linear_field_is_exact():
    cells = torch.tensor(list(itertools.product([0, 1], range(9), range(9), range(9))))
    voxels, rows = coordinate_set(cells)
    slope = torch.tensor([[2.0], [-3.0], [0.5]])
    field = torch.zeros(len(voxels), 1).index_copy(0, rows, cells[:, 1:].float() @ slope)
    points = random_points()
    read = devoxelize(field, *trilinear_neighbours(points, voxels))
    torch.testing.assert_close(read, points[:, 1:] @ slope, atol=1e-4, rtol=1e-4)


def test_missing_corners_count_nothing_and_the_others_share_their_weight():
    voxels, _ = coordinate_set(torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0]]))
    rows, weights = trilinear_neighbours(torch.tensor([[0, 0.25, 0.5, 0.5], [0, 5.0, 5.0, 5.0]]), voxels)
    assert rows[0].tolist() == [0, -1, -1, -1, 1, -1, -1, -1]
    torch.testing.assert_close(weights[0, [0, 4]], torch.tensor([0.75, 0.25]))
    assert (rows[1] == -1).all()
    assert (weights[1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_mean_of_each_voxel_leaves_out_points_without_one(dtype):
    rows = torch.tensor([0, 2, 2, -1, 2], dtype=torch.int32)
    features = torch.tensor([[1.0], [2.0], [4.0], [100.0], [6.0]], dtype=dtype)
    means = point_to_voxel(features, rows, 4)
    assert means.dtype == dtype
    assert means.squeeze(1).tolist() == [1, 0, 4, 0]


def test_gradients_are_those_of_finite_differences():
    voxels = random_voxels(60, extent=4)
    points = random_points(30, 4.0)
    rows, weights = trilinear_neighbours(points.double(), voxels)
    voxel_features = torch.randn(len(voxels), 3, dtype=torch.float64, requires_grad=True)
    point_features = torch.randn(30, 3, dtype=torch.float64, requires_grad=True)
    owner = point_rows(points, voxels)
    assert torch.autograd.gradcheck(lambda x: devoxelize(x, rows, weights), voxel_features)
    assert torch.autograd.gradcheck(lambda x: point_to_voxel(x, owner, len(voxels)), point_features)


@pytest.mark.parametrize("channels", [1, 16, 37])
def test_single_precision_and_its_gradients_equal_double(channels):
    voxels = random_voxels(200)
    points = random_points(500)
    rows, weights = trilinear_neighbours(points, voxels)
    owner = point_rows(points, voxels)
    wide = torch.randn(len(voxels), channels, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(len(voxels), channels, dtype=torch.float64)
    narrow = wide.detach().float().requires_grad_()

    def there_and_back(features):
        return point_to_voxel(devoxelize(features, rows, weights), owner, len(voxels))

    torch.testing.assert_close(there_and_back(narrow).double(), there_and_back(wide), atol=1e-5, rtol=1e-5)
    expected = torch.autograd.grad(there_and_back(wide), wide, upstream)[0]
    result = torch.autograd.grad(there_and_back(narrow), narrow, upstream.float())[0]
    torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=1e-5)


def test_bfloat16_voxels_are_read_as_in_double_precision():
    voxels = random_voxels(200)
    rows, weights = trilinear_neighbours(random_points(3000), voxels)
    features = torch.randn(len(voxels), 24).bfloat16()
    read = devoxelize(features, rows, weights)
    exact = devoxelize(features.double(), rows, weights)
    assert read.dtype == torch.bfloat16
    assert (read - exact).norm() / exact.norm() < 4e-3


def test_nothing_in_gives_nothing_out():
    voxels = random_voxels(0)
    rows, weights = trilinear_neighbours(random_points(3), voxels)
    assert devoxelize(torch.zeros(0, 4), rows, weights).tolist() == torch.zeros(3, 4).tolist()
    empty = trilinear_neighbours(random_points(0), random_voxels())
    assert devoxelize(torch.zeros(len(random_voxels()), 4), *empty).shape == (0, 4)
    assert point_to_voxel(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int32), 2).shape == (2, 4)


@pytest.mark.parametrize("near", [0, 7, -1, 1000])
def test_where_the_search_for_corners_begins_changes_nothing(near):
    points = random_points()
    voxels, _ = coordinate_set(points.floor().long())
    start = torch.full((len(points),), near, dtype=torch.int32)
    for ours, searched in zip(
        trilinear_neighbours(points, voxels, start), trilinear_neighbours(points, voxels), strict=True
    ):
        assert torch.equal(ours, searched)


def test_a_start_of_the_search_is_asked_for_each_point():
    points = random_points()
    voxels, _ = coordinate_set(points.floor().long())
    with pytest.raises(InputError, match=r"near: expected int32 of shape"):
        trilinear_neighbours(points, voxels, torch.zeros(3, dtype=torch.int32))


@pytest.mark.parametrize("channels", [1, 4, 16, 33])
def test_means_do_not_depend_on_the_number_of_threads(channels):
    generator = torch.Generator().manual_seed(4)
    rows = torch.randint(-1, 50, (900,), dtype=torch.int32, generator=generator)
    features, before = torch.randn(900, channels, generator=generator), torch.get_num_threads()
    expected = scatter_mean_reference(features.double(), rows, 60)
    for threads in (1, 2, 3, 70):
        torch.set_num_threads(threads)
        means = point_to_voxel(features, rows, 60)
        torch.set_num_threads(before)
        torch.testing.assert_close(means, expected[0].float())
        assert torch.equal(means, point_to_voxel(features, rows, 60))


def test_rows_and_points_that_the_compiled_code_would_misread_are_refused():
    points = random_points(20)
    voxels, owner = coordinate_set(points.floor().long())  # rows in 64 bits
    rows, weights = trilinear_neighbours(points, voxels)
    features = torch.randn(len(voxels), 3)
    for wrong in (owner, owner.int()[:5], owner.int()[:, None]):
        with pytest.raises(InputError, match="points of voxels"):
            point_to_voxel(torch.ones(20, 3), wrong, len(voxels))
    for wrong in ((rows.long(), weights), (rows, weights[:5]), (rows, weights[:, :4]), (rows[0], weights[0])):
        with pytest.raises(InputError, match="voxels to read"):
            devoxelize(features, *wrong)
    for read in (point_rows, trilinear_neighbours):
        with pytest.raises(InputError, match=r"points: expected shape \(P, 4\)"):
            read(points[:, 1:], voxels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("column", range(4))
def test_a_point_that_is_no_number_is_refused(dtype, column):
    points = random_points(20)
    voxels, _ = coordinate_set(points.floor().long())
    points[7, column] = math.nan
    for read in (point_rows, trilinear_neighbours):
        with pytest.raises(InputError, match="voxel indices"):
            read(points.to(dtype), voxels)


@pytest.mark.parametrize("batch", [-1.0, 4096.0, 8192.0, math.inf, -math.inf])
def test_a_point_of_a_batch_that_fits_no_key_is_refused(batch):
    points = random_points(20)
    voxels, _ = coordinate_set(points.floor().long())
    points[7, 0] = batch
    for read in (point_rows, trilinear_neighbours):
        with pytest.raises(InputError, match=r"voxel indices: expected batch in \[0, 4096\)"):
            read(points, voxels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("row", [5, 6, 2**31 - 1])
def test_a_row_beyond_the_voxels_is_refused(dtype, row):
    features, weights = torch.ones(5, 3, dtype=dtype), torch.ones(4, 8)
    rows = torch.zeros(4, 8, dtype=torch.int32)
    rows[3, 6] = row
    with pytest.raises(InputError, match=f"row of a voxel: expected less than 5, found {row}"):
        devoxelize(features, rows, weights)
    with pytest.raises(InputError, match=f"row of a voxel: expected less than 5, found {row}"):
        point_to_voxel(torch.ones(4, 3, dtype=dtype), rows[:, 6], 5)
    with pytest.raises(InputError, match="row of a voxel: expected less than 0, found 0"):
        devoxelize(features[:0], rows.clamp(max=0), weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_missing_row_counts_nothing_whatever_its_weight_is(dtype):
    features = torch.ones(5, 3, dtype=dtype, requires_grad=True)
    rows = torch.full((4, 8), -1, dtype=torch.int32)
    rows[:, 0] = 4
    read = devoxelize(features, rows, torch.ones(4, 8))
    assert read.tolist() == torch.ones(4, 3).tolist()
    read.sum().backward()
    assert features.grad is not None
    assert features.grad[:, 0].tolist() == [0, 0, 0, 0, 4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single_also_in_torch(dtype):
    rows, weights = torch.zeros(2000, 8, dtype=torch.int32), torch.ones(2000, 8, dtype=dtype)
    gradient = torch.full((2000, 1), 2**-8, dtype=dtype)
    assert devoxelize_gradient_reference(gradient, rows, weights, 1).tolist() == [[62.5]]
    features = torch.tensor([[256.0], [1.0]], dtype=dtype)
    corners = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1]], dtype=torch.int32)
    read = devoxelize_reference(features, corners, weights[:1])
    assert read.tolist() == [[torch.tensor(263.0).to(dtype).item()]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_half_precision_do_not_overflow(dtype):
    features, rows = torch.full((100, 2), 1024.0, dtype=dtype), torch.zeros(100, dtype=torch.int32)
    for means in (point_to_voxel(features, rows, 1), scatter_mean_reference(features, rows, 1)[0]):
        assert means.dtype == dtype
        assert means.tolist() == [[1024.0, 1024.0]]


def odd_reading() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values, rows and weights: missing rows of odd weights, and weights of zero of infinite values."""
    values = torch.ones(4, 19)
    values[0], values[3] = torch.nan, torch.inf
    rows = torch.tensor([[-1, 1], [-1, 2], [3, 1], [1, 2]], dtype=torch.int32)
    weights = torch.tensor([[torch.nan, 0.5], [torch.inf, 0.25], [0.0, 1.0], [1.0, 0.0]])
    return values, rows, weights


def odd_gradient() -> torch.Tensor:
    return torch.tensor([1.0, 1.0, 1.0, torch.inf])[:, None].expand(4, 19)


def read_and_back() -> list[torch.Tensor]:
    values, rows, weights = odd_reading()
    gradient = torch.ops.kestrel.devoxelize_gradient(odd_gradient(), rows, weights, 4)
    return [each.nan_to_num(-1, posinf=-2) for each in (devoxelize(values, rows, weights), gradient)]


def test_a_missing_row_has_no_weight_and_a_weight_of_zero_hides_no_infinity():
    values, rows, weights = odd_reading()
    read, gradient = read_and_back()
    assert read[:, 0].tolist() == [0.5, 0.25, -1, 1]
    assert gradient[:, 0].tolist() == [0, -2, -1, 0]
    expected = devoxelize_reference(values, rows, weights)
    torch.testing.assert_close(expected.nan_to_num(-1), read)
    expected = devoxelize_gradient_reference(odd_gradient(), rows, weights, 4)
    torch.testing.assert_close(expected.nan_to_num(-1, posinf=-2), gradient)


@needs_kernels
def test_no_level_gives_a_missing_row_a_weight():
    for read, gradient in on_every_level(read_and_back).values():
        assert read[:, 18].tolist() == [0.5, 0.25, -1, 1]
        assert gradient[:, 18].tolist() == [0, -2, -1, 0]


def test_a_gradient_that_is_no_number_stays_with_the_points_of_its_voxel():
    features = torch.ones(4, 2, requires_grad=True)
    means = point_to_voxel(features, torch.tensor([0, -1, 1, 1], dtype=torch.int32), 2)
    means.backward(torch.tensor([[torch.nan, torch.nan], [4.0, 2.0]]))
    assert features.grad is not None
    assert features.grad[1:].tolist() == [[0, 0], [2, 1], [2, 1]]
    assert features.grad[0].isnan().all()


def test_no_voxels_have_a_gradient_too():
    features = torch.ones(3, 2, requires_grad=True)
    point_to_voxel(features, torch.full((3,), -1, dtype=torch.int32), 0).sum().backward()
    assert features.grad is not None
    assert features.grad.tolist() == [[0, 0]] * 3


def test_a_point_at_infinity_reads_nothing():
    voxels, _ = coordinate_set(torch.tensor([[0, 1, 1, 1]]))
    point = torch.tensor([[0, math.inf, 1.5, -math.inf]])
    for rows, weights in (
        trilinear_neighbours(point, voxels),
        trilinear_reference(point, voxels.keys, voxels.stride),
    ):
        assert (rows == -1).all()
        assert (weights == 0).all()
