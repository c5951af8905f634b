# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Streets as they have grown: what stands beside the road, and that it leaves the road free."""

from __future__ import annotations

import numpy as np
import pytest

from kestrel.sim.scene import Mesh
from kestrel.sim.semantics import DETECTION_CLASS, Semantic
from kestrel.sim.splits import drives, scored_drives
from kestrel.sim.world import yard
from kestrel.sim.world.dwellings import add_dwelling, draw_front
from kestrel.sim.world.frontage import Frontage
from kestrel.sim.world.layout import Profile, Road
from kestrel.sim.world.mesh import MeshBuilder
from kestrel.sim.world.path import from_curvature
from kestrel.sim.world.raster import FreeSpace
from kestrel.sim.world.terrain import Terrain
from kestrel.sim.world.towns import TOWNS, town_named

HEAD = 2.1
"""Height below which nothing may reach over the sidewalk, metres."""


def street(town: str, seed: int) -> Mesh:
    """Build up the left side of a straight street along x from 0 to 120 m, whose sidewalk ends at y = 6."""
    rng = np.random.default_rng(seed)
    profile = Profile(lanes=1, lane_width=3.0, edge=0.5, sidewalk=2.5, median=0.0, parking=False)
    road = Road(from_curvature(np.zeros(120), np.zeros(2), 0.0), profile, main=True)
    paved = np.array([(-20.0, -6.0), (140.0, -6.0), (140.0, 6.0), (-20.0, 6.0)])
    space = FreeSpace([paved], np.array([-60.0, -60.0]), np.array([180.0, 60.0]))
    builder = MeshBuilder()
    terrain = Terrain(rng, space, "urban")
    Frontage(builder, rng, town_named(town), space, terrain).line(road, 1, 0.0, 120.0)
    return builder.build()


@pytest.mark.parametrize("town", ["hazel", "juniper", "larch", "maple"])
def test_a_grown_street_is_built_up_and_leaves_the_sidewalk_free(town: str) -> None:
    for seed in range(4):
        mesh = street(town, seed)
        firm = mesh.vertices[np.unique(mesh.triangles[mesh.semantic != Semantic.VEGETATION])]
        assert len(mesh.triangles) > 800
        assert firm[firm[:, 2] < HEAD, 1].min() > 5.5, "twigs alone may hang over the sidewalk"
        assert np.isfinite(mesh.vertices).all()
        vehicles = {int(semantic) for semantic in DETECTION_CLASS}
        assert vehicles.isdisjoint(np.unique(mesh.semantic).tolist())
        walls = mesh.vertices[np.unique(mesh.triangles[mesh.semantic == Semantic.BUILDING])]
        assert (walls[:, 1] < 12.0).any()


def test_the_same_seed_builds_the_same_street() -> None:
    first, second, other = street("hazel", 1), street("hazel", 1), street("hazel", 2)
    assert first.vertices.tobytes() == second.vertices.tobytes()
    assert first.vertices.tobytes() != other.vertices.tobytes()


def test_a_dwelling_has_panes_in_reveals_and_rooms_behind() -> None:
    rng = np.random.default_rng(3)
    builder = MeshBuilder()
    front = draw_front(rng, (2, 2), 3.0)
    add_dwelling(builder, rng, town_named("hazel"), (9.0, 9.0), np.zeros(2), 0.0, front)
    mesh = builder.build()
    middle = mesh.vertices[mesh.triangles].mean(1)
    wide = np.abs(middle[:, 0]) < 4.0
    depths = middle[wide & (middle[:, 1] < 0.0), 1]
    assert (depths < -4.4).any(), "the wall"
    assert ((depths > -4.49) & (depths < -4.1)).any(), "reveals"
    assert ((depths > -3.0) & (depths < -0.1)).any(), "rooms"


def test_a_dwelling_at_the_sidewalk_has_no_high_steps() -> None:
    rng = np.random.default_rng(0)
    fronts = [draw_front(rng, (1, 3), 0.4) for _ in range(20)]
    assert max(front.floor for front in fronts) <= 0.31


@pytest.mark.parametrize("make", sorted(set(yard.THINGS), key=lambda make: make.__name__))
def test_things_in_yards_stand_on_the_ground_and_are_no_vehicles(make) -> None:  # type: ignore[no-untyped-def]
    for seed in range(5):
        mesh = make(np.random.default_rng(seed), town_named("larch"))
        length, width = yard.ground_size(mesh)
        assert -0.6 < mesh.vertices[:, 2].min() < 0.35
        assert 0.5 < mesh.vertices[:, 2].max() < 5.0
        assert 0.4 < max(length, width) < 16.0
        assert {int(semantic) for semantic in DETECTION_CLASS}.isdisjoint(np.unique(mesh.semantic).tolist())


def test_grown_streets_are_in_the_splits_of_their_own_alone() -> None:
    others = scored_drives()
    for split in (
        "train",
        "train_lidar",
        "train_video",
        "validation",
        "validation_lidar",
        "validation_video",
    ):
        others += drives(split, 12)
    assert not any(TOWNS[drive.town].frontage for drive in others)
    for split in ("train_lidar_streets", "validation_lidar_streets"):
        assert [bool(TOWNS[drive.town].frontage) for drive in drives(split, 12)] == [True] * 12
