# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kestrel.ops import torchsparse_offsets
from kestrel.ops.sparse_conv import convolve_reference, weight_gradient_reference
from tests.ops.voxels import random_voxels

DTYPES = [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)]


def maps(device: str) -> list[Tensor]:
    """Tables of a submanifold, a strided and a transposed layer."""
    voxels = random_voxels(70, extent=6)
    coarse = voxels.downsample(torchsparse_offsets(2), (2, 2, 2))[1]
    submanifold = voxels.submanifold_map(torchsparse_offsets(3))
    return [table.to(device) for table in (submanifold.gather, coarse.gather, coarse.scatter)]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("channels", [(3, 5), (33, 40)])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("relu", [False, True])
def test_convolutions_equal_the_reference(
    device: str, channels: tuple[int, int], dtype: torch.dtype, tolerance: float, relu: bool
) -> None:
    from kestrel.ops.gpu import sparse_conv as gpu

    for table in maps(device):
        slices, outputs = table.shape
        features = random(int(table.max()) + 1, channels[0], seed=0).to(device, dtype)
        weight = random(slices, *channels, seed=1).to(device, dtype)
        bias, residual = random(channels[1], seed=2), random(outputs, channels[1], seed=3)
        extras = (bias.to(device, dtype), residual.to(device, dtype)) if relu else (None, None)
        found = gpu.sparse_conv(features, weight, *extras, table, relu)
        wide = [None if each is None else each.double() for each in (features, weight, *extras)]
        expected = convolve_reference(wide[0], wide[1], wide[2], wide[3], table, relu)
        assert found.dtype == dtype
        assert relative(found, expected) < tolerance


@pytest.mark.parametrize("channels", [(3, 5), (33, 40)])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_weight_gradients_equal_the_reference(
    device: str,
    channels: tuple[int, int],
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kestrel.ops.gpu import sparse_conv as gpu

    monkeypatch.setattr(gpu, "_PART", 64)  # several parts
    for table in maps(device):
        features = random(int(table.max()) + 1, channels[0], seed=0).to(device, dtype)
        gradient = random(table.shape[1], channels[1], seed=1).to(device, dtype)
        found = gpu.weight_gradient(features, gradient, table)
        expected = weight_gradient_reference(features.double(), gradient.double(), table)
        assert found.dtype == dtype
        assert relative(found, expected) < tolerance


def test_nan_is_passed_on_and_not_clipped_away(device: str) -> None:
    from kestrel.ops.gpu import sparse_conv as gpu

    table = maps(device)[0]
    features = random(table.shape[1], 4, seed=0).to(device)
    features[7, 3] = float("nan")
    found = gpu.sparse_conv(features, random(27, 4, 4, seed=1).to(device), None, None, table, True)
    assert torch.equal(found.isnan().any(1), (table == 7).any(0))


def test_no_outputs_and_no_inputs(device: str) -> None:
    from kestrel.ops.gpu import sparse_conv as gpu

    features, gradient = torch.zeros(0, 4, device=device), torch.zeros(0, 6, device=device)
    table = torch.zeros(27, 0, dtype=torch.int32, device=device)
    weight = torch.ones(27, 4, 6, device=device)
    assert gpu.sparse_conv(features, weight, None, None, table, False).shape == (0, 6)
    found = gpu.weight_gradient(features, gradient, table)
    assert found.shape == (27, 4, 6)
    assert not found.any()
    alone = torch.full((27, 3), -1, dtype=torch.int32, device=device)
    assert not gpu.sparse_conv(features, weight, None, None, alone, False).any()
