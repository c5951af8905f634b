# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Pooling into cells, and the lift-splat product that avoids the outer product."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kestrel.errors import InputError
from kestrel.ops.bev_pool import (
    bev_cells,
    bev_pool,
    lift_splat,
    lift_splat_backward_reference,
    lift_splat_reference,
)
from kestrel.ops.frustum import BevGrid, FrustumRays, GridShape, LiftSplatIndex, index_reference

SHAPE: GridShape = (4, 3, 2)
LOWER, STEP = torch.tensor([-2.0, 0.0, -1.0]), torch.tensor([1.0, 2.0, 1.0])


def scene(
    dtype: torch.dtype = torch.float32, batch: int = 2, cameras: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """Depth, context and cells of random points, some of them outside."""
    generator = torch.Generator().manual_seed(3)
    depths, height, width, channels = 5, 2, 3, 4
    points = torch.rand(batch, cameras, depths, height, width, 3, generator=generator) * 8 - 3
    depth = torch.rand(batch * cameras, depths, height, width, generator=generator, dtype=dtype)
    context = torch.randn(batch * cameras, channels, height, width, generator=generator, dtype=dtype)
    return depth, context, bev_cells(points, LOWER, STEP, SHAPE)


def test_points_up_to_a_cell_below_the_lower_bound_fall_into_cell_zero() -> None:
    x = torch.tensor([-3.1, -2.9, -2.0, -1.01, 1.99, 2.0, torch.nan])
    points = torch.stack((x, torch.full_like(x, 0.5), torch.full_like(x, -0.5)), dim=-1)
    cells = bev_cells(points[None], LOWER, STEP, SHAPE)[0]
    assert cells.tolist() == [-1, 0, 0, 0, 9, -1, -1]


def test_cells_are_ordered_batch_z_x_y() -> None:
    point = torch.tensor([0.5, 2.5, 0.5])
    cells = bev_cells(point.expand(2, 1, 3), LOWER, STEP, SHAPE)
    assert cells.flatten().tolist() == [(1 * 4 + 2) * 3 + 1, 24 + (1 * 4 + 2) * 3 + 1]


def test_pooling_sums_and_keeps_z_outermost() -> None:
    points = torch.tensor([[0.5, 2.5, 0.5], [0.6, 2.6, 0.4], [0.5, 2.5, -0.5], [9.0, 0, 0]])[None]
    features = torch.tensor([[1.0, 10], [2, 20], [4, 40], [8, 80]])[None]
    pooled = bev_pool(features, bev_cells(points, LOWER, STEP, SHAPE), 1, SHAPE)
    assert pooled.shape == (1, 4, 4, 3)
    assert pooled[0, :, 2, 1].tolist() == [4, 40, 3, 30]
    assert pooled.sum() == 77


def test_lift_splat_equals_pooling_the_outer_product() -> None:
    depth, context, cells = scene()
    points = depth[..., None] * context.permute(0, 2, 3, 1)[:, None]
    expected = bev_pool(points, cells.flatten(0, 1), 2, SHAPE)
    index = LiftSplatIndex.build(cells.flatten(0, 1), 2, SHAPE)
    torch.testing.assert_close(lift_splat(depth, context, index), expected)


def test_gradients_of_both_operators() -> None:
    depth, context, cells = scene(torch.float64, batch=1)
    index = LiftSplatIndex.build(cells.flatten(0, 1), 1, SHAPE)
    depth.requires_grad_()
    context.requires_grad_()
    assert torch.autograd.gradcheck(lambda d, c: lift_splat(d, c, index), (depth, context))
    features = torch.randn(*cells.shape, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: bev_pool(f, cells, 1, SHAPE), features)


def test_no_point_in_range_gives_an_empty_map() -> None:
    depth, context, cells = scene()
    index = LiftSplatIndex.build(torch.full_like(cells, -1).flatten(0, 1), 2, SHAPE)
    assert len(index.runs) == 0
    assert not lift_splat(depth, context, index).any()
    assert not bev_pool(torch.ones(*cells.shape, 2), torch.full_like(cells, -1), 2, SHAPE).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    depth, context, cells = scene()
    index = LiftSplatIndex.build(cells.flatten(0, 1), 2, SHAPE)
    found = lift_splat(depth.to(dtype), context.to(dtype), index)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), lift_splat(depth, context, index), rtol=0.03, atol=0.05)


def test_what_does_not_fit_is_named() -> None:
    depth, context, cells = scene()
    with pytest.raises(InputError, match="cell of a point"):
        LiftSplatIndex.build(cells.flatten(0, 1), 1, SHAPE)
    index = LiftSplatIndex.build(cells.flatten(0, 1), 2, SHAPE)
    with pytest.raises(InputError, match="lift-splat"):
        lift_splat(depth, context[:, :, :1], index)
    with pytest.raises(InputError, match="lift-splat"):
        lift_splat(depth[:2], context[:2], index)
    with pytest.raises(InputError, match="cells of points"):
        bev_pool(torch.zeros(*cells.shape[:-1], 4), cells, 2, SHAPE)
    for wrong in (cells.flatten(0, 1).int(), cells.flatten(0, 2)):
        with pytest.raises(InputError, match="cells of points"):
            LiftSplatIndex.build(wrong, 2, SHAPE)


