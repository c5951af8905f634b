# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The kernels together: a network that runs on nothing else."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
import torch
from torch import Tensor

from kestrel.ops import (
    centred_offsets,
    coordinate_set,
    devoxelize,
    point_rows,
    point_to_voxel,
    sparse_conv,
    torchsparse_offsets,
    trilinear_neighbours,
)

IMPLEMENTATIONS: Mapping[str, Mapping[str, str]] = {
    "coordinates": {"find_keys": "find_keys_cuda"},
    "neighbour_tables": {"submanifold_table": "submanifold_table_cuda"},
    "point_voxel": {
        "trilinear_neighbours": "trilinear_neighbours_cuda",
        "scatter_mean": "scatter_mean_cuda",
        "devoxelize": "devoxelize_cuda",
        "devoxelize_gradient": "devoxelize_gradient_cuda",
    },
    "sparse_conv": {
        "sparse_conv": "sparse_conv_cuda",
        "sparse_conv_weight_gradient": "weight_gradient_cuda",
    },
}
"""By module of kestrel.ops, what an operator runs on a GPU."""


def _run(called: set[str], operator: str, function: Callable[..., object], *arguments: object) -> object:
    called.add(operator)
    return function(*arguments)


@pytest.fixture
def _like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Let tensors of the CPU take the ways of those of a GPU; yields the operators that were called."""
    library = torch.library.Library("kestrel", "IMPL")
    called: set[str] = set()
    monkeypatch.setattr("kestrel.ops.backend.NATIVE", None)
    for name, operators in IMPLEMENTATIONS.items():
        module = importlib.import_module(f"kestrel.ops.{name}")
        if hasattr(module, "NATIVE"):
            monkeypatch.setattr(module, "NATIVE", None)
        for operator, function in operators.items():

            def run(
                *arguments: object, of: str = operator, by: str = function, at: object = module
            ) -> object:
                called.add(of)
                return getattr(at, by)(*arguments)

            library.impl(operator, run, "CPU", allow_override=True)
    yield called
    library._destroy()


def point_voxel_network(positions: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the answer of a voxel branch between points, down and up, and the gradients of its weights."""
    points = torch.randn(len(positions), 4, generator=torch.Generator().manual_seed(1))
    voxels, _ = coordinate_set(positions.floor().long())
    coarse, down = voxels.downsample(torchsparse_offsets(2), (2, 2, 2))
    x = point_to_voxel(points, point_rows(positions, voxels), len(voxels))
    skip = sparse_conv(x, weights[0], voxels.submanifold_map(centred_offsets((1, 3, 1))), relu=True)
    x = sparse_conv(skip, weights[1], down)
    x = devoxelize(x, *trilinear_neighbours(positions, coarse))
    x = point_to_voxel(x, point_rows(positions, coarse), len(coarse))
    x = sparse_conv(x, weights[2], down.transposed(), residual=skip)
    x = devoxelize(x, *trilinear_neighbours(positions, voxels))
    return x, *torch.autograd.grad(x.square().mean(), weights)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run in Triton's interpreter")
def test_a_network_and_its_gradients_are_those_of_the_cpu(request: pytest.FixtureRequest) -> None:
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(24, 4, generator=generator) * torch.tensor([2.0, 4, 4, 3])
    positions[:, 0] = positions[:, 0].floor()
    shapes = (3, 4, 5), (8, 5, 6), (8, 6, 5)
    weights = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    expected = point_voxel_network(positions, weights)
    called = request.getfixturevalue("_like_a_gpu")
    for found, wanted in zip(point_voxel_network(positions, weights), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert called == {name for operators in IMPLEMENTATIONS.values() for name in operators}
