# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures with fewer rays than pixels are those of a ray for every pixel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from kestrel.sim.blocks import Blocks
from kestrel.sim.caster import Hits, WorldCaster
from kestrel.sim.lens import pixel_directions
from kestrel.sim.rig import load_rig
from kestrel.sim.semantics import Semantic
from kestrel.sim.sight import Sight
from tests.sim.street import MOVING, Street, box_mesh, joined


@dataclass
class Posts(Street):
    """The street with thin posts and rails before the wall."""

    def __post_init__(self):
        super().__post_init__()
        rng = np.random.default_rng(5)
        posts = [
            box_mesh((0.05, 0.05, 2.0), (x, y, 0.0), Semantic.FENCE)
            for x, y in zip(rng.uniform(8, 28, 30), rng.uniform(-12, 12, 30), strict=True)
        ]
        rails = [
            box_mesh((0.04, 6.0, 0.05), (x, y, 0.9), Semantic.BARRIER)
            for x, y in zip(rng.uniform(10, 28, 8), rng.uniform(-9, 9, 8), strict=True)
        ]
        self.static = joined(self.static, *posts, *rails)


def both(world, size=(352, 128), model="none", roll_deg=0.0):
    """Return Hits by Sight, Hits of a ray for every pixel."""
    spec = load_rig("nuscenes").cameras[0]
    if model != "none":
        spec = replace(
            spec, distortion_model=model, distortion=np.array([-0.28, 0.07, 0.0002, -0.0004, 0.01])
        )
    blocks = Blocks(pixel_directions(spec.calibration(size)))
    caster = WorldCaster(world, seconds=1.0)
    roll = np.eye(4)
    roll[:3, :3] = Rotation.from_euler("Z", roll_deg, degrees=True).as_matrix()
    pose = world.ego(0.0).map_from_base @ spec.base_from_camera @ roll
    rays = np.empty((len(blocks.directions), 6), np.float32)
    rays[:, :3] = pose[:3, 3]
    rays[:, 3:] = blocks.directions @ pose[:3, :3].T.astype(np.float32)
    actors = caster.moving_actors(0.0, pose[:3, 3], 100.0)
    every = Hits.of(rays)
    caster.cast_static(every, np.arange(len(rays)))
    caster.add_actors(every, actors, blocks.pairs(actors, pose, every.distance))
    return Sight(blocks, caster).look(rays, actors, pose), every, caster.table


@pytest.mark.parametrize("model", ["none", "plumb_bob"])
def test_pixels_see_what_rays_of_their_own_would(model):
    seen, every, table = both(Posts(car=(12.0, 1.0)), model=model)
    assert (seen.instance == MOVING).sum() > 500
    same = table.semantic[seen.triangle] == table.semantic[every.triangle]
    assert same.mean() > 0.998
    same &= np.isfinite(every.distance)
    np.testing.assert_array_equal(np.isfinite(seen.distance), np.isfinite(every.distance))
    np.testing.assert_allclose(seen.distance[same], every.distance[same], rtol=1e-3)
    np.testing.assert_allclose(seen.normal[same], every.normal[same], atol=1e-3)
    on = same & seen.moving & every.moving
    np.testing.assert_allclose(seen.local_point[on], every.local_point[on], atol=0.02)
    np.testing.assert_allclose(seen.local_normal[on], every.local_normal[on], atol=1e-3)


def test_what_is_a_pixel_wide_is_not_lost():
    seen, every, table = both(Posts())
    for thin in (Semantic.FENCE, Semantic.BARRIER):
        shown, there = (table.semantic[hits.triangle] == thin for hits in (seen, every))
        assert there.sum() > 200
        assert not (shown & ~there).any()
        assert shown.sum() > 0.97 * there.sum()


def test_most_pixels_need_no_ray(monkeypatch):
    cast = []
    real = WorldCaster.cast_static
    monkeypatch.setattr(
        WorldCaster, "cast_static", lambda self, hits, rows: (cast.append(len(rows)), real(self, hits, rows))
    )
    _, every, _ = both(Street())
    total, *parts = cast
    assert total == len(every.rays)
    assert sum(parts) < 0.6 * total


@pytest.mark.parametrize("size", [(1, 1), (7, 1), (1, 7), (2, 2), (3, 5)])
def test_pictures_of_a_few_pixels(size):
    seen, every, table = both(Street(), size)
    np.testing.assert_array_equal(table.semantic[seen.triangle], table.semantic[every.triangle])
    np.testing.assert_allclose(seen.distance, every.distance, rtol=1e-3)


def test_corners_of_a_picture_see_what_is_there_and_not_what_is_beside_it():
    """A corner lies between no pixels: a plane that its neighbours see may end before it."""
    for roll_deg in range(0, 360, 10):
        seen, every, table = both(Street(), size=(4, 4), roll_deg=roll_deg)
        np.testing.assert_array_equal(np.isfinite(seen.distance), np.isfinite(every.distance))
        np.testing.assert_array_equal(table.semantic[seen.triangle], table.semantic[every.triangle])