def test_an_index_serves_only_pictures_of_the_size_that_it_was_built_for() -> None:
    depth, context, cells = scene()
    index = LiftSplatIndex.build(cells.flatten(0, 1), 2, SHAPE)
    images, depths, height, width = depth.shape
    for size in (
        (images, depths - 1, height, width),
        (images, depths + 1, height, width),
        (images, depths, height - 1, width),
        (images * width, depths, height, 1),
    ):
        with pytest.raises(InputError, match="lift-splat"):
            lift_splat(torch.rand(size), torch.rand(size[0], context.shape[1], *size[2:]), index)


def test_tables_that_the_compiled_code_would_misread_are_no_index() -> None:
    _, _, cells = scene()
    index = LiftSplatIndex.build(cells.flatten(0, 1), 2, SHAPE)
    same = LiftSplatIndex(
        *(index.row_start, index.runs, index.by_column, index.column_start),
        *(index.batch, index.shape, index.points),
    )
    assert same.runs is index.runs
    apart = torch.stack((index.runs, index.runs), 2)[..., 0]
    for name, table in (
        ("row_start", index.row_start.long()),
        ("row_start", index.row_start[:-1]),
        ("runs", index.runs[:, :2]),
        ("runs", apart),
        ("by_column", index.by_column[1:]),
        ("column_start", index.column_start[:, None]),
    ):
        with pytest.raises(
            InputError, match=f"{name} of a lift-splat index: expected contiguous torch.int32"
        ):
            replace(index, **{name: table, "built": False})


@pytest.mark.parametrize(
    ("table", "place", "value", "name"),
    [
        ("runs", (2, 0), 48, "cell of a run"),
        ("runs", (2, 0), -1, "cell of a run"),
        ("runs", (2, 1), 4 * 5 * 2 * 3, "first point of a run"),
        ("runs", (2, 1), -1, "first point of a run"),
        ("runs", (2, 2), 3, "points of a run"),
        ("runs", (2, 2), 0, "points of a run"),
        ("by_column", (2,), 10**6, "run of a column"),
        ("row_start", (0,), 1, "row_start of a lift-splat index"),
        ("row_start", (24,), 10**6, "row_start of a lift-splat index: .* that falls"),
        ("column_start", (12,), 5, "column_start of a lift-splat index"),
    ],
)
def test_runs_points_and_cells_that_there_are_not_are_no_index(
    table: str, place: tuple[int, ...], value: int, name: str
) -> None:
    _, _, cells = scene()
    index = LiftSplatIndex.build(cells.flatten(0, 1), 2, SHAPE)
    wrong = getattr(index, table).clone()
    wrong[place] = value
    with pytest.raises(InputError, match=name):
        replace(index, **{table: wrong, "built": False})


