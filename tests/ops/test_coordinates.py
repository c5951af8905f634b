# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from kestrel.errors import InputError
from kestrel.ops.coordinates import COORDINATE_LIMIT, find, offset_key, pack, sort_unique, unpack
from tests.ops.voxels import random_indices


def test_keys_sort_like_the_tuples_and_unpack_to_them():
    indices = random_indices(500, extent=100, low=-50)
    keys = pack(indices)
    assert torch.equal(unpack(keys), indices)
    tuples = [tuple(row) for row in indices.tolist()]
    by_key = [tuples[i] for i in keys.argsort(stable=True).tolist()]
    assert by_key == sorted(tuples)


def test_the_neighbour_is_the_key_plus_a_constant_even_at_the_limits():
    corner = torch.tensor([[3, -COORDINATE_LIMIT, COORDINATE_LIMIT - 1, 0]])
    moved = pack(corner) + offset_key((-2, 2, -1))
    assert unpack(moved).tolist() == [[3, -COORDINATE_LIMIT - 2, COORDINATE_LIMIT + 1, -1]]


@pytest.mark.parametrize(
    "row", [[-1, 0, 0, 0], [4096, 0, 0, 0], [0, COORDINATE_LIMIT, 0, 0], [0, 0, 0, -COORDINATE_LIMIT - 1]]
)
def test_an_index_that_does_not_fit_is_refused(row):
    with pytest.raises(InputError, match="voxel indices"):
        pack(torch.tensor([row]))


def test_floating_point_indices_are_refused():
    with pytest.raises(InputError, match="integers"):
        pack(torch.zeros(2, 4))


@pytest.mark.parametrize(("count", "low"), [(0, 0), (1, 5), (3000, -7), (3000, -COORDINATE_LIMIT)])
def test_unique_keys_are_sorted_and_every_given_key_knows_its_place(count, low):
    keys = pack(random_indices(count, extent=14, batch=3, low=low))
    unique, inverse = sort_unique(keys)
    assert torch.equal(unique, torch.unique(keys))
    assert torch.equal(unique[inverse], keys)


def test_keys_far_apart_are_sorted_too():
    indices = torch.tensor([[4095, 60000, -60000, 1], [0, -60000, 60000, 2], [0, -60000, 60000, -60000]])
    unique, inverse = sort_unique(pack(indices))
    assert unpack(unique).tolist() == indices[[2, 1, 0]].tolist()
    assert inverse.tolist() == [2, 1, 0]


def test_missing_keys_are_minus_one():
    keys = torch.tensor([3, 5, 9])
    assert find(keys, torch.tensor([9, 4, 3, 100, -1])).tolist() == [2, -1, 0, -1, -1]
    assert find(keys[:0], torch.tensor([1, 2])).tolist() == [-1, -1]


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize(("extent", "low"), [(40, -20), (60_000, -30_000)], ids=["32 bits", "64 bits"])
def test_sorting_many_keys_gives_the_same_with_any_number_of_threads(threads, extent, low):
    before, indices = torch.get_num_threads(), random_indices(50_000, extent=extent, low=low)
    indices = torch.cat((indices, indices[:10_000]))
    torch.set_num_threads(threads)
    keys = pack(indices)
    unique, inverse = sort_unique(keys)
    torch.set_num_threads(before)
    assert torch.equal(unpack(keys), indices)
    expected, positions = torch.unique(keys, return_inverse=True)
    assert torch.equal(unique, expected)
    assert torch.equal(inverse, positions)


@pytest.mark.parametrize("keys", [torch.zeros(40_000), torch.arange(40_000), torch.arange(40_000, 0, -1)])
def test_keys_that_no_sample_splits_evenly_are_sorted_too(keys):
    indices = torch.nn.functional.pad(keys.long()[:, None], (2, 1))
    unique, inverse = sort_unique(pack(indices))
    expected, positions = torch.unique(pack(indices), return_inverse=True)
    assert torch.equal(unique, expected)
    assert torch.equal(inverse, positions)
