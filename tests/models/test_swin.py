# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Swin: windows, shifts and padding."""

from __future__ import annotations

import pytest
import torch

from kestrel.engine.folded import fold
from kestrel.models.swin import SwinTransformer
from kestrel.nn.patch_merging import PatchMerging
from kestrel.nn.shifted_windows import ShiftedWindows


def swin() -> SwinTransformer:
    torch.manual_seed(0)
    return SwinTransformer(8, depths=(2, 2), num_heads=(2, 2), window_size=3, out_indices=(0, 1)).eval()


@pytest.mark.parametrize("size", [(48, 48), (33, 50)])
def test_every_stage_halves_the_resolution_of_any_picture(size: tuple[int, int]) -> None:
    fine, coarse = swin()(torch.randn(2, 3, *size))
    rows, columns = -(-size[0] // 4), -(-size[1] // 4)
    assert fine.shape == (2, 8, rows, columns)
    assert coarse.shape == (2, 16, -(-rows // 2), -(-columns // 2))


def test_windows_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    layer = ShiftedWindows(4, 2, window_size=3, shift=0)
    x = torch.randn(1, 6, 6, 4)
    changed = x.clone()
    changed[:, :3, :3] += 1
    difference = (layer(changed) - layer(x)).abs().sum(dim=-1)[0] > 1e-6
    assert difference[:3, :3].all()
    assert not difference[3:].any()
    assert not difference[:, 3:].any()


def test_shifted_windows_do_not_wrap_around_the_border() -> None:
    torch.manual_seed(0)
    layer = ShiftedWindows(4, 2, window_size=3, shift=1)
    x = torch.randn(1, 6, 6, 4)
    changed = x.clone()
    changed[:, 0, 0] += 1
    difference = (layer(changed) - layer(x)).abs().sum(dim=-1)[0] > 1e-6
    assert difference.nonzero().tolist() == [[0, 0]]


def test_merged_channels_are_ordered_channel_row_column() -> None:
    merging = PatchMerging(2)
    merging.norm = torch.nn.Identity()  # type: ignore[assignment]
    merging.reduction = torch.nn.Identity()  # type: ignore[assignment]
    x = torch.arange(8.0).view(1, 2, 2, 2)
    assert merging(x).flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_merging_place_by_place_answers_the_same() -> None:
    torch.manual_seed(0)
    merging = PatchMerging(5).requires_grad_(False)
    for weight in merging.norm.parameters():
        torch.nn.init.normal_(weight)
    x = torch.randn(2, 5, 6, 5)
    before, weight = merging(x), merging.reduction.weight.clone()
    for _ in range(2):  # once only
        merging.order_by_place()
        assert not torch.equal(merging.reduction.weight, weight)
        torch.testing.assert_close(merging(x), before)


def test_an_engine_answers_as_the_network() -> None:
    network = swin()
    folded = fold(network, winograd=False)
    x = torch.randn(2, 3, 33, 50)
    with torch.no_grad():
        for found, wanted in zip(folded(x), network(x), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter() -> None:
    network = swin().train()
    sum(value.sum() for value in network(torch.randn(1, 3, 24, 24))).backward()
    assert [name for name, value in network.named_parameters() if value.grad is None] == []
