# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest
import torch

from kestrel.ops import centred_offsets, torchsparse_offsets
from kestrel.ops.coordinates import find_reference, offset_key
from kestrel.ops.neighbour_tables import submanifold_reference
from tests.ops.voxels import random_voxels


@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_the_search_equals_the_reference(device: str, count: int) -> None:
    from kestrel.ops.gpu import coordinates as gpu

    keys = random_voxels(count).keys.to(device)
    wanted = torch.cat((keys, keys + 1, keys - 1, torch.tensor([-1, 1 << 62], device=device)))
    assert torch.equal(gpu.find(keys, wanted), find_reference(keys, wanted))
    assert gpu.find(keys, wanted[:0]).shape == (0,)
    square = wanted[: len(wanted) // 2 * 2].view(2, -1)
    assert torch.equal(gpu.find(keys, square), find_reference(keys, square))


@pytest.mark.parametrize("offsets", [torchsparse_offsets(3), centred_offsets((1, 1, 3))])
def test_neighbour_tables_equal_the_reference(device: str, offsets: tuple[tuple[int, int, int], ...]) -> None:
    from kestrel.ops.gpu import kernel_map as gpu

    for count in (0, 1, 300):
        keys = random_voxels(count).keys.to(device)
        expected = submanifold_reference(keys, list(itertools.chain(*offsets)))
        assert torch.equal(gpu.submanifold_table(keys, [offset_key(each) for each in offsets]), expected)
