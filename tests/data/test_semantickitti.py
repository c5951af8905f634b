# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""SemanticKITTI is read as it is distributed, and a file that is not what it should be is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kestrel.data.semantickitti import read_scan, scan_files
from kestrel.errors import InputError
from tests.data.labelled_folders import semantickitti_sweep


def error(root: Path) -> str:
    with pytest.raises(InputError) as caught:
        [read_scan(files) for files in scan_files(root)]
    return str(caught.value)


def test_a_sweep_has_its_points_and_the_semantic_half_of_its_labels(tmp_path: Path) -> None:
    folder = semantickitti_sweep(tmp_path, [10, 252, 0, 40])
    (files,) = scan_files(tmp_path, ["08"])
    scan = read_scan(files)
    assert scan.raw_label.tolist() == [10, 252, 0, 40]
    stored = np.fromfile(folder / "velodyne" / "000000.bin", np.float32).reshape(-1, 4)
    assert (scan.cloud.points == stored).all()
    assert scan.cloud.frame_id == "lidar"


def test_in_base_link_the_ground_is_at_zero(tmp_path: Path) -> None:
    semantickitti_sweep(tmp_path, [40, 40])
    scan = read_scan(scan_files(tmp_path)[0])
    moved = scan.in_base()
    assert moved.frame_id == "base_link"
    np.testing.assert_allclose(moved.points[:, 2], 0.03, atol=1e-6)
    assert (moved.points[:, [0, 1, 3]] == scan.cloud.points[:, [0, 1, 3]]).all()


def test_sequences_come_in_the_order_that_is_asked_for_and_sweeps_in_theirs(tmp_path: Path) -> None:
    for sequence, number in (("08", 1), ("08", 0), ("00", 3)):
        semantickitti_sweep(tmp_path, [10], number, sequence)
    found = [(path.sweep.parts[-3], path.sweep.stem) for path in scan_files(tmp_path, ["08", "00"])]
    assert found == [("08", "000000"), ("08", "000001"), ("00", "000003")]


@pytest.mark.parametrize("part", ["velodyne", "labels"])
def test_a_folder_that_is_missing_is_named(tmp_path: Path, part: str) -> None:
    folder = semantickitti_sweep(tmp_path, [10])
    (folder / part).rename(folder / "elsewhere")
    assert error(tmp_path) == f"SemanticKITTI: expected folder {folder / part}, found none"


@pytest.mark.parametrize(("part", "suffix"), [("velodyne", "bin"), ("labels", "label")])
def test_a_sweep_without_labels_and_labels_without_a_sweep_are_named(
    tmp_path: Path, part: str, suffix: str
) -> None:
    for number in range(4):
        folder = semantickitti_sweep(tmp_path, [10], number)
    for number in (1, 2):
        (folder / part / f"{number:06d}.{suffix}").unlink()
    assert error(tmp_path).startswith(
        f"{folder}: expected {folder / part}/000001.{suffix} and 1 others, found"
    )


def test_a_sweep_that_was_cut_off_is_named(tmp_path: Path) -> None:
    path = semantickitti_sweep(tmp_path, [10, 10]) / "velodyne" / "000000.bin"
    path.write_bytes(path.read_bytes()[:-3])
    assert error(tmp_path) == f"sweep {path}: expected 4 numbers a point, 4 bytes each, found 29 bytes"


def test_labels_of_another_number_of_points_are_named(tmp_path: Path) -> None:
    path = semantickitti_sweep(tmp_path, [10, 10]) / "labels" / "000000.label"
    np.full(3, 10, np.uint32).tofile(path)
    expected = "2 labels of 4 bytes, one for each point of the sweep"
    assert error(tmp_path) == f"labels {path}: expected {expected}, found 12 bytes"


def test_labels_that_the_data_set_has_not_are_named(tmp_path: Path) -> None:
    folder = semantickitti_sweep(tmp_path, [10, 12, 17, 12])
    found = error(tmp_path)
    assert found.startswith(
        f"labels {folder / 'labels' / '000000.label'}: expected some of [0, 1, 10, 11, 13, "
    )
    assert found.endswith("found 12, 17")


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [(0, np.nan, "finite numbers, found NaN or Inf"), (3, 2.0, "found 0.06 .. 2")],
)
def test_a_sweep_of_other_numbers_is_named(tmp_path: Path, column: int, value: float, text: str) -> None:
    path = semantickitti_sweep(tmp_path, [10, 10]) / "velodyne" / "000000.bin"
    points = np.fromfile(path, np.float32).reshape(-1, 4)
    points[0, column] = value
    points.tofile(path)
    found = error(tmp_path)
    assert found.startswith(f"sweep {path}: expected ")
    assert found.endswith(text)