def test_tables_and_gradients_that_lie_apart_are_read_in_their_own_order() -> None:
    depth, context, cells = scene()
    index = LiftSplatIndex.build(cells.flatten(0, 1), 2, SHAPE)
    tables = index.row_start, index.runs, index.by_column, index.column_start
    apart = [torch.stack((table, torch.full_like(table, 10**6)), -1)[..., 0] for table in tables]
    pooled = torch.ops.kestrel.lift_splat(depth, context, *tables, *SHAPE[:2])
    assert torch.equal(torch.ops.kestrel.lift_splat(depth, context, *apart, *SHAPE[:2]), pooled)
    upstream = torch.randn(pooled.shape[::-1]).T
    backward = torch.ops.kestrel.lift_splat_backward
    for found, expected in zip(
        backward(upstream, depth, context, *apart),
        backward(upstream.contiguous(), depth, context, *tables),
        strict=True,
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("chunk", [3, 1 << 16])
def test_the_reference_takes_more_points_than_there_are_cells_and_pixels(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("kestrel.ops.bev_pool"), "_CHUNK", chunk)
    depth = torch.rand(1, 7, 1, 2, dtype=torch.float64, requires_grad=True)
    context = torch.randn(1, 3, 1, 2, dtype=torch.float64, requires_grad=True)
    row_start, runs, _, _ = index_reference(torch.zeros(1, 7, 1, 2, dtype=torch.int64), 1)
    upstream = torch.randn(1, 3, dtype=torch.float64)
    pooled = (depth[:, :, None] * context[:, None]).sum((0, 1, 3, 4))[None]
    found = lift_splat_reference(depth.detach(), context.detach(), row_start, runs)
    torch.testing.assert_close(found, pooled.detach())
    gradients = lift_splat_backward_reference(upstream, depth.detach(), context.detach(), row_start, runs)
    torch.testing.assert_close(gradients, torch.autograd.grad(pooled, (depth, context), upstream))


def test_pooling_into_no_cells_has_a_gradient_too() -> None:
    features = torch.ones(4, 2, requires_grad=True)
    torch.ops.kestrel.bev_pool(features, torch.full((4,), -1), 0).sum().backward()
    assert features.grad is not None
    assert not features.grad.any()


def rays_of_pictures(*, level: bool = False) -> FrustumRays:
    """Four pictures of two samples, one of which took no part, looking about from within the grid.

    level: in a column of a picture all look the same way.
    """
    generator = torch.Generator().manual_seed(5)
    rays = torch.randn(4, 6, 11, 3, generator=generator)
    if level:
        rays = rays[:, :1].expand_as(rays)
    origins = torch.rand(4, 3, generator=generator) * torch.tensor([4.0, 6.0, 2.0]) + LOWER
    return FrustumRays(rays, origins, 0.25 * torch.arange(9) + 0.1, torch.tensor([0, 1, -1, 1]))


@pytest.mark.parametrize("level", [True, False])
@pytest.mark.parametrize("truncated", [True, False])
def test_points_along_rays_fall_into_the_cells_of_their_places(truncated: bool, level: bool) -> None:
    rays = rays_of_pictures(level=level)
    grid = BevGrid(tuple(LOWER.tolist()), tuple(STEP.tolist()), SHAPE, truncated)
    points = rays.origins[:, None, None, None] + rays.rays[:, None] * rays.depths.view(1, -1, 1, 1, 1)
    if not truncated:
        points[((points - LOWER) < 0).any(-1)] = 1e6
    cells = bev_cells(points[None], LOWER, STEP, SHAPE)[0]
    cells = torch.where(cells >= 0, cells + 24 * rays.frames.view(-1, 1, 1, 1), -1)
    cells[2] = -1
    assert torch.equal(rays.cells(grid), cells)
    assert (cells >= 0).float().mean() > 0.2
    built, expected = LiftSplatIndex.along(rays, grid, 2), index_reference(cells, 48)
    found = built.row_start, built.runs, built.by_column, built.column_start
    for table, wanted in zip(found, expected, strict=True):
        assert torch.equal(table, wanted)
    assert set(built.runs[:, 2].tolist()) == {6} if level else {1, 2} <= set(built.runs[:, 2].tolist())
    assert built.points == (4, 9, 6, 11)
    assert (built.batch, built.shape) == (2, SHAPE)


def test_rays_that_lead_nowhere_fall_into_no_cell() -> None:
    rays = rays_of_pictures()
    grid = BevGrid(tuple(LOWER.tolist()), tuple(STEP.tolist()), SHAPE)
    for nowhere in (torch.nan, torch.inf, -torch.inf, 1e30):
        lost = replace(rays, rays=torch.full_like(rays.rays, nowhere))
        assert (lost.cells(grid) == -1).all()
        assert len(LiftSplatIndex.along(lost, grid, 2).runs) == 0
    assert len(LiftSplatIndex.along(replace(rays, frames=torch.full((4,), -1)), grid, 2).runs) == 0


def test_rays_of_other_types_and_without_pictures_have_an_index_too() -> None:
    rays = rays_of_pictures()
    grid = BevGrid(tuple(LOWER.tolist()), tuple(STEP.tolist()), SHAPE)
    wide = FrustumRays(rays.rays.double(), rays.origins.double(), rays.depths.double(), rays.frames)
    assert torch.equal(LiftSplatIndex.along(wide, grid, 2).runs, index_reference(wide.cells(grid), 48)[1])
    none = FrustumRays(rays.rays[:0], rays.origins[:0], rays.depths, rays.frames[:0])
    assert len(LiftSplatIndex.along(none, grid, 2).runs) == 0
    with pytest.raises(InputError, match="sample of a picture: expected below 1, found 1"):
        LiftSplatIndex.along(rays, grid, 1)


def test_rays_that_do_not_fit_each_other_are_named() -> None:
    rays = torch.zeros(2, 3, 4, 3)
    good = (rays, torch.zeros(2, 3), torch.ones(5), torch.zeros(2, dtype=torch.int64))
    for place, part in ((1, torch.zeros(1, 3)), (0, rays[0]), (2, torch.ones(5, 1)), (3, good[3][:1])):
        parts = [*good[:place], part, *good[place + 1 :]]
        with pytest.raises(InputError, match=r"rays of pictures: expected rays \(N, H, W, 3\)"):
            FrustumRays(*parts)
    with pytest.raises(InputError, match=r"frames of pictures: expected torch\.int64"):
        FrustumRays(*good[:3], good[3].int())
