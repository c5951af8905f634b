# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Every operator is registered as torch wants it: schema, gradient, and shapes without values."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
import torch
from torch.library import opcheck

import kestrel.ops
from kestrel.ops import (
    centred_offsets,
    int8_is_fast,
    pack_weight,
    point_rows,
    torchsparse_offsets,
    trilinear_neighbours,
)
from kestrel.ops.backend import NATIVE
from kestrel.ops.frustum import LiftSplatIndex
from kestrel.ops.int8_conv import pack_int8_conv
from kestrel.ops.operator import NAMESPACE
from kestrel.ops.winograd import winograd_weight
from tests.ops import (
    test_axis_sampling,
    test_bev_pool,
    test_box_points,
    test_classification,
    test_pillars,
    test_voxelize,
    test_window_attention,
    test_winograd,
)
from tests.ops.test_rotated_iou import random_boxes
from tests.ops.voxels import random_indices, random_voxels

Arguments = tuple[Any, ...]


def learnt(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), requires_grad=True)


def in_voxels() -> tuple[torch.Tensor, torch.Tensor]:
    """Return 20 points and the keys of voxels around some of them."""
    points = torch.rand(20, 4, generator=torch.Generator().manual_seed(2)) * torch.tensor([2.0, 8, 8, 8])
    points[:, 0] = points[:, 0].floor()
    return points, random_voxels(40).keys


def convolution() -> Iterator[Arguments]:
    voxels = random_voxels(40)
    found = voxels.submanifold_map(centred_offsets((3, 3, 3)))
    features, weight = learnt(len(voxels), 4), learnt(27, 4, 4)
    yield features, weight, None, None, found.gather, found.scatter, True
    yield features, weight, learnt(4), learnt(len(voxels), 4), found.gather, found.scatter, False


def rows_by_matrix() -> Iterator[Arguments]:
    features, weight, read = torch.rand(9, 16), torch.randn(16, 20), reading(9, 20)
    yield features, weight, None, None, True, None, None, None
    yield features, weight, torch.randn(20), torch.randn(9, 20), False, *read
    yield features.double(), weight.double(), None, None, True, None, None, None  # in torch, always


