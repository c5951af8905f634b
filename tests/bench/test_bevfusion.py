# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of the released detector says about answers that differ."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch

from kestrel.bench.bevfusion import difference, same_boxes
from kestrel.nn.boxes import DecodedBoxes
from tests.pipelines.conftest import make_frame
from tests.pipelines.test_bevfusion import detector


def boxes(*places: tuple[float, int]) -> DecodedBoxes:
    """Boxes at x of a class."""
    values = torch.zeros(len(places), 9)
    values[:, 0] = torch.tensor([x for x, _ in places])
    return DecodedBoxes(values, torch.ones(len(places)), torch.tensor([label for _, label in places]))


def test_boxes_are_the_same_within_a_tenth_of_a_metre_and_of_one_class() -> None:
    wanted = boxes((10.0, 0), (20.0, 0), (30.0, 1))
    found = boxes((30.0, 0), (20.2, 0), (10.05, 0))
    assert same_boxes(found, wanted).tolist() == [True, False, False]
    assert same_boxes(boxes(), wanted).tolist() == [False] * 3


def test_a_form_shares_all_boxes_with_itself_and_few_with_other_weights() -> None:
    reader = cast(Any, SimpleNamespace(read=lambda *_: make_frame()))
    one, other = (detector("det", "camera+lidar", precision="float32", seed=seed) for seed in (1, 2))
    same, apart = difference(one, one, reader, 0), difference(one, other, reader, 0)
    assert same["boxes in common"].value == 100
    assert same["difference of the heat map"].value == 0
    assert apart["boxes in common"].value < 50
    assert apart["difference of the heat map"].value > 0
