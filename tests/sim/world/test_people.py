# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from kestrel.sim.scene import Mesh
from kestrel.sim.world.cycles import build_bicycle
from kestrel.sim.world.furniture import column
from kestrel.sim.world.people import build_pedestrian
from kestrel.types import Float64Array


def _covered(mesh: Mesh, along: int, height: tuple[float, float]) -> Float64Array:
    """Return [low, high] along an axis of every triangle that reaches into a layer of heights, (N, 2)."""
    corners = mesh.vertices[mesh.triangles]
    z = corners[..., 2]
    here = corners[(z.max(1) > height[0]) & (z.min(1) < height[1]), :, along]
    return np.stack((here.min(1), here.max(1)), 1).astype(np.float64)


def test_between_the_legs_of_one_who_strides_there_is_nothing() -> None:
    """A LiDAR tells a person from a post by that."""
    gaps = 0
    for seed in range(20):
        poses, (_, _, height) = build_pedestrian(np.random.default_rng(seed))
        stride = poses[2]  # a quarter of the cycle: the left leg is furthest ahead
        shins = _covered(stride, 0, (0.15 * height, 0.22 * height))
        middle = (shins.min() + shins.max()) / 2
        gaps += not ((shins[:, 0] < middle) & (shins[:, 1] > middle)).any()
    assert gaps > 14, "all but those who wear a skirt"


def test_the_body_of_a_rider_is_above_the_saddle() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        (mesh,), (_, _, height) = build_bicycle(rng, rider=True)
        assert 1.5 < height < 2.05
        broad = _covered(mesh, 1, (0.2, 0.25))
        assert np.ptp(broad) < 0.25, "wheels, frame and a foot, no body"
        shoulders = _covered(mesh, 1, (0.75 * height, 0.78 * height))
        assert np.ptp(shoulders) > 0.3


@pytest.mark.parametrize("seed", range(8))
def test_columns_stand_on_the_ground_and_are_about_as_thick_as_people(seed: int) -> None:
    mesh = column(np.random.default_rng(seed))
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    assert low[2] == pytest.approx(0, abs=1e-6)
    assert 0.75 < high[2] < 4.1
    assert 0.1 < np.hypot(*(high - low)[:2]) < 2.4
