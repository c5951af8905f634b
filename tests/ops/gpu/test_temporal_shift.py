# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from kestrel.ops.temporal_shift import temporal_shift_reference
from tests.ops.test_temporal_shift import layouts


@pytest.mark.parametrize("steps", [(1, -1), (-1, 0), (-1, 1), (1, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_shift_equals_the_reference(device: str, steps: tuple[int, int], dtype: torch.dtype) -> None:
    from kestrel.ops.gpu import temporal_shift as gpu

    x = torch.randn(12, 10, 3, 7, device=device).to(dtype)
    for clip, fold in ((4, 3), (1, 2), (12, 0)):
        expected = temporal_shift_reference(x, clip, fold, *steps)
        assert torch.equal(gpu.temporal_shift(x, clip, fold, *steps), expected)


@pytest.mark.parametrize("which", range(8))
def test_the_result_lies_in_memory_as_the_input_does(device: str, which: int) -> None:
    from kestrel.ops.gpu import temporal_shift as gpu

    x = layouts()[which].to(device)
    found = gpu.temporal_shift(x, 3, 2, 1, -1)
    assert torch.equal(found, temporal_shift_reference(x, 3, 2, 1, -1))
    assert found.stride() == torch.empty_like(x).stride()


def test_no_frames_and_other_memory_formats(device: str) -> None:
    from kestrel.ops.gpu import temporal_shift as gpu

    assert gpu.temporal_shift(torch.zeros(0, 8, 2, 2, device=device), 4, 2, 1, -1).shape == (0, 8, 2, 2)
    x = torch.randn(4, 8, 3, 5, device=device).to(memory_format=torch.channels_last)
    expected = temporal_shift_reference(x, 2, 2, 1, -1)
    found = gpu.temporal_shift(x, 2, 2, 1, -1)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride() == x.stride()
    sliced = torch.randn(4, 8, 3, 5, device=device)[..., ::2]
    assert torch.equal(gpu.temporal_shift(sliced, 2, 2, 1, -1), temporal_shift_reference(sliced, 2, 2, 1, -1))
