# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import kestrel.ops.neighbour_tables as tables
from kestrel.errors import InputError
from kestrel.ops import CoordinateSet, centred_offsets, coordinate_set, torchsparse_offsets
from kestrel.ops.coordinates import pack
from kestrel.ops.neighbour_tables import strided_reference, submanifold_reference
from tests.ops.levels import needs_kernels, on_every_level
from tests.ops.voxels import random_indices, random_voxels

CUBE = torchsparse_offsets(3)
HALF = torchsparse_offsets(2)
GAPS = ((2, 0, -1), (0, 0, -3), (0, 1, 1), (0, 0, 0), (0, -1, -1), (0, 0, 3), (-2, 0, 1))


def brute_force(source: CoordinateSet, target: CoordinateSet, offsets, stride) -> torch.Tensor:
    row_of = {tuple(index): row for row, index in enumerate(source.indices.tolist())}
    table = [
        [row_of.get((b, *(s * c + d for s, c, d in zip(stride, cell, offset, strict=True))), -1)
         for b, *cell in target.indices.tolist()]
        for offset in offsets
    ]  # fmt: skip
    return torch.tensor(table, dtype=torch.int32)


def test_offsets_have_the_order_of_the_checkpoints():
    assert CUBE[:4] == ((-1, -1, -1), (0, -1, -1), (1, -1, -1), (-1, 0, -1))
    assert HALF[:3] == ((0, 0, 0), (0, 0, 1), (0, 1, 0))


@pytest.mark.parametrize("offsets", [CUBE, torchsparse_offsets(5), centred_offsets((1, 1, 3)), GAPS])
def test_a_submanifold_map_finds_every_neighbour_of_the_same_cloud(offsets):
    voxels = random_voxels(400, extent=9, batch=3)
    found = voxels.submanifold_map(offsets)
    assert torch.equal(found.gather, brute_force(voxels, voxels, offsets, (1, 1, 1)))
    assert torch.equal(found.scatter, found.gather.flip(0))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_large_set_has_the_same_map_as_a_search_for_each_neighbour(threads):
    before, voxels = torch.get_num_threads(), random_voxels(30000, extent=40)
    torch.set_num_threads(threads)
    table = voxels.submanifold_map(CUBE).gather
    torch.set_num_threads(before)
    assert torch.equal(table, submanifold_reference(voxels.keys, list(itertools.chain(*CUBE))))
    sets = {key: row for row, key in enumerate(voxels.keys.tolist())}
    for k in (0, 7, 13, 25):
        wanted = pack(voxels.indices + torch.tensor((0, *CUBE[k])))
        assert table[k].tolist() == [sets.get(key, -1) for key in wanted.tolist()]


def test_halving_keeps_every_non_empty_parent_also_for_negative_indices():
    voxels, _ = coordinate_set(random_indices(300, extent=9, low=-5))
    coarse, found = voxels.downsample(HALF, (2, 2, 2))
    parents = voxels.indices.clone()
    parents[:, 1:] = parents[:, 1:].div(2, rounding_mode="floor")
    assert torch.equal(coarse.indices, torch.unique(parents, dim=0))
    assert coarse.stride == (2, 2, 2)
    assert torch.equal(found.gather, brute_force(voxels, coarse, HALF, (2, 2, 2)))
    assert torch.equal(found.scatter.ge(0).sum(0), torch.ones(len(voxels), dtype=torch.int64))


def test_a_window_of_three_with_parents_by_floor_reads_what_is_there():
    voxels = random_voxels(300, extent=9)
    coarse, found = voxels.downsample(CUBE, (2, 2, 2))
    assert len(coarse) == len(voxels.downsample(HALF, (2, 2, 2))[0])
    assert torch.equal(found.gather, brute_force(voxels, coarse, CUBE, (2, 2, 2)))


