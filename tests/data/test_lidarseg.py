# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""nuScenes lidarseg is read as it is distributed, and a file that is not what it should be is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kestrel.data.lidarseg import VALIDATION, read_scan, scan_files
from kestrel.errors import InputError
from tests.data.labelled_folders import SWEEP_POINTS, lidarseg_folder
from tests.data.nuscenes_data_set import LIDAR_AT, VERSION

LABELS = [17, 17, 17, 17, 17, 24]


def error(root: Path, *scenes: str) -> str:
    with pytest.raises(InputError) as caught:
        [read_scan(files) for files in scan_files(root, VERSION, scenes or None)]
    return str(caught.value)


def test_a_key_frame_has_its_points_ahead_and_their_labels(tmp_path: Path) -> None:
    lidarseg_folder(tmp_path, LABELS)
    scan = read_scan(scan_files(tmp_path, VERSION, ["scene-0061"])[0])
    assert scan.raw_label.tolist() == LABELS
    np.testing.assert_allclose(scan.cloud.points[-1], (0, -20, 0, 1), atol=1e-5)  # 20 m to the right
    np.testing.assert_allclose(scan.in_base().points[-1, :3], (LIDAR_AT[0], -20, LIDAR_AT[2]), atol=1e-5)


def test_key_frames_of_the_chosen_scenes_come_in_order(tmp_path: Path) -> None:
    data_set = lidarseg_folder(tmp_path, LABELS)
    found = scan_files(tmp_path, VERSION, ["scene-0103", "scene-0061"])
    assert [files.stamp_ns for files in found[:3]] == [at * 1000 for at in data_set.samples_us]
    assert len(found) == 4


def test_without_scenes_those_of_validation_are_read(tmp_path: Path) -> None:
    data_set = lidarseg_folder(tmp_path, LABELS)
    assert error(tmp_path).endswith("scene.json: expected scene-0916, found scene-0061, scene-0103")
    data_set.tables["scene"].append({**data_set.tables["scene"][0], "token": "c", "name": "scene-0916"})
    data_set.write("scene")
    assert len(scan_files(tmp_path, VERSION)) == 1
    assert (len(VALIDATION["v1.0-trainval"]), len(VALIDATION["v1.0-mini"])) == (150, 2)


def test_labels_of_a_key_frame_that_are_missing_are_named(tmp_path: Path) -> None:
    lidarseg_folder(tmp_path, LABELS)
    path = scan_files(tmp_path, VERSION, ["scene-0103"])[0].labels
    path.unlink()
    expected = f"{SWEEP_POINTS} labels of 1 bytes, one for each point of the sweep"
    assert error(tmp_path, "scene-0103") == f"labels {path}: expected {expected}, found no such file"


def test_labels_of_another_number_of_points_are_named(tmp_path: Path) -> None:
    lidarseg_folder(tmp_path, LABELS[:-1])
    assert error(tmp_path, "scene-0103").endswith("one for each point of the sweep, found 5 bytes")


def test_labels_that_the_data_set_has_not_are_named(tmp_path: Path) -> None:
    lidarseg_folder(tmp_path, [17, 32, 40, 17, 17, 17])
    found = error(tmp_path, "scene-0103")
    assert "_lidarseg.bin: expected some of [0, 1, " in found
    assert found.endswith("found 32, 40")


def test_key_frames_that_no_row_names_labels_for_are_counted(tmp_path: Path) -> None:
    lidarseg_folder(tmp_path, LABELS)
    path = tmp_path / VERSION / "lidarseg.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([row for row in rows if row["sample_data_token"][0] != "a"]))
    expected = "labels for each of the 3 key frames of the scenes"
    assert error(tmp_path, "scene-0061") == f"{path}: expected {expected}, found 0"


def test_tables_without_those_of_lidarseg_are_named(tmp_path: Path) -> None:
    data_set = lidarseg_folder(tmp_path, LABELS)
    table = tmp_path / VERSION / "lidarseg.json"
    table.unlink()
    found = error(tmp_path, "scene-0061")
    assert found.startswith(f"{table}: expected a JSON list")
    assert found.endswith("found no such file")
    for row in data_set.tables["category"]:
        del row["index"]
    data_set.write("category")
    assert error(tmp_path, "scene-0061").endswith("found that of nuScenes without lidarseg")


def test_categories_of_other_numbers_are_refused(tmp_path: Path) -> None:
    data_set = lidarseg_folder(tmp_path, LABELS)
    data_set.tables["category"][17]["index"] = 18
    data_set.write("category")
    assert error(tmp_path).endswith("category.json: expected vehicle.car at index 17, found None")


@pytest.mark.parametrize("name", ["category.json", "lidarseg.json"])
def test_a_damaged_table_is_named(tmp_path: Path, name: str) -> None:
    lidarseg_folder(tmp_path, LABELS)
    path = tmp_path / VERSION / name
    for text in ("[{", "{}", "[3]", '[{"token": "x"}]'):
        path.write_text(text)
        assert str(path) in error(tmp_path, "scene-0061"), text


def test_a_mount_that_is_no_pose_is_named(tmp_path: Path) -> None:
    data_set = lidarseg_folder(tmp_path, LABELS)
    data_set.row("calibrated_sensor", "c LIDAR_TOP")["rotation"] = [1.0, 1.0, 0.0, 0.0]
    data_set.write("calibrated_sensor")
    assert "calibrated_sensor.json: expected a translation and a unit" in error(tmp_path, "scene-0061")
