# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Compile every kernel for a GPU that is not there, with the argument types that the operators pass.

Triton's compiler needs a driver for two things, the architecture and a place to run; here is one that knows
the first. Prints the kernels of each module that became machine code.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from kestrel.ops import gpu
from kestrel.ops.gpu import launch as launching

compiled: set[str] = set()


class Absent:
    """A driver of a GPU of a given architecture that runs nothing."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(kernel: Any, grid: tuple[int, ...], *arguments: object, **constants: object) -> None:
    """Do what kestrel.ops.gpu.launch.launch does, except running the kernel."""
    made = kernel.run(*arguments, grid=grid, warmup=True, **constants)
    assert made.asm["cubin"]
    compiled.add(kernel.fn.__name__)


def rows(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int32)


def temporal_shift(module: Any, dtype: torch.dtype) -> None:
    module.temporal_shift(torch.zeros(8, 8, 4, 4, dtype=dtype), 4, 2, 1, -1)


def sparse_conv(module: Any, dtype: torch.dtype) -> None:
    module.weight_gradient(torch.zeros(20, 33), torch.zeros(30, 70), rows(27, 30))
    module.sparse_conv(torch.zeros(20, 33), torch.zeros(27, 33, 70), None, None, rows(27, 30), False)
    features, bias = torch.zeros(20, 33, dtype=dtype), torch.zeros(70, dtype=dtype)
    weight, residual = torch.zeros(27, 33, 70, dtype=dtype), torch.zeros(30, 70, dtype=dtype)
    module.sparse_conv(features, weight, None, None, rows(27, 30), False)
    module.sparse_conv(features, weight, bias, residual, rows(27, 30), True)
    module.weight_gradient(features, residual, rows(27, 30))


def coordinates(module: Any, dtype: torch.dtype) -> None:
    module.find(torch.arange(30), torch.arange(40))


def kernel_map(module: Any, dtype: torch.dtype) -> None:
    module.submanifold_table(torch.arange(30), list(range(27)))


def segments(module: Any, dtype: torch.dtype) -> None:
    order, starts = module.sorted_by_segment(rows(30), 4)
    module.reduce_segments(torch.zeros(30, 5, dtype=dtype), order, starts)
    module.reduce_segments(torch.zeros(30, 5, dtype=dtype), order, starts, maximum=True)
    module.reduce_segments(torch.zeros(5, 5, dtype=dtype), order, starts, torch.zeros(5, 6, dtype=dtype))


def point_voxel(module: Any, dtype: torch.dtype) -> None:
    module.trilinear_neighbours(torch.zeros(30, 4), torch.arange(20), (2, 2, 2))
    module.devoxelize(torch.zeros(20, 33, dtype=dtype), rows(30, 8), torch.zeros(30, 8, dtype=dtype))


def bev_pool(module: Any, dtype: torch.dtype) -> None:
    depth, context = torch.zeros(2, 5, 6, 7, dtype=dtype), torch.zeros(2, 80, 6, 7, dtype=dtype)
    module.lift_splat(depth, context, rows(12), rows(9, 3))
    module.lift_splat_backward(
        torch.zeros(11, 80, dtype=dtype), depth, context, rows(9, 3), rows(9), rows(15)
    )


def voxelize(module: Any, dtype: torch.dtype) -> None:
    module.cells_of(torch.zeros(30, 5), (1.0, 1.0, 1.0), (0, 0, 0, 5, 5, 5), (5, 5, 5))


def rotated_iou(module: Any, dtype: torch.dtype) -> None:
    module.rotated_iou(torch.zeros(3, 5, dtype=dtype), torch.zeros(70, 5, dtype=dtype))


def box_points(module: Any, dtype: torch.dtype) -> None:
    module.box_points(torch.zeros(30, 5), torch.zeros(4, 12), 3, 0.2, 8)


def classification(module: Any, dtype: torch.dtype) -> None:
    module.most_likely(torch.zeros(40, 19))


def nms(module: Any, dtype: torch.dtype) -> None:
    module.greedy(torch.zeros(70, 70, dtype=torch.bool), torch.zeros(70, dtype=torch.int64), 20)


def axis_sampling(module: Any, dtype: torch.dtype) -> None:
    for kind in (torch.float32, dtype):
        module.sample_axes([torch.zeros(2, 40, 8, 8, dtype=kind)], [rows(20)], [torch.zeros(20)])


def pillars(module: Any, dtype: torch.dtype) -> None:
    pillar = torch.arange(30)
    arrays = torch.zeros(9, 32), torch.zeros(32), torch.zeros(24)
    module.pillar_canvas(torch.zeros(30, 5), pillar, *arrays, 2)


def window_attention(module: Any, dtype: torch.dtype) -> None:
    for kind in (torch.float32, dtype):
        qkv, padding = torch.zeros(2, 9, 13, 3 * 64, dtype=kind), torch.zeros(3 * 64)
        module.window_attention(qkv, padding, torch.zeros(2, 49, 49), 7, 3, -100.0)


CALLS = (
    *(temporal_shift, sparse_conv, coordinates, kernel_map, segments, point_voxel, bev_pool, voxelize),
    *(rotated_iou, box_points, classification, nms, axis_sampling, pillars, window_attention),
)


def main(capability: int) -> None:
    triton.runtime.driver.set_active(Absent(capability))
    launching.launch = compile_only
    calls = {call.__name__: call for call in CALLS}
    for name in (each.name for each in pkgutil.iter_modules(gpu.__path__) if each.name != "launch"):
        module = importlib.import_module(f"kestrel.ops.gpu.{name}")
        calls[name](module, torch.bfloat16)
        kernels = {
            key
            for key, value in vars(module).items()
            if isinstance(value, triton.JITFunction) and key.startswith("_")
        }
        print(name, *sorted(kernels & compiled))
        assert kernels <= compiled, f"not compiled: {kernels - compiled}"


if __name__ == "__main__":
    main(int(sys.argv[1]))
