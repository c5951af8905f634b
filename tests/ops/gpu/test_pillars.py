# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from kestrel.errors import InputError
from kestrel.ops.pillars import pillar_canvas_cuda, pillar_canvas_reference
from tests.ops.test_pillars import GRID, cloud, layer

LENGTHS = [GRID.extent, GRID.size, *GRID.height_range]


@pytest.mark.parametrize(("count", "channels"), [(0, 7), (2, 7), (300, 1), (300, 70)])
def test_the_canvas_equals_the_reference(device: str, count: int, channels: int) -> None:
    points, batch = (each.to(device) for each in cloud(count))
    weight, bias = (each.to(device) for each in layer(channels))
    found = pillar_canvas_cuda(points, batch, weight, bias, LENGTHS, 2)
    assert found.is_contiguous(memory_format=torch.channels_last)
    wanted = pillar_canvas_reference(points, batch, weight, bias, GRID, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert bool((found > 0).any()) or count < 300


def test_what_is_not_a_number_is_passed_on_and_an_unknown_frame_refused(device: str) -> None:
    points, batch = (each.to(device) for each in cloud(40))
    weight, bias = (each.to(device) for each in layer(3))
    points[1, :3], points[1, 3] = 0.1, torch.nan
    found = pillar_canvas_cuda(points, batch, weight, bias, LENGTHS, 2)
    assert found.isnan().any()
    assert torch.equal(found.isnan(), pillar_canvas_reference(points, batch, weight, bias, GRID, 2).isnan())
    with pytest.raises(InputError, match="frame of a point"):
        pillar_canvas_cuda(points, batch + 1, weight, bias, LENGTHS, 2)
