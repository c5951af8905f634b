# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What surrounds a call changes no answer: default type and device, inference mode, a dispatch level."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from kestrel.nn.sparse import ResidualBlock, SparseTensor
from kestrel.ops import (
    coordinate_set,
    most_likely,
    pack_weight,
    pointwise,
    rotated_iou,
    sparse_conv,
    trilinear_neighbours,
    voxelize,
)
from kestrel.ops.backend import NATIVE
from kestrel.ops.frustum import BevGrid, FrustumRays, LiftSplatIndex
from kestrel.ops.int8_conv import int8_conv, pack_int8_conv
from kestrel.ops.winograd import winograd_conv, winograd_weight
from tests.ops.levels import needs_int8, needs_kernels
from tests.ops.test_kernel_map import CUBE, HALF
from tests.ops.voxels import random_indices

GENERATOR = torch.Generator().manual_seed(5)
LOGITS = torch.randn(50, 16, generator=GENERATOR)
POINTS = 9 * torch.rand(60, 4, generator=GENERATOR)
BOXES = torch.rand(6, 5, generator=GENERATOR) + 1
INDICES = random_indices(200)
PICTURE, FILTERS = (
    torch.rand(1, 16, 8, 8, generator=GENERATOR),
    torch.randn(16, 16, 3, 3, generator=GENERATOR),
)
BIAS = torch.randn(16, generator=GENERATOR)
RAYS = FrustumRays(
    torch.rand(2, 3, 4, 3, generator=GENERATOR),
    torch.zeros(2, 3),
    torch.arange(1.0, 6.0),
    torch.zeros(2, dtype=torch.int64),
)
GRID = BevGrid((-5.0, -5.0, -5.0), (0.5, 0.5, 10.0), (20, 20, 1))
ROWS, MATRIX = torch.rand(40, 16, generator=GENERATOR), torch.randn(16, 24, generator=GENERATOR)


def strided() -> tuple[Tensor, Tensor]:
    coarse, found = coordinate_set(INDICES)[0].downsample(HALF, (2, 2, 2))
    return coarse.keys, found.gather


def convolved() -> Tensor:
    voxels = coordinate_set(INDICES)[0]
    ones = INDICES.new_ones(len(voxels), 8, dtype=torch.float32)
    return sparse_conv(ones, INDICES.new_ones(27, 8, 4, dtype=torch.float32), voxels.submanifold_map(CUBE))


OPERATORS: dict[str, Callable[[], object]] = {
    "most_likely": lambda: most_likely(LOGITS),
    "trilinear_neighbours": lambda: trilinear_neighbours(POINTS, coordinate_set(INDICES)[0]),
    "winograd_conv": lambda: winograd_conv(PICTURE, WINOGRAD, BIAS, relu=True),
    "coordinate_set": lambda: coordinate_set(INDICES)[1],
    "strided map": strided,
    "sparse_conv": convolved,
    "pointwise": lambda: pointwise(ROWS, MATRIX),
    "packed pointwise": lambda: pointwise(ROWS, pack_weight(MATRIX)),
    "rotated_iou": lambda: rotated_iou(BOXES, BOXES),
    "voxelize": lambda: voxelize(POINTS, (1, 1, 1), (0, 0, 0, 9, 9, 9)).counts,
    "LiftSplatIndex": lambda: LiftSplatIndex.along(RAYS, GRID, 1).row_start,
}
WINOGRAD = winograd_weight(FILTERS)


@contextmanager
def defaults(setting: torch.dtype | str) -> Iterator[None]:
    """Let torch make what it is not told otherwise of another type, or on another device."""
    before = torch.get_default_dtype()
    try:
        if isinstance(setting, str):
            torch.set_default_device(setting)
        else:
            torch.set_default_dtype(setting)
        yield
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)


@needs_kernels
@pytest.mark.parametrize("setting", [torch.float64, torch.bfloat16, "meta"], ids=str)
@pytest.mark.parametrize("name", OPERATORS)
@torch.no_grad()
def test_defaults_of_torch_change_no_answer(name: str, setting: torch.dtype | str) -> None:
    expected = OPERATORS[name]()
    with defaults(setting):
        found = OPERATORS[name]()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def made_and_run() -> tuple[Tensor, Tensor]:
    """Return what a network answers that was made where it runs, at first and with what it then keeps."""
    torch.manual_seed(0)
    block = ResidualBlock(8, 8).eval()
    voxels = coordinate_set(INDICES)[0]
    x = SparseTensor(torch.rand(len(voxels), 8), voxels)
    return block(x).features, block(x).features


def test_a_network_that_was_made_in_inference_mode_answers_as_any_other() -> None:
    with torch.no_grad():
        expected = made_and_run()[0]
    with torch.inference_mode():
        first, second = made_and_run()
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)


@needs_int8
def test_bytes_are_not_multiplied_at_a_level_that_cannot() -> None:
    assert NATIVE is not None
    weight = pack_int8_conv(FILTERS)
    assert weight is not None
    level = NATIVE.dispatch_level()
    try:
        NATIVE.set_dispatch_level("portable")
        assert int8_conv(PICTURE, weight, BIAS) is None
    finally:
        NATIVE.set_dispatch_level(level)
    assert int8_conv(PICTURE, weight, BIAS) is not None
