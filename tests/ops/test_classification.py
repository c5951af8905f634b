# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The likeliest class is that of softmax and its maximum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kestrel.errors import InputError
from kestrel.ops import most_likely
from kestrel.ops.classification import most_likely_reference
from tests.ops.levels import needs_kernels, on_every_level


def logits(rows: int, classes: int, scale: float = 4.0) -> Tensor:
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(rows + classes))


@pytest.mark.parametrize("classes", [1, 2, 16, 19, 256])
@pytest.mark.parametrize("rows", [0, 1, 15, 33, 1000])
@pytest.mark.parametrize("scale", [0.01, 4.0, 100.0])
def test_equals_softmax_and_its_maximum(rows: int, classes: int, scale: float) -> None:
    given = logits(rows, classes, scale)
    label, probability = most_likely(given)
    best = given.double().softmax(1).max(1)
    assert (label.dtype, probability.dtype) == (torch.uint8, torch.float32)
    torch.testing.assert_close(probability.double(), best.values, rtol=2e-6, atol=0)
    assert torch.equal(label.long(), given.argmax(1) if rows else label.long())


def test_the_first_of_equal_ones_and_what_is_not_a_number() -> None:
    given = torch.tensor([[1.0, 3.0, 3.0], [0.0, 0.0, 0.0], [1.0, torch.nan, 2.0], [-1e30, 0.0, 1e30]])
    label, probability = most_likely(given)
    assert label[[0, 1, 3]].tolist() == [1, 0, 2]
    assert probability.isnan().tolist() == [False, False, True, False]
    assert probability[1:].tolist()[0::2] == pytest.approx([1 / 3, 1.0])


@needs_kernels
def test_all_levels_and_thread_counts_agree() -> None:
    given = logits(5000, 16)
    wanted = most_likely_reference(given)
    for label, probability in on_every_level(lambda: most_likely(given)).values():
        assert torch.equal(label, wanted[0])
        torch.testing.assert_close(probability, wanted[1], rtol=2e-6, atol=0)


def test_logits_that_softmax_rounds_to_one_are_still_told_apart() -> None:
    given = torch.tensor([[0.0, 1e-9, 0.0]])
    for label, probability in (most_likely(given), most_likely_reference(given)):
        assert label.tolist() == [1]
        assert probability.tolist() == pytest.approx([1 / 3])


def test_rows_that_lie_apart_are_read_where_they_are() -> None:
    given = logits(40, 32)
    torch.testing.assert_close(most_likely(given[::2, 3:19]), most_likely(given[::2, 3:19].clone()))


@pytest.mark.parametrize(
    "wrong", [torch.zeros(4), torch.zeros(4, 0), torch.zeros(4, 257), torch.zeros(4, 3).double()]
)
def test_other_shapes_and_types_are_refused(wrong: Tensor) -> None:
    with pytest.raises(InputError, match="logits"):
        most_likely(wrong)
