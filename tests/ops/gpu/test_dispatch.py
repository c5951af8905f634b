# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Which implementation an operator picks for tensors on a GPU."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest
import torch

from kestrel.ops import backend
from kestrel.ops.temporal_shift import temporal_shift_cuda, temporal_shift_reference

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
def _undecided() -> Iterator[None]:
    backend.triton_installed.cache_clear()
    yield
    backend.triton_installed.cache_clear()


@pytest.mark.parametrize("name", OPERATORS)
def test_tensors_on_a_gpu_have_a_kernel_of_their_own(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"kestrel::{name}", "CUDA")


@pytest.mark.usefixtures("_undecided")
def test_without_triton_the_reference_runs_and_one_log_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    x = torch.randn(4, 8, 2, 2)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(temporal_shift_cuda(x, 2, 2, 1, -1), temporal_shift_reference(x, 2, 2, 1, -1))
    assert [record.message.split(",")[0] for record in caplog.records] == ["Triton is not installed"]


@pytest.mark.usefixtures("_undecided")
def test_the_reference_can_be_forced_on_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.triton_for(torch.zeros(1))
    backend.triton_installed.cache_clear()
    monkeypatch.setenv(backend.DISPATCH_VARIABLE, backend.TORCH_LEVEL)
    assert not backend.triton_for(torch.zeros(1))


def test_dtypes_that_differ_or_that_triton_does_not_take_run_in_torch() -> None:
    assert not backend.triton_for(torch.zeros(1, dtype=torch.float64))
    assert not backend.triton_for(torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16))
    assert backend.triton_for(torch.zeros(1), None)
