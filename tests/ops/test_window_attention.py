# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Attention within windows: compiled against torch, and what either may not do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kestrel.errors import InputError
from kestrel.ops import window_attention
from kestrel.ops.window_attention import window_attention_reference
from tests.ops.levels import needs_kernels, on_every_level


def request(
    height: int = 9, width: int = 13, heads: int = 3, depth: int = 20, window: int = 4, batch: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, those of the border, and a bias; scores differ by several units."""
    generator = torch.Generator().manual_seed(height * width + depth)
    channels = 3 * heads * depth
    qkv = 1.5 * torch.randn(batch, height, width, channels, generator=generator)
    padding = torch.randn(channels, generator=generator)
    return qkv, padding, torch.randn(heads, window**2, window**2, generator=generator)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("height", "width", "heads", "depth", "window", "shift"),
    [
        (14, 21, 2, 32, 7, 0),
        (14, 21, 2, 32, 7, 3),
        (9, 13, 3, 20, 4, 2),
        (2, 3, 1, 5, 3, 1),
        (7, 7, 1, 64, 7, 6),
    ],
)
def test_all_levels_and_thread_counts_agree_with_torch(
    dtype: torch.dtype, height: int, width: int, heads: int, depth: int, window: int, shift: int
) -> None:
    qkv, padding, bias = request(height, width, heads, depth, window)
    qkv, padding = qkv.to(dtype), padding.to(dtype)
    wanted = window_attention_reference(qkv.double(), padding.double(), bias.double(), window, shift)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8
    for found in on_every_level(lambda: window_attention(qkv, padding, bias, window, shift)).values():
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)


@needs_kernels
def test_what_is_not_finite_stays_in_its_window() -> None:
    qkv, padding, bias = request(8, 8, window=4)
    qkv[0, 1, 1] = torch.nan
    found = window_attention(qkv, padding, bias, 4, 0)
    assert found[0, :4, :4].isnan().all()
    assert found.isnan().sum() == found[0, :4, :4].numel()


def test_gradients_go_through_the_torch_form() -> None:
    parts = [part.double().requires_grad_() for part in request(3, 2, heads=1, depth=2, window=2, batch=1)]
    assert torch.autograd.gradcheck(lambda *given: window_attention_reference(*given, 2, 1), parts)


def test_shapes_that_do_not_fit_are_refused() -> None:
    qkv, padding, bias = request()
    for wrong in (
        (qkv[0], padding, bias),
        (qkv, padding[1:], bias),
        (qkv, padding, bias[:, 1:]),
        (qkv, padding, bias[:, :, 1:]),
    ):
        with pytest.raises(InputError, match="qkv, padding and bias"):
            window_attention(*wrong, 4, 0)
    with pytest.raises(InputError, match=r"P = 9"):
        window_attention(qkv, padding, bias, 3, 0)
    for shift in (-1, 4):
        with pytest.raises(InputError, match=r"shift.*0 to 3"):
            window_attention(qkv, padding, bias, 4, shift)
