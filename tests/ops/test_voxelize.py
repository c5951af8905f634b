# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from kestrel.errors import InputError
from kestrel.ops import voxelize
from kestrel.ops.voxelize import voxelize_reference

SIZE = (0.5, 0.5, 1.0)
RANGE = (-2.0, -2.0, -1.0, 2.0, 2.0, 1.0)


def by_hand(points: torch.Tensor, max_points: int, max_voxels: int) -> dict[tuple[int, ...], list[int]]:
    """Point by point, as the definition says."""
    cells: dict[tuple[int, ...], list[int]] = {}
    lower = torch.tensor(RANGE[:3])
    for row, point in enumerate(points):
        cell = tuple(((point[:3] - lower) / torch.tensor(SIZE)).floor().int().tolist())
        inside = all(0 <= c < n for c, n in zip(cell, (8, 8, 2), strict=True))
        if not inside or (cell not in cells and len(cells) == max_voxels):
            continue
        members = cells.setdefault(cell, [])
        if len(members) < max_points:
            members.append(row)
    return cells


@pytest.mark.parametrize(("max_points", "max_voxels"), [(1, 1000), (3, 40), (1000, 1000)])
def test_limits_keep_the_first_points_and_the_first_voxels(max_points, max_voxels):
    points = torch.randn(600, 5) * 1.2
    expected = by_hand(points, max_points, max_voxels)
    found = voxelize(points, SIZE, RANGE, max_points=max_points, max_voxels=max_voxels)
    assert [tuple(cell) for cell in found.indices.tolist()] == list(expected)
    assert found.counts.tolist() == [len(rows) for rows in expected.values()]
    assert found.first.tolist() == [rows[0] for rows in expected.values()]
    means = torch.stack([points[rows].mean(0) for rows in expected.values()])
    torch.testing.assert_close(found.features, means, atol=1e-5, rtol=1e-5)
    owner = {row: voxel for voxel, rows in enumerate(expected.values()) for row in rows}
    assert found.rows.tolist() == [owner.get(row, -1) for row in range(len(points))]


def test_as_many_voxels_as_points_keep_the_order_of_the_points():
    count = 6000
    points = torch.zeros(count, 3)
    points[:, 0] = torch.randperm(count, generator=torch.Generator().manual_seed(0)) + 0.5
    found = voxelize(points, (1.0, 1.0, 1.0), (0.0, -1.0, -1.0, count, 1.0, 1.0))
    assert found.rows.tolist() == list(range(count))
    assert torch.equal(found.features, points)
    assert torch.equal(found.indices, points.floor().int() + torch.tensor((0, 1, 1), dtype=torch.int32))


@pytest.mark.parametrize("reduction", ["first", "mean", "max"])
@pytest.mark.parametrize(("max_points", "max_voxels"), [(1 << 31, 1 << 31), (4, 60)])
def test_the_compiled_code_equals_the_reference(reduction, max_points, max_voxels):
    points = torch.randn(3000, 5, generator=torch.Generator().manual_seed(0))
    points[7, 4] = float("nan")
    arguments = (points, SIZE, RANGE, reduction, max_points, max_voxels)
    for found, wanted in zip(
        torch.ops.kestrel.voxelize(*arguments), voxelize_reference(*arguments), strict=True
    ):
        torch.testing.assert_close(found, wanted, equal_nan=True)


@pytest.mark.parametrize("reduction", ["first", "mean", "max"])
def test_gradients_are_those_of_finite_differences(reduction):
    points = torch.randn(40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    points[:, 3] = torch.randperm(40)

    def run(extra):
        cloud = torch.cat((points[:, :3], extra), 1)
        return voxelize(cloud, SIZE, RANGE, reduction=reduction, max_points=3).features[:, 3:]

    assert torch.autograd.gradcheck(run, points[:, 3:].clone().requires_grad_())


def test_a_range_with_more_cells_than_a_key_holds_is_refused():
    with pytest.raises(InputError, match="cells in the range"):
        voxelize(torch.zeros(1, 3), (1e-6, 1.0, 1.0), RANGE)


def test_first_and_maximum_reduce_the_same_groups():
    points = torch.tensor([[0.1, 0.1, 0, 7], [1.1, 0.1, 0, 1], [0.2, 0.1, 0, 9], [0.1, 0.3, 0, 2]])
    first = voxelize(points, SIZE, RANGE, reduction="first")
    highest = voxelize(points, SIZE, RANGE, reduction="max")
    assert first.features[:, 3].tolist() == [7, 1]
    assert highest.features.tolist() == [points[[0, 2, 3]].amax(0).tolist(), points[1].tolist()]
    assert first.rows.tolist() == [0, 1, 0, 0]


def test_points_that_are_huge_or_not_finite_never_become_integers():
    nan, inf = float("nan"), float("inf")
    points = torch.tensor([[nan, 0, 0], [inf, 0, 0], [0, -inf, 0], [1e30, 0, 0], [0, 0, -1e38], [0.1, 0, 0]])
    found = voxelize(points, SIZE, RANGE)
    assert found.rows.tolist() == [-1, -1, -1, -1, -1, 0]
    assert len(found.features) == 1


def test_the_upper_border_belongs_to_nobody():
    found = voxelize(torch.tensor([[2.0, 0, 0], [-2.0, -2.0, -1.0]]), SIZE, RANGE)
    assert found.indices.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("points", [torch.zeros(0, 4), torch.full((3, 4), 100.0)])
def test_no_point_in_range_gives_no_voxel(points):
    found = voxelize(points, SIZE, RANGE, max_points=2, max_voxels=2)
    assert found.features.shape == (0, 4)
    assert found.indices.shape == (0, 3)
    assert found.rows.tolist() == [-1] * len(points)


def test_wrong_arguments_are_named():
    with pytest.raises(InputError, match="points"):
        voxelize(torch.zeros(3, 2), SIZE, RANGE)
    with pytest.raises(InputError, match="voxel size"):
        voxelize(torch.zeros(3, 3), (0.0, 1.0, 1.0), RANGE)
    with pytest.raises(InputError, match="limits"):
        voxelize(torch.zeros(3, 3), SIZE, RANGE, max_points=0)
    with pytest.raises(InputError, match="reduction"):
        voxelize(torch.zeros(3, 3), SIZE, RANGE, reduction="median")
    with pytest.raises(InputError, match="points: expected floating point"):
        voxelize(torch.zeros(3, 3, dtype=torch.int32), SIZE, RANGE)
    for size, limits in (
        ((math.nan, 1.0, 1.0), RANGE),
        (SIZE, (*RANGE[:5], math.inf)),
        (SIZE[:2], RANGE),
        (SIZE, RANGE[:5]),
    ):
        with pytest.raises(InputError, match="voxel size and range: expected 3 and 6 finite numbers"):
            voxelize(torch.zeros(3, 3), size, limits)
