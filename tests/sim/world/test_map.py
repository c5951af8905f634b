# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The map truth agrees with the ground that the sensors see."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from kestrel.classes import MAP_LAYERS
from kestrel.sim.semantics import Semantic
from kestrel.sim.world import TownWorld
from kestrel.sim.world.path import Path, join
from kestrel.sim.world.raster import FreeSpace, MapRaster, rectangle
from kestrel.types import BevMap, Float64Array


def _samples(world: TownWorld, semantic: Semantic, pose: Float64Array) -> Float64Array:
    """Points (N, 2) in base_link on triangles of a class, evenly over their area."""
    mesh, random = world.static, np.random.default_rng(0)
    corners = mesh.vertices[mesh.triangles[mesh.semantic == semantic]].astype(np.float64)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat = np.abs(normal[:, 2]) > 0.9 * np.linalg.norm(normal, axis=1)
    corners, area = corners[flat], np.abs(normal[flat, 2])
    chosen = corners[random.choice(len(corners), 20000, p=area / area.sum())]
    weights = random.dirichlet((1.0, 1.0, 1.0), 20000)
    points = (chosen * weights[..., None]).sum(1)
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    inside: Float64Array = local[(np.abs(local[:, :2]) < 49.5).all(1), :2]
    return inside


def _covered(bev: BevMap, layer: str, points: Float64Array) -> float:
    """Share of points on cells of a layer."""
    cells = ((points + 50.0) / 0.5).astype(int)
    return float(bev.probability[bev.layer_names.index(layer), cells[:, 0], cells[:, 1]].mean())


def _on_islands(world: TownWorld, points: Float64Array, pose: Float64Array) -> NDArray[np.bool_]:
    """Which points lie in cells with an island, or in those beside them."""
    taken = np.zeros((200, 200), np.uint8)
    if (world.static.semantic == Semantic.OTHER_GROUND).any():
        cells = ((_samples(world, Semantic.OTHER_GROUND, pose) + 50.0) / 0.5).astype(int)
        taken[cells[:, 0], cells[:, 1]] = 1
    cells = ((points + 50.0) / 0.5).astype(int)
    return cv2.dilate(taken, np.ones((3, 3)))[cells[:, 0], cells[:, 1]] > 0


@pytest.mark.parametrize(
    ("semantic", "layer", "least"),
    [
        (Semantic.ROAD, "drivable_area", 0.97),
        (Semantic.LANE_MARKING, "drivable_area", 0.97),
        (Semantic.SIDEWALK, "walkway", 0.88),
        (Semantic.CROSSING, "ped_crossing", 0.9),
        (Semantic.STOP_LINE, "stop_line", 0.8),
    ],
)
def test_ground_lies_on_cells_of_its_layer(
    worlds: list[TownWorld], semantic: Semantic, layer: str, least: float
) -> None:
    shares = []
    for world in worlds:
        if (world.static.semantic == semantic).any():
            pose = world.ego(4.0).map_from_base
            bev = world.bev_map(pose, lower=-50.0, resolution=0.5, cells=200)
            points = _samples(world, semantic, pose)
            points = points[~_on_islands(world, points, pose)]  # the road goes on below them
            if len(points) > 50:
                shares.append(_covered(bev, layer, points))
    assert len(shares) >= 4
    assert min(shares) > least


def test_terrain_is_not_drivable(worlds: list[TownWorld]) -> None:
    for world in worlds:
        pose = world.ego(4.0).map_from_base
        bev = world.bev_map(pose, lower=-50.0, resolution=0.5, cells=200)
        assert _covered(bev, "drivable_area", _samples(world, Semantic.TERRAIN, pose)) < 0.08


def test_nobody_drives_on_islands(worlds: list[TownWorld]) -> None:
    shares = []
    for world in worlds:
        if (world.static.semantic == Semantic.OTHER_GROUND).any():
            pose = world.ego(4.0).map_from_base
            bev = world.bev_map(pose, lower=-50.0, resolution=0.5, cells=200)
            points = _samples(world, Semantic.OTHER_GROUND, pose)
            if len(points) > 50:
                shares.append(_covered(bev, "drivable_area", points))
    assert shares
    assert max(shares) < 0.15  # cells of 0.5 m at their borders


