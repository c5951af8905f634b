# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from kestrel.sim import textures
from kestrel.sim.scene import Texture

DRAWN = [
    kind
    for name, kind in vars(Texture).items()
    if name.isupper() and name not in ("PLAIN", "EMISSIVE", "GLASS")
]
PERIOD_M = textures.TILE * textures.TEXEL_M


def sampled(kind, u, v, footprint):
    u, v = np.broadcast_arrays(np.float32(u), np.float32(v))
    tiles = textures.tiles()
    return (
        tiles.texels[[textures.texel(tiles, kind, *place, footprint) for place in zip(u, v, strict=True)]]
        / textures.ONE
    )


@pytest.mark.parametrize("kind", [Texture.PLAIN, Texture.EMISSIVE, Texture.GLASS])
def test_plain_surfaces_keep_their_colour_at_any_distance(kind):
    places = np.linspace(-40, 40, 50)
    for footprint in (0.001, 0.3, 100.0, np.inf):
        np.testing.assert_array_equal(
            sampled(kind, places, places, footprint), np.tile([1, 1, 1, 0], (50, 1))
        )


@pytest.mark.parametrize("kind", DRAWN)
def test_tiles_repeat_and_vary(kind):
    u, v = np.random.default_rng(0).uniform(-12, 12, (2, 500))
    u, v = np.round(u / 0.05) * 0.05 + 0.02, np.round(v / 0.05) * 0.05 + 0.02
    here = sampled(kind, u, v, 0.01)
    np.testing.assert_array_equal(here, sampled(kind, u + PERIOD_M, v - 2 * PERIOD_M, 0.01))
    assert here[:, 0].std() > 0.02


@pytest.mark.parametrize("kind", DRAWN)
def test_far_surfaces_show_the_mean_of_the_near_ones(kind):
    u, v = np.random.default_rng(1).uniform(0, PERIOD_M, (2, 5000))
    near, far = sampled(kind, u, v, 0.01), sampled(kind, u, v, 20.0)
    np.testing.assert_allclose(far.mean(0), near.mean(0), atol=0.03)
    assert far[:, 0].std() < 0.6 * near[:, 0].std()
