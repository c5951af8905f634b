# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Which implementation an operator picks for tensors on a GPU."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType

import pytest
import torch

from kestrel.errors import SetupError
from kestrel.ops import backend, torchsparse_offsets, trilinear_neighbours
from kestrel.ops.frustum import index_reference
from tests.ops.voxels import random_voxels

OPERATORS = (
    *("find_keys", "submanifold_table", "trilinear_neighbours", "scatter_mean"),
    *("devoxelize", "devoxelize_gradient", "sparse_conv", "sparse_conv_weight_gradient"),
    *(
        "bev_pool",
        "lift_splat",
        "lift_splat_backward",
        "rotated_iou",
        "rotated_nms",
        "temporal_shift",
        "voxelize",
    ),
)


@pytest.fixture
def _undecided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(backend.DISPATCH_VARIABLE, raising=False)
    backend.triton_installed.cache_clear()
    yield
    backend.triton_installed.cache_clear()


@pytest.fixture
def _triton(monkeypatch: pytest.MonkeyPatch, _undecided: None) -> None:
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))


@pytest.fixture
def _no_triton(monkeypatch: pytest.MonkeyPatch, _undecided: None) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)


@pytest.mark.parametrize("name", OPERATORS)
def test_tensors_on_a_gpu_have_a_kernel_of_their_own(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"kestrel::{name}", "CUDA")


def on_gpu(module: str, name: str) -> Callable[..., object]:
    """Return what an operator runs for tensors on a GPU."""
    function: Callable[..., object] = getattr(import_module(f"kestrel.ops.{module}"), name)
    return function


def cases() -> Iterator[tuple[str, str, str, tuple[object, ...]]]:
    """Operator, its module, what it runs on a GPU, arguments."""
    voxels = random_voxels(40)
    keys, found = voxels.keys, voxels.submanifold_map(torchsparse_offsets(3))
    features, points = torch.randn(len(voxels), 4), torch.rand(20, 4) * torch.tensor([2.0, 8, 8, 8])
    rows, weights = trilinear_neighbours(points, voxels)
    yield "find_keys", "coordinates", "find_keys_cuda", (keys, keys + 1)
    offsets = [axis for offset in torchsparse_offsets(3) for axis in offset]
    yield "submanifold_table", "neighbour_tables", "submanifold_table_cuda", (keys, offsets)
    arguments = points, keys, (1, 1, 1), None, None
    yield "trilinear_neighbours", "point_voxel", "trilinear_neighbours_cuda", arguments
    owner = rows[:, 0].contiguous()
    yield "scatter_mean", "point_voxel", "scatter_mean_cuda", (torch.randn(20, 4), owner, len(voxels))
    yield "devoxelize", "point_voxel", "devoxelize_cuda", (features, rows, weights)
    gradient = torch.randn(20, 4), rows, weights, len(voxels)
    yield "devoxelize_gradient", "point_voxel", "devoxelize_gradient_cuda", gradient
    weight = torch.randn(27, 4, 5)
    convolution = features, weight, None, None, found.gather, None, True
    yield "sparse_conv", "sparse_conv", "sparse_conv_cuda", convolution
    gradient = features, torch.randn(len(voxels), 5), found.gather
    yield "sparse_conv_weight_gradient", "sparse_conv", "weight_gradient_cuda", gradient
    yield "temporal_shift", "temporal_shift", "temporal_shift_cuda", (torch.randn(4, 8, 2, 2), 2, 2, 1, -1)
    limits = (0.5, 0.5, 0.5), (0.0, 0.0, 0.0, 8.0, 8.0, 8.0), "max", 2, 15
    yield "voxelize", "voxelize", "voxelize_cuda", (points[:, 1:], *limits)
    yield "rotated_iou", "rotated_iou", "rotated_iou_cuda", (torch.rand(4, 5), torch.rand(3, 5))
    suppression = torch.rand(9, 5), torch.zeros(9, dtype=torch.int64), 0.3, 9
    yield "rotated_nms", "nms", "rotated_nms_cuda", suppression
    yield "bev_pool", "bev_pool", "bev_pool_cuda", (features, torch.arange(len(voxels)) % 7 - 1, 6)
    cells = torch.randint(-1, 6, (1, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    tables = index_reference(cells, 6)
    maps = torch.rand(1, 3, 2, 2), torch.randn(1, 4, 2, 2)
    yield "lift_splat", "bev_pool", "lift_splat_cuda", (*maps, *tables, 3, 2)
    upstream = torch.randn(6, 4)
    yield "lift_splat_backward", "bev_pool", "lift_splat_backward_cuda", (upstream, *maps, *tables)


@pytest.mark.usefixtures("_no_triton")
@pytest.mark.parametrize(
    ("operator", "module", "name", "arguments"), [pytest.param(*case, id=case[0]) for case in cases()]
)
def test_without_triton_every_operator_gives_what_it_gives_on_a_cpu(
    operator: str, module: str, name: str, arguments: tuple[object, ...]
) -> None:
    expected = getattr(torch.ops.kestrel, operator)(*arguments)
    torch.testing.assert_close(on_gpu(module, name)(*arguments), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("_no_triton")
def test_without_triton_one_log_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert not backend.triton_for(torch.zeros(1))
    assert [record.message.split(",")[0] for record in caplog.records] == ["Triton is not installed"]


@pytest.mark.usefixtures("_triton")
def test_the_reference_can_be_forced_on_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.triton_for(torch.zeros(1))
    backend.triton_installed.cache_clear()
    monkeypatch.setenv(backend.DISPATCH_VARIABLE, backend.TORCH_LEVEL)
    assert not backend.triton_for(torch.zeros(1))


@pytest.mark.usefixtures("_triton")
def test_dtypes_that_differ_or_that_triton_does_not_take_run_in_torch() -> None:
    assert not backend.triton_for(torch.zeros(1, dtype=torch.float64))
    assert not backend.triton_for(torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16))
    assert backend.triton_for(torch.zeros(1), None)


def test_a_level_that_was_asked_for_by_name_is_not_silently_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = ModuleType("kestrel_kernels.native")
    old.interface_version = backend.INTERFACE_VERSION - 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kestrel_kernels", ModuleType("kestrel_kernels"))
    monkeypatch.setitem(sys.modules, "kestrel_kernels.native", old)
    monkeypatch.delenv(backend.DISPATCH_VARIABLE, raising=False)
    assert backend._load_native() is None
    assert "install both again" in caplog.text
    monkeypatch.setenv(backend.DISPATCH_VARIABLE, "avx2")
    with pytest.raises(SetupError, match="KESTREL_DISPATCH: expected compiled kernels with interface"):
        backend._load_native()