def reading(points: int, channels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = torch.randint(-1, 5, (points, 8), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    return torch.rand(5, channels), rows, torch.rand(points, 8)


def packed_convolution() -> Iterator[Arguments]:
    """Return nothing where there are no compiled kernels, which alone read what is packed."""
    if NATIVE is None:
        return
    gather = random_voxels(40).submanifold_map(centred_offsets((3, 3, 3))).gather
    count = gather.shape[1]
    packed, single = (pack_weight(weight).packed for weight in (torch.randn(27, 16, 20), torch.randn(16, 20)))
    bias, residual = torch.randn(20), torch.randn(count, 20)
    yield torch.rand(count, 16), packed, 20, bias, residual, gather, True, None, None, None
    yield torch.rand(9, 16), single, 20, None, None, None, False, *reading(9, 20)


def packed_int8_convolution() -> Iterator[Arguments]:
    if not int8_is_fast():
        return
    gather = random_voxels(40).submanifold_map(centred_offsets((3, 3, 3))).gather
    packed = pack_weight(torch.randn(27, 16, 20), int8=True)
    assert packed.int8 is not None
    for features in (torch.rand(gather.shape[1], 16), torch.randn(gather.shape[1], 16)):
        yield features, packed.int8.packed, packed.int8.step, packed.packed, None, None, gather, True


def int8_convolution() -> Iterator[Arguments]:
    packed = pack_int8_conv(torch.randn(20, 16, 3, 3))
    if packed is not None:
        yield torch.rand(2, 16, 5, 4), packed.packed, packed.step, torch.randn(20), 2, True


def weight_gradient() -> Iterator[Arguments]:
    for features, weight, _, _, gather, _, _ in convolution():
        yield features.detach(), torch.randn(gather.shape[1], weight.shape[2]), gather


def splatting(*, backward: bool) -> Iterator[Arguments]:
    depth, context, cells = test_bev_pool.scene(batch=1)
    shape = test_bev_pool.SHAPE
    index = LiftSplatIndex.build(cells.flatten(0, 1), 1, shape)
    tables = index.row_start, index.runs, index.by_column, index.column_start
    if backward:
        pooled = torch.ops.kestrel.lift_splat(depth, context, *tables, *shape[:2])
        yield torch.randn_like(pooled), depth, context, *tables
    else:
        yield depth.requires_grad_(), context.requires_grad_(), *tables, *shape[:2]


def corners() -> tuple[torch.Tensor, torch.Tensor, int]:
    points, _ = in_voxels()
    voxels = random_voxels(40)
    return *trilinear_neighbours(points, voxels), len(voxels)


def devoxelized(*, backward: bool) -> Iterator[Arguments]:
    rows, weights, count = corners()
    yield (torch.randn(20, 4), rows, weights, count) if backward else (learnt(count, 4), rows, weights)


def averaged() -> Iterator[Arguments]:
    voxels = random_voxels(40)
    yield learnt(20, 4), point_rows(in_voxels()[0], voxels), len(voxels)


def strided() -> Iterator[Arguments]:
    keys, offsets = random_voxels(30).keys, [axis for offset in torchsparse_offsets(3) for axis in offset]
    yield keys, offsets, [2, 2, 2], [], False
    yield keys, offsets, [2, 2, 2], [9, 9, 9], True


def pillars_of_double() -> Iterator[Arguments]:
    random = torch.Generator().manual_seed(3)
    features = torch.randn(300, 9, generator=random, dtype=torch.float64)
    pillar = torch.randint(0, 50, (300,), generator=random)
    weight, bias = (each.double().requires_grad_() for each in test_pillars.layer(5))
    yield features, pillar, weight, bias, 2 * 7 * 7


def attention() -> Iterator[Arguments]:
    request = test_window_attention.request()
    yield *request, 4, 2
    yield *(part.double() for part in request), 4, 2  # in torch, whatever is compiled


def winograd() -> Iterator[Arguments]:
    x, weight, bias = test_winograd.problem((2, 16, 24, 9, 6))
    yield x, winograd_weight(weight), bias, True


def sampled() -> Iterator[Arguments]:
    made = test_axis_sampling.sampler(native=True)
    yield test_axis_sampling.grids(), [made.lower0, made.lower1], [made.share0, made.share1]


def keys() -> torch.Tensor:
    return random_voxels(30).keys


def boxes() -> tuple[torch.Tensor, torch.Tensor]:
    return random_boxes(9), torch.zeros(9, dtype=torch.int64)


ARGUMENTS: Final[dict[str, Callable[[], Iterator[Arguments]]]] = {
    "bev_pool": lambda: iter([(learnt(5, 3), torch.tensor([0, 2, -1, 2, 1]), 4)]),
    "box_points": lambda: iter([(*test_box_points.scene(300, 8), 3, 0.2, 5)]),
    "circle_nms": lambda: iter([(boxes()[0][:, :2], boxes()[1], torch.ones(9, dtype=torch.float64), 9)]),
    "devoxelize": lambda: devoxelized(backward=False),
    "devoxelize_gradient": lambda: devoxelized(backward=True),
    "find_keys": lambda: iter([(keys(), keys() + 1)]),
    "int8_conv": int8_convolution,
    "lift_splat": lambda: splatting(backward=False),
    "lift_splat_backward": lambda: splatting(backward=True),
    "most_likely": lambda: iter([(test_classification.logits(20, 5),)]),
    "pack_keys": lambda: iter([(random_indices(30),)]),
    "pack_matrices": lambda: iter([] if NATIVE is None else [(torch.randn(3, 16, 20),)]),
    "packed_conv": packed_convolution,
    "packed_int8_conv": packed_int8_convolution,
    "pillar_canvas": lambda: iter(
        [(*test_pillars.cloud(50), *test_pillars.layer(4), [4.8, 0.4, -3.0, 6.0], 2)]
    ),
    "pillar_maximum": pillars_of_double,
    "pointwise": rows_by_matrix,
    "rotated_iou": lambda: iter([(random_boxes(4), random_boxes(3))]),
    "rotated_nms": lambda: iter([(*boxes(), 0.5, 9)]),
    "sample_axes": sampled,
    "scatter_mean": averaged,
    "sort_unique": lambda: iter([(torch.cat((keys(), keys())),)]),
    "sparse_conv": convolution,
    "sparse_conv_weight_gradient": weight_gradient,
    "strided_tables": strided,
    "submanifold_table": lambda: iter(
        [(keys(), [axis for offset in torchsparse_offsets(3) for axis in offset])]
    ),
    "temporal_shift": lambda: iter([(learnt(6, 8, 2, 2), 3, 2, 1, -1)]),
    "trilinear_neighbours": lambda: iter([(*in_voxels(), random_voxels(40).stride, None, None)]),
    "voxelize": lambda: iter([(learnt(50, 4), test_voxelize.SIZE, test_voxelize.RANGE, "mean", 3, 20)]),
    "window_attention": attention,
    "winograd_conv": winograd,
}
"""By operator, the arguments of one call or more; a differentiable one gets what needs a gradient."""


def registered() -> set[str]:
    """Return the names of all operators that the modules of kestrel.ops register."""
    for module in pkgutil.iter_modules(kestrel.ops.__path__, f"{kestrel.ops.__name__}."):
        importlib.import_module(module.name)
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix(f"{NAMESPACE}::") for name in names if name.startswith(f"{NAMESPACE}::")}


def test_no_operator_is_forgotten() -> None:
    assert registered() == set(ARGUMENTS)


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_an_operator_is_registered_as_torch_wants_it(name: str) -> None:
    for arguments in ARGUMENTS[name]():
        opcheck(getattr(torch.ops.kestrel, name).default, arguments)
