# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from kestrel.ops.classification import most_likely_reference


@pytest.mark.parametrize(("rows", "classes"), [(70, 19), (5, 1), (33, 256), (0, 4)])
def test_labels_and_probabilities_equal_the_reference(device: str, rows: int, classes: int) -> None:
    from kestrel.ops.gpu import classification as gpu

    logits = 4 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(rows), device="cpu")
    label, probability = gpu.most_likely(logits.to(device))
    wanted, likely = most_likely_reference(logits)
    assert torch.equal(label.cpu(), wanted)
    torch.testing.assert_close(probability.cpu(), likely)


def test_the_first_of_equal_ones_and_what_is_not_a_number(device: str) -> None:
    from kestrel.ops.gpu import classification as gpu

    logits = torch.tensor([[1.0, 3.0, 3.0], [0.0, torch.nan, 1.0], [200.0, -200.0, 0.0]], device=device)
    label, probability = gpu.most_likely(logits)
    assert (int(label[0]), int(label[2])) == (1, 0)
    assert probability[1].isnan()
    assert float(probability[2]) == 1.0
