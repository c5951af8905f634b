# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from kestrel.ops.window_attention import window_attention_cuda, window_attention_reference
from tests.ops.test_window_attention import request as scene


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("height", "width", "heads", "depth", "window", "shift"),
    [(7, 14, 2, 32, 7, 0), (9, 13, 3, 20, 4, 2), (2, 3, 1, 5, 3, 1), (7, 7, 1, 64, 7, 6)],
)
def test_what_cells_attend_to_equals_the_reference(
    device: str,
    dtype: torch.dtype,
    height: int,
    width: int,
    heads: int,
    depth: int,
    window: int,
    shift: int,
) -> None:
    qkv, padding, bias = (part.to(device) for part in scene(height, width, heads, depth, window, batch=1))
    qkv, padding = qkv.to(dtype), padding.to(dtype)
    found = window_attention_cuda(qkv, padding, bias, window, shift)
    assert found.dtype == dtype
    wanted = window_attention_reference(qkv.double(), padding.double(), bias.double(), window, shift)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-6
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)
