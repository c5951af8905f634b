# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The operator beneath the temporal shift; what moves where is in tests/nn."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from kestrel.errors import InputError
from kestrel.ops import temporal_shift, temporal_shift_step


@pytest.mark.parametrize("shape", [(8, 8, 0, 4), (0, 8, 2, 2), (8, 8, 3, 0), (0, 8)])
def test_what_has_no_elements_is_shifted_too(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape, requires_grad=True)
    shifted = temporal_shift(x, 8)
    assert shifted.shape == shape
    shifted.sum().backward()


@pytest.mark.parametrize("fold_div", [9, 0, -1])
def test_channels_of_which_none_can_move_are_refused(fold_div: int) -> None:
    x = torch.zeros(4, 8, 2, 2)
    assert temporal_shift(x, 4, 8).shape == x.shape
    with pytest.raises(InputError, match=r"temporal shift: expected \(N, C >= fold_div, ...\)"):
        temporal_shift(x, 4, fold_div)
    with pytest.raises(InputError, match="temporal shift"):
        temporal_shift_step(x, None, fold_div)


def layouts() -> list[torch.Tensor]:
    """Tensors of several orders in memory, with and without gaps."""
    x = torch.randn(6, 8, 3, 5)
    return [
        *(x, x.to(memory_format=torch.channels_last), x[..., ::2], x.transpose(2, 3), x.transpose(0, 1)[:6]),
        torch.randn(6, 8, 2, 3, 5).to(memory_format=torch.channels_last_3d),
        *(torch.randn(8, 6).T, torch.randn(6, 4, 8).transpose(1, 2)),
    ]


@pytest.mark.parametrize("which", range(8))
def test_the_result_lies_in_memory_as_it_does_without_values(which: int) -> None:
    x = layouts()[which]
    with FakeTensorMode() as mode:
        expected = temporal_shift(mode.from_tensor(x), 3, 4)
    assert temporal_shift(x, 3, 4).stride() == expected.stride()