def test_the_ego_vehicle_drives_on_drivable_cells(worlds: list[TownWorld]) -> None:
    for world in worlds:
        for time_s in (0.0, 5.0, 10.0):
            bev = world.bev_map(world.ego(time_s).map_from_base, lower=-50.0, resolution=0.5, cells=200)
            assert bev.probability[MAP_LAYERS.index("drivable_area"), 100:106, 98:102].all()


def test_every_layer_occurs_and_is_binary(worlds: list[TownWorld]) -> None:
    seen = np.zeros(len(MAP_LAYERS))
    for world in worlds:
        bev = world.bev_map(world.ego(6.0).map_from_base, lower=-50.0, resolution=0.5, cells=200)
        assert set(np.unique(bev.probability)) <= {0.0, 1.0}
        assert bev.layer_names == MAP_LAYERS
        seen += bev.probability.sum((1, 2))
    assert (seen > 0).all()


def test_map_axes_follow_the_vehicle() -> None:
    polygons: dict[str, list[Float64Array]] = {layer: [] for layer in MAP_LAYERS}
    polygons["stop_line"] = [rectangle(np.array([10.0, 0.0]), 2.0, 2.0, 0.0)]
    raster = MapRaster(polygons, [], np.array([-30.0, -30.0]), np.array([30.0, 30.0]))
    layer = MAP_LAYERS.index("stop_line")
    ahead = raster.around(np.eye(4), lower=-20.0, resolution=1.0, cells=40).probability[layer]
    assert np.argwhere(ahead).mean(0) == pytest.approx((29.5, 19.5))
    quarter = np.eye(4)
    quarter[:2, :2] = [(0.0, -1.0), (1.0, 0.0)]
    right = raster.around(quarter, lower=-20.0, resolution=1.0, cells=40).probability[layer]
    assert np.argwhere(right).mean(0) == pytest.approx((19.5, 9.5))


def test_ground_beyond_the_world_is_empty(street: TownWorld) -> None:
    far = np.eye(4)
    far[:2, 3] = 1e5
    assert not street.bev_map(far, lower=-50.0, resolution=0.5, cells=20).probability.any()


def test_claimed_ground_cannot_be_claimed_again() -> None:
    space = FreeSpace([], np.array([0.0, 0.0]), np.array([40.0, 40.0]))
    assert space.claim(rectangle(np.array([20.0, 20.0]), 10.0, 6.0, 0.3))
    assert not space.claim(rectangle(np.array([22.0, 20.0]), 4.0, 4.0, 0.0))
    assert space.claim(rectangle(np.array([20.0, 32.0]), 6.0, 4.0, 0.0))
    assert not space.claim(rectangle(np.array([0.0, 0.0]), 4.0, 4.0, 0.0))


def test_path_offset_projects_back_to_its_offset() -> None:
    angle = np.linspace(0.0, 1.5, 200)
    path = Path(60.0 * np.column_stack([np.sin(angle), 1.0 - np.cos(angle)]))
    s = np.linspace(5.0, path.length - 5.0, 40)
    back, left = path.project(path.position(s, 3.0))
    assert np.allclose(back, s, atol=0.1)
    assert np.allclose(left, 3.0, atol=0.02)
    assert path.curvature(40.0) == pytest.approx(1 / 60, rel=0.02)


def test_paths_join_without_a_corner() -> None:
    first = Path(np.array([(0.0, 0.0), (30.0, 0.0)]))
    second = Path(np.array([(40.0, 10.0), (40.0, 40.0)]))
    both = join(first, second)
    assert np.abs(np.diff(both.heading)).max() < 0.25
    assert both.points[0] == pytest.approx((0.0, 0.0))
    assert both.points[-1] == pytest.approx((40.0, 40.0))
