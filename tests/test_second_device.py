# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The device that the tests of pipelines run on refuses what a GPU refuses, and allows what it allows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from kestrel.ops import coordinate_set
from tests.second_device import SECOND, second_device

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which does so by itself")

HERE = torch.arange(6.0).view(2, 3)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda there: there + HERE,
        lambda there: HERE + there,
        lambda there: there.add_(HERE),
        lambda there: torch.cat((there, HERE)),
        lambda there: torch.stack((there.sum(), HERE.sum())),
        lambda there: there @ HERE.T,
        lambda there: torch.where(there > 0, there, HERE),
        lambda there: HERE[there[0].long()],
        lambda there: torch.nn.functional.linear(there, HERE),
        lambda there: there.index_add_(0, torch.tensor([0, 1]), there),
        lambda there: there.index_select(0, torch.tensor([0])),
    ],
)
def test_tensors_of_both_devices_do_not_mix(mixed: Callable[[Tensor], object]) -> None:
    with second_device(), pytest.raises(RuntimeError, match="expected all tensors on cuda:0"):
        mixed(HERE.to(SECOND))


def test_numpy_sees_no_tensor_of_the_device() -> None:
    with second_device():
        there = HERE.to(SECOND)
        for crossing in (there.numpy, lambda: np.asarray(there)):
            with pytest.raises(RuntimeError, match="numpy"):
                crossing()


@pytest.mark.parametrize(
    "allowed",
    [
        lambda x: x * HERE.sum(),
        lambda x: x.clamp(max=torch.tensor(2.0)),
        lambda x: x[torch.tensor([1, 0])],
        lambda x: x[torch.tensor([True, False])],
        lambda x: x.clone().copy_(HERE + 1),
        lambda x: x.masked_fill(x > 1, torch.tensor(7.0)),
        lambda x: x.new_tensor([1.0, 2.0]) + x.new_zeros(2),
        lambda x: torch.zeros(2, 3, device=x.device) + x,
        lambda x: x.clone().add_(1)[:, 1:].mul_(2),
    ],
)
def test_what_a_gpu_allows_gives_what_the_cpu_gives(allowed: Callable[[Tensor], Tensor]) -> None:
    with second_device():
        found = allowed(HERE.to(SECOND))
        assert found.device == SECOND
        back = found.cpu()
    assert type(back) is Tensor
    assert torch.equal(back, allowed(HERE))


def test_what_is_changed_in_place_is_changed_through_every_view() -> None:
    with second_device():
        there = torch.zeros(2, 3).to(SECOND)
        there[1] += 1
        there.view(-1)[:1].fill_(5)
        assert there.tolist() == [[5, 0, 0], [1, 1, 1]]


def test_operators_of_kestrel_run_on_the_device() -> None:
    cells = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3], [0, 0, 0, 0]])
    with second_device():
        voxels, rows = coordinate_set(cells.to(SECOND))
        table = voxels.submanifold_map([(0, 0, -1), (0, 0, 0), (0, 0, 1)]).gather
        assert voxels.keys.device == rows.device == table.device == SECOND
        assert rows.tolist() == [1, 1, 0]
