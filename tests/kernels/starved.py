# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Refuses the compiled kernels every block of memory that they ask for, one at a time.

`python -m tests.kernels.starved` with ``scarce_memory.cpp`` preloaded prints how often which one met that.
"""

from __future__ import annotations

import ctypes
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from kestrel.ops import (
    BevGrid,
    FrustumRays,
    KernelMap,
    LiftSplatIndex,
    PillarGrid,
    box_points,
    devoxelize,
    int8_is_fast,
    lift_splat,
    most_likely,
    pack_weight,
    pillar_canvas,
    point_to_voxel,
    rotated_iou,
    rotated_nms,
    sample_axes,
    sparse_conv,
    torchsparse_offsets,
    voxelize,
    window_attention,
)
from kestrel.ops.coordinates import pack, sort_unique
from kestrel.ops.neighbour_tables import strided_tables, submanifold_table
from kestrel.ops.winograd import winograd_conv, winograd_weight
from kestrel_kernels import native
from tests.ops.voxels import random_indices

THREADS = 3
SAID = re.compile(r"kernel (\w+): expected (\d+) bytes of memory for its work, found less")
ROUNDED_BY = 64
"""Blocks for vectors are whole cache lines, at least one."""

Case = Callable[[], Any]


def voxel_cases() -> dict[str, Case]:
    keys = pack(random_indices(30_000, extent=40))
    voxels = sort_unique(keys)[0]
    offsets = [number for offset in torchsparse_offsets(3) for number in offset]
    halves = [number for offset in torchsparse_offsets(2) for number in offset]
    points = torch.rand(5000, 4) * 20
    regions = torch.tensor([[10.0, 10, 1, 0, 8, 8, -1, 30, 0, 0, 0, 0]])
    return {
        "sorted keys": lambda: sort_unique(keys),
        "neighbours": lambda: submanifold_table(voxels, offsets),
        "coarser neighbours": lambda: strided_tables(voxels, halves, [2, 2, 2], [], False),
        "voxels": lambda: voxelize(points, (0.2, 0.2, 0.2), (0, 0, 0, 20, 20, 20)).features,
        "points around boxes": lambda: box_points(
            torch.nn.functional.pad(points, (0, 1)), regions, slots=2, slot_s=0.1, limit=9
        ),
    }


def convolution_cases(dtype: torch.dtype) -> dict[str, Case]:
    gather = torch.randint(-1, 400, (27, 300), dtype=torch.int32)
    features, weight = torch.rand(400, 32).to(dtype), torch.randn(27, 32, 20).to(dtype)
    kernel_map = KernelMap(gather, torch.randint(-1, 300, (27, 400), dtype=torch.int32))

    def gradients() -> Any:
        leaves = features.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(sparse_conv(*leaves, kernel_map).sum(), leaves)

    cases: dict[str, Case] = {f"convolution of {dtype}": lambda: sparse_conv(features, weight, kernel_map)}
    cases[f"gradients of {dtype}"] = gradients
    if dtype == torch.float32 and int8_is_fast():
        packed = pack_weight(weight, int8=True)
        cases["convolution of bytes"] = lambda: sparse_conv(features, packed, kernel_map)
    return cases


def splat_cases(dtype: torch.dtype) -> dict[str, Case]:
    here, depths, frames = torch.zeros(2, 3), torch.linspace(1, 9, 9), torch.zeros(2, dtype=torch.int64)
    rays = FrustumRays(torch.randn(2, 6, 21, 3), here, depths, frames)
    grid = BevGrid((-10, -10, -10), (0.5, 0.5, 20), (40, 40, 1))
    index = LiftSplatIndex.along(rays, grid, 1)
    depth, context = torch.rand(2, 9, 6, 21).to(dtype), torch.randn(2, 12, 6, 21).to(dtype)

    def gradients() -> Any:
        leaves = depth.clone().requires_grad_(), context.clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(lift_splat(*leaves, index).float().sum(), leaves)

    return {
        "cells of rays": lambda: LiftSplatIndex.along(rays, grid, 1).runs,
        f"pooling of {dtype}": lambda: lift_splat(depth, context, index),
        f"gradients of pooling of {dtype}": gradients,
    }


def map_cases(dtype: torch.dtype) -> dict[str, Case]:
    qkv, padding = torch.randn(1, 9, 13, 60).to(dtype), torch.randn(60).to(dtype)
    bias = torch.randn(2, 16, 16)
    grids = [torch.randn(1, 20, 12, 12).to(dtype).contiguous(memory_format=torch.channels_last)]
    lower, share = [torch.arange(10, dtype=torch.int32)], [torch.rand(10)]
    return {
        f"attention of {dtype}": lambda: window_attention(qkv, padding, bias, 4, 2),
        f"sampling of {dtype}": lambda: sample_axes(grids, lower, share),
    }


def other_cases() -> dict[str, Case]:
    rows, weights = torch.randint(-1, 50, (200, 8), dtype=torch.int32), torch.rand(200, 8)
    features = torch.randn(200, 20)
    points, batch = torch.randn(500, 5), torch.zeros(500, dtype=torch.int64)
    x, weight = torch.randn(1, 32, 13, 9), winograd_weight(torch.randn(20, 32, 3, 3))
    boxes, scores = torch.rand(40, 5) * 10, torch.rand(40)
    grid = PillarGrid(4.8, 0.4, (-3.0, 6.0))
    return {
        "reading": lambda: devoxelize(features[:50], rows, weights),
        "means": lambda: point_to_voxel(features, rows[:, 0].contiguous(), 50),
        "dense convolution": lambda: winograd_conv(x, weight, torch.zeros(20)),
        "pillars": lambda: pillar_canvas(points, batch, torch.ones(9, 20), torch.ones(20), grid, 1),
        "classes": lambda: most_likely(features),
        "overlap": lambda: rotated_iou(boxes, boxes),
        "suppression": lambda: rotated_nms(boxes, scores, 0.3),
    }


def starve(case: Case, scarce: ctypes.CDLL, inside: ctypes.c_void_p) -> Counter[str]:
    """Refuse ``case`` each block in turn; return how often it was which kernel that went without."""
    expected, kernels = case(), Counter[str]()
    scarce.scarce_watch(inside, 0)
    case()
    scarce.scarce_ignore()
    assert scarce.scarce_live() == 0
    for call in range(1, scarce.scarce_calls() + 1):
        scarce.scarce_watch(inside, call)
        try:
            case()
        except MemoryError as error:
            said = SAID.fullmatch(str(error))
        else:
            raise AssertionError("there was an answer without memory")
        finally:
            scarce.scarce_ignore()
        assert said is not None
        assert 0 <= scarce.scarce_refused() - int(said[2]) <= ROUNDED_BY
        assert scarce.scarce_live() == 0
        kernels[said[1]] += 1
        torch.testing.assert_close(case(), expected, rtol=0, atol=0, equal_nan=True)
    return kernels


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    scarce = ctypes.CDLL(None)
    inside = ctypes.cast(ctypes.CDLL(native.__file__).PyInit_native, ctypes.c_void_p)
    kernels = Counter[str]()
    for level in native.available_levels():
        native.set_dispatch_level(level)
        cases = voxel_cases() | other_cases()
        for dtype in (torch.float32, torch.bfloat16):
            cases |= convolution_cases(dtype) | splat_cases(dtype) | map_cases(dtype)
        for name, case in cases.items():
            try:
                kernels += starve(case, scarce, inside)
            except AssertionError as error:
                error.add_note(f"{name}, {level}")
                raise
    print(json.dumps(kernels))


if __name__ == "__main__":
    main()