@pytest.mark.parametrize(
    ("offsets", "stride", "shape"),
    [
        (centred_offsets((3, 3, 3)), (2, 2, 2), (5, 5, 5)),
        (tuple((x, y, z + 1) for x, y, z in centred_offsets((3, 3, 3))), (2, 2, 2), (5, 5, 4)),
        (((0, 0, 0), (0, 0, 1), (0, 0, 2)), (1, 1, 2), (9, 9, 4)),
    ],
)
def test_a_grid_with_borders_has_every_output_that_an_input_reaches(offsets, stride, shape):
    voxels, _ = coordinate_set(random_indices(60, extent=9), spatial_shape=(9, 9, 9))
    coarse, found = voxels.downsample(offsets, stride, dilate=True)
    reached = {
        (b, *(c // s for c, s in zip(moved, stride, strict=True)))
        for b, *cell in voxels.indices.tolist()
        for offset in offsets
        for moved in [[c - d for c, d in zip(cell, offset, strict=True)]]
        if all(c % s == 0 and 0 <= c // s < n for c, s, n in zip(moved, stride, shape, strict=True))
    }
    assert coarse.spatial_shape == shape
    assert [tuple(row) for row in coarse.indices.tolist()] == sorted(reached)
    assert torch.equal(found.gather, brute_force(voxels, coarse, offsets, stride))
    inputs = (found.gather >= 0).sum()
    assert (found.scatter >= 0).sum() == inputs


def halved(shape: tuple[int, int, int], *cells: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the voxels and the map of a layer of kernel 2 and stride 2."""
    voxels, _ = coordinate_set(torch.tensor([(0, *cell) for cell in cells]), spatial_shape=shape)
    coarse, found = voxels.downsample(HALF, (2, 2, 2))
    assert coarse.spatial_shape == tuple(size // 2 for size in shape)
    keys, gather, scatter = strided_reference(
        voxels.keys, HALF, (2, 2, 2), coarse.spatial_shape, dilate=False
    )
    assert torch.equal(coarse.keys, keys)
    assert torch.equal(found.gather, gather)
    assert torch.equal(found.scatter, scatter)
    return coarse.indices, found.scatter


def dropped() -> tuple[torch.Tensor, torch.Tensor]:
    return halved((5, 5, 5), (0, 0, 0), (3, 3, 3), (4, 4, 4), (1, 4, 1))


def test_a_voxel_behind_the_last_window_of_a_grid_leads_nowhere():
    indices, scatter = dropped()
    assert indices.tolist() == [[0, 0, 0, 0], [0, 1, 1, 1]]
    assert scatter.amax(0).tolist() == [0, -1, 1, -1]
    assert halved((6, 6, 6), (0, 0, 0), (4, 4, 4))[0].tolist() == [[0, 0, 0, 0], [0, 2, 2, 2]]


@needs_kernels
def test_all_levels_agree_on_the_border_of_a_grid():
    expected = dropped()
    assert all(torch.equal(each, other) for found in on_every_level(dropped).values()
               for each, other in zip(found, expected, strict=True))  # fmt: skip


def test_a_window_of_three_with_parents_by_floor_stays_within_the_grid():
    offsets = tuple(itertools.product(range(3), repeat=3))  # of 6 cells two windows have all of theirs
    voxels, _ = coordinate_set(random_indices(200, extent=6), spatial_shape=(6, 6, 6))
    coarse, _ = voxels.downsample(offsets, (2, 2, 2))
    assert coarse.spatial_shape == (2, 2, 2)
    assert int(coarse.indices[:, 1:].max()) == 1


def test_layers_on_the_same_voxels_share_maps_and_coarser_sets():
    voxels = random_voxels()
    assert voxels.submanifold_map(CUBE) is voxels.submanifold_map(torchsparse_offsets(3))
    assert voxels.downsample(HALF, (2, 2, 2))[0] is voxels.downsample(HALF, (2, 2, 2))[0]


def test_no_voxels_give_empty_maps():
    voxels, rows = coordinate_set(torch.zeros(0, 4, dtype=torch.int64))
    assert len(voxels) == len(rows) == 0
    assert voxels.submanifold_map(CUBE).gather.shape == (27, 0)
    coarse, found = voxels.downsample(HALF, (2, 2, 2))
    assert len(coarse) == 0
    assert found.scatter.shape == (8, 0)


def test_sets_and_maps_can_be_traced_without_values():
    with FakeTensorMode(shape_env=ShapeEnv()):
        voxels, rows = coordinate_set(torch.zeros(50, 4, dtype=torch.int64))
        coarse, found = voxels.downsample(HALF, (2, 2, 2))
        assert rows.shape == (50,)
        assert found.gather.shape[1] == coarse.keys.shape[0]
        assert found.scatter.shape[1] == voxels.keys.shape[0]


def test_a_submanifold_layer_needs_offsets_that_mirror_each_other():
    for offsets in (HALF, CUBE[:-1], CUBE[:-2]):
        with pytest.raises(InputError, match="offsets of a submanifold layer"):
            random_voxels(20).submanifold_map(offsets)


@pytest.mark.parametrize(
    "offsets",
    [((0, 0, 1), (0, 0, 1), (0, 0, 0), (0, 0, -1), (0, 0, -1)), ((0, 0, 0),) * 3],
)
def test_an_offset_that_is_there_twice_is_refused(offsets):
    voxels = random_voxels(20)
    with pytest.raises(InputError, match=r"offsets of a kernel: expected each once, found .*\(0, 0, \d\)"):
        voxels.submanifold_map(offsets)
    for dilate in (False, True):
        with pytest.raises(InputError, match="offsets of a kernel"):
            voxels.downsample(offsets, (2, 2, 2), dilate=dilate)


@needs_kernels
def test_more_pairs_than_there_is_room_for_are_refused():
    offsets, keys = [0, 0, 0] * 3, random_voxels(20).keys
    with pytest.raises(InputError, match="offsets of a strided layer"):
        tables.strided_tables(keys, offsets, [1, 1, 1], [], True)


def test_keys_in_which_nothing_can_be_found_are_no_set():
    keys = random_voxels(20).keys
    for wrong in (keys.int(), keys[:, None]):
        with pytest.raises(InputError, match=r"keys of voxels: expected torch\.int64 \(N,\)"):
            CoordinateSet(wrong)
    for wrong, row in ((keys.flip(0), 1), (keys[[0, 1, 1]], 2), (keys[:3] - keys[0] - 1, 0)):
        with pytest.raises(InputError, match=rf"keys of voxels: expected ascending .* in row {row}"):
            CoordinateSet(wrong)
    with pytest.raises(InputError, match="stride of voxels"):
        CoordinateSet(keys, (2, 2, 0))
    apart = torch.stack((keys, keys), 1)[:, 0]
    assert torch.equal(
        CoordinateSet(apart).submanifold_map(CUBE).gather, random_voxels(20).submanifold_map(CUBE).gather
    )


@pytest.mark.parametrize(
    ("offsets", "stride"),
    [
        (((0, 0, 0), (2, 0, 0)), (2, 1, 1)),
        (tuple(itertools.product((-2, 0, 2), repeat=3)), (2, 2, 2)),
        (((0, 0, 0), (0, 0, 1), (0, 0, 3), (0, 0, 5)), (1, 1, 2)),
    ],
)
def test_offsets_with_gaps_reach_every_output_of_a_strided_layer(offsets, stride):
    source = random_voxels(150)
    coarse, found = source.downsample(offsets, stride, dilate=True)
    reached = {
        (batch, *((c - o) // s for c, o, s in zip(cell, offset, stride, strict=True)))
        for batch, *cell in source.indices.tolist()
        for offset in offsets
        if all((c - o) % s == 0 for c, o, s in zip(cell, offset, stride, strict=True))
    }
    assert {tuple(index) for index in coarse.indices.tolist()} == reached
    assert torch.equal(found.gather, brute_force(source, coarse, offsets, stride))
