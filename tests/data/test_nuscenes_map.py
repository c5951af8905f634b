# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The map expansion of nuScenes becomes true map layers around the vehicle."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest

from kestrel.bench.detection_metric import find_devkit
from kestrel.classes import MAP_LAYERS
from kestrel.data.nuscenes_map import NuScenesMap
from kestrel.errors import InputError
from kestrel.eval.recording import read_recording
from kestrel.types import BevMap
from tests.data.nuscenes_data_set import LIDAR_AT, VERSION, DataSet, ego
from tests.data.nuscenes_map_file import PLACE, MapFile, square
from tests.eval.stand import imported


def pose(x: float, y: float, yaw: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:2, :2] = [[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]
    matrix[:2, 3] = x, y
    return matrix


BASE_FROM_LIDAR = pose(LIDAR_AT[0], LIDAR_AT[1], -math.pi / 2)


def around(path: Path, x: float, y: float, yaw: float) -> BevMap:
    """The layers about a vehicle at a place on the map."""
    return NuScenesMap(path).around(pose(x, y, yaw) @ BASE_FROM_LIDAR, BASE_FROM_LIDAR, 7)


def at(bev: BevMap, layer: str, x: float, y: float) -> float:
    """What a layer says at a place in base_link."""
    row, column = (math.floor((v - low) / bev.resolution) for v, low in zip((x, y), bev.lower, strict=True))
    return float(bev.probability[bev.layer_names.index(layer), row, column])


def test_layers_are_where_they_are_on_the_map(tmp_path: Path) -> None:
    made = MapFile()
    made.area("walkway", square(100, 120, 4))  # 20 m ahead of a vehicle that drives north
    made.area("drivable_area", square(85, 100, 8), square(85, 100, 3))  # 15 m to its left, with a hole
    made.divider("lane_divider", [(110, 60), (110, 140)])
    made.divider("road_divider", [(60, 90), (140, 90)])
    bev = around(made.write(tmp_path), 100, 100, math.pi / 2)
    assert bev.layer_names == MAP_LAYERS
    assert (bev.frame_id, bev.stamp_ns) == ("base_link", 7)
    np.testing.assert_allclose(bev.lower, (-50 + 0.94, -50))
    assert [at(bev, "walkway", x, y) for x, y in ((20, 0), (23, 3), (20, 6), (26, 0), (-20, 0))] == [
        1,
        1,
        0,
        0,
        0,
    ]
    places = ((0, 10), (0, 15), (6, 15), (0, 25), (0, -15))
    assert [at(bev, "drivable_area", x, y) for x, y in places] == [1, 0, 1, 0, 0]
    assert [at(bev, "divider", x, y) for x, y in ((30, -10), (30, 10), (-10, 20), (10, 20))] == [1, 0, 1, 0]
    assert not bev.probability[[MAP_LAYERS.index(name) for name in ("ped_crossing", "stop_line")]].any()


def test_layers_turn_with_the_vehicle(tmp_path: Path) -> None:
    made = MapFile()
    made.area("ped_crossing", square(100, 120, 3))
    yaw = 0.7
    bev = around(made.write(tmp_path), 90, 100, yaw)
    x, y = math.cos(yaw) * 10 + math.sin(yaw) * 20, math.cos(yaw) * 20 - math.sin(yaw) * 10
    assert at(bev, "ped_crossing", x, y) == 1
    assert bev.probability.sum() * 0.25 == pytest.approx(36, rel=0.25)


def devkit_with_maps() -> Path:
    """The Python of an environment in which the devkit can read maps; the test is skipped without one."""
    python = find_devkit()
    check = [str(python), "-c", "import nuscenes.map_expansion.map_api"]
    if python is None or subprocess.run(check, check=False, capture_output=True).returncode:
        pytest.skip("no nuscenes-devkit with its maps: `make devkit`")
    return python


def test_cells_are_those_that_the_devkit_draws(tmp_path: Path) -> None:
    python = devkit_with_maps()
    made, random = MapFile(), np.random.default_rng(0)
    for layer in ("drivable_area", "walkway", "stop_line", "carpark_area", "ped_crossing"):
        for _ in range(6):
            x, y = random.uniform(320, 480), random.uniform(520, 680)
            made.area(layer, square(x, y, random.uniform(4, 30)), square(x, y, 2))
    for layer in ("road_divider", "lane_divider"):
        for _ in range(4):  # of two corners: the devkit fails at a line that leaves the grid and comes back
            ends = random.uniform((300, 500), (500, 700), (2, 2))
            made.divider(layer, [(x, y) for x, y in ends.tolist()])
    yaw = 0.4
    bev = around(made.write(tmp_path), 400, 600, yaw)
    lidar = pose(400, 600, yaw) @ BASE_FROM_LIDAR
    right = math.degrees(math.atan2(lidar[1, 0], lidar[0, 0]))
    worker = Path(__file__).with_name("devkit_map.py")
    command = [python, worker, tmp_path, lidar[0, 3], lidar[1, 3], right, tmp_path / "masks.npy"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    theirs = np.flip(np.load(tmp_path / "masks.npy"), 2).astype(bool)
    for layer, ours, mask in zip(MAP_LAYERS, bev.probability > 0.5, theirs, strict=True):
        assert mask.sum() > 200, layer
        # A line may end one cell earlier or later at the end of the grid, and lie beside the other one.
        least = 0.95 if layer == "divider" else 0.98
        assert (ours & mask).sum() / (ours | mask).sum() > least, layer


def scene_with_map(root: Path) -> DataSet:
    """The tiny data set with a crossing 8 m ahead of where the vehicle is at the second sample."""
    data_set = DataSet(root)
    (root / VERSION / "log.json").write_text(json.dumps([{"token": "log", "location": PLACE}]))
    made = MapFile()
    x, y, yaw = ego(0.5)
    made.area("ped_crossing", square(x + 8 * math.cos(yaw), y + 8 * math.sin(yaw), 2))
    made.write(root)
    return data_set


def test_key_frames_of_an_imported_scene_have_a_true_map(tmp_path: Path) -> None:
    data_set = scene_with_map(tmp_path / "nuscenes")
    truth = read_recording(imported(data_set, tmp_path / "bag")).truth
    maps = truth.maps
    assert sorted(maps) == [stamp * 1000 for stamp in data_set.samples_us]
    now = maps[data_set.samples_us[1] * 1000]
    assert (now.lower, now.resolution, now.probability.shape) == ((-50, -50), 0.5, (6, 200, 200))
    assert [at(now, "ped_crossing", x, 0) for x in (4, 8, 12)] == [0, 1, 0]
    before = maps[data_set.samples_us[0] * 1000]
    assert at(before, "ped_crossing", 8, 0) == 0
    of_lidar = truth.lidar_maps[data_set.samples_us[1] * 1000]
    np.testing.assert_allclose(of_lidar.lower, (-50 + LIDAR_AT[0], -50))
    assert [at(of_lidar, "ped_crossing", x, 0) for x in (4, 8, 12)] == [0, 1, 0]


def test_lines_that_end_beyond_the_grid_are_drawn_up_to_its_end(tmp_path: Path) -> None:
    made = MapFile()
    made.divider("road_divider", [(100, 100), (100, 100_000)])
    made.divider("lane_divider", [(200, 0), (200, 500)])  # beside the grid
    made.divider("lane_divider", [(120, 100)])  # a single corner is no line
    bev = around(made.write(tmp_path), 100, 100, math.pi / 2)
    assert at(bev, "divider", 49, 0) == at(bev, "divider", 2, 0) == 1
    assert at(bev, "divider", -5, 0) == 0
    divider = bev.probability[MAP_LAYERS.index("divider")]
    assert divider[:, 80:].any()
    assert not divider[:, :90].any()


@pytest.mark.parametrize("damage", ["missing", "no JSON", "no node", "no number"])
def test_map_that_cannot_be_read_is_named(tmp_path: Path, damage: str) -> None:
    data_set = scene_with_map(tmp_path)
    path = tmp_path / "maps" / "expansion" / f"{PLACE}.json"
    if damage == "missing":
        path.unlink()
    elif damage == "no JSON":
        path.write_text("[")
    else:
        content = json.loads(path.read_text())
        node = content["node"].pop()
        content["node"] += [node | {"x": math.nan}] if damage == "no number" else []
        path.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        data_set.messages()
    assert str(caught.value).startswith(f"{path}: expected ")
