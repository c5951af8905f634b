# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from kestrel.ops.voxelize import voxelize_cuda, voxelize_reference
from tests.ops.test_voxelize import RANGE, SIZE


@pytest.mark.parametrize("reduction", ["first", "mean", "max"])
@pytest.mark.parametrize(("max_points", "max_voxels"), [(1 << 31, 1 << 31), (3, 20)])
def test_voxels_equal_the_reference(
    device: str, reduction: str, max_points: int, max_voxels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = torch.randn(250, 5, generator=torch.Generator().manual_seed(0)).to(device)
    points[7, 4] = points[9, 1] = float("nan")
    points[8, 0] = 1e30
    points[10, 2] = float("-inf")
    arguments = (points, SIZE, RANGE, reduction, max_points, max_voxels)
    expected = voxelize_reference(*arguments)
    monkeypatch.setitem(voxelize_cuda.__globals__, "voxelize_reference", None)
    for found, wanted in zip(voxelize_cuda(*arguments), expected, strict=True):
        torch.testing.assert_close(found, wanted, equal_nan=True)


def test_points_on_the_borders_of_cells_go_where_the_reference_puts_them(device: str) -> None:
    from kestrel.ops.gpu import voxelize as gpu
    from kestrel.ops.voxelize import _cells

    steps = torch.arange(-40, 40, device=device)
    xyz = torch.stack((steps * 0.1, steps.flip(0) * 0.1, steps * 0.025), 1).float()
    size, bounds = (0.1, 0.3, 0.05), (-3.3, -3.3, -0.9, 3.3, 3.3, 0.9)
    for found, wanted in zip(
        gpu.cells_of(xyz, size, bounds, (66, 22, 36)), _cells(xyz, size, bounds), strict=True
    ):
        assert torch.equal(found, wanted)


def test_no_points_give_no_voxels(device: str) -> None:
    empty = torch.zeros(0, 4, device=device)
    features, *_, rows = voxelize_cuda(empty, SIZE, RANGE, "max", 5, 5)
    assert features.shape == (0, 4)
    assert rows.shape == (0,)
