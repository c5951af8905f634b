# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from kestrel.errors import InputError
from kestrel.nn.axis_sampler import AxisSampler
from kestrel.ops.axis_sampling import sample_axes_cuda, sample_axes_reference
from tests.ops.test_axis_sampling import EXTENT, PLACES, SIZES, grids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_equal_the_reference(device: str, dtype: torch.dtype) -> None:
    sampler = AxisSampler(PLACES, EXTENT, SIZES)
    lower, share = (
        [sampler.get_buffer(f"{name}{number}").to(device) for number in range(2)]
        for name in ("lower", "share")
    )
    given = [grid.to(device, dtype) for grid in grids((70, 7))]
    found = sample_axes_cuda(given, lower, share)
    wanted = sample_axes_reference([grid.float() for grid in given], lower, share)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(found.float(), wanted, rtol=tolerance, atol=tolerance)


def test_lines_beyond_a_grid_are_refused(device: str) -> None:
    grid = torch.zeros(1, 2, 4, 4, device=device)
    beyond = torch.tensor([0, 3], dtype=torch.int32, device=device)
    with pytest.raises(InputError, match="lines of a grid: expected 0 to 2, found 0 to 3"):
        sample_axes_cuda([grid], [beyond], [torch.zeros(2, device=device)])
