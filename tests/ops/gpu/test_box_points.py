# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from kestrel.ops.box_points import box_points_reference
from tests.ops.test_box_points import scene


@pytest.mark.parametrize(
    ("points", "regions", "limit"), [(2500, 12, 7), (2500, 3, 100), (40, 2, 1), (0, 3, 5)]
)
def test_points_equal_the_reference(device: str, points: int, regions: int, limit: int) -> None:
    from kestrel.ops.gpu import box_points as gpu

    cloud, around = (each.to(device) for each in scene(points, regions))
    expected = box_points_reference(cloud, around, 3, 0.2, limit)
    found = gpu.box_points(cloud, around, 3, 0.2, limit)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    if points > 100:
        assert expected[1].max() > limit or limit == 100, "some have more than is wanted"
        assert (expected[1] > 0).any()


def test_without_a_region_nothing_is_launched(device: str) -> None:
    from kestrel.ops.gpu import box_points as gpu

    cloud, around = (each.to(device) for each in scene(10, 0))
    rows, found = gpu.box_points(cloud, around, 3, 0.2, 5)
    assert (rows.shape, found.shape) == ((0, 3, 5), (0, 3))
