# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Files of KITTI that are cut off, binary or of other things: what fuzzing found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kestrel.data.kitti_files import (
    named,
    read_labels,
    read_oxts,
    read_stamps,
    read_sweep,
    read_values,
    rigid,
    rotation,
)
from kestrel.errors import InputError
from tests.data.kitti_lines import CAR, OXTS

LABEL = f"3 1 {CAR}"


@pytest.mark.parametrize("read", [read_values, read_stamps, read_labels])
def test_a_file_that_is_no_text_is_named(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    (tmp_path / "file.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"file\.txt: expected a text"):
        read(tmp_path / "file.txt")


@pytest.mark.parametrize("place", [0, 1, 3, 16])
def test_a_label_with_a_word_for_a_number_is_named(tmp_path: Path, place: int) -> None:
    words = LABEL.split()
    words[place] = "x"
    (tmp_path / "labels.txt").write_text(f"{LABEL}\n{' '.join(words)}\n")
    with pytest.raises(InputError, match=r"line 2 of .*labels\.txt: expected numbers"):
        read_labels(tmp_path / "labels.txt")


def test_the_columns_of_whole_labels_are_read(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text(f"{LABEL}\n")
    assert read_labels(tmp_path / "labels.txt") == {3: [LABEL.split()[1:]]}


@pytest.mark.parametrize(("place", "word"), [(5, "x"), (5, "nan"), (0, "90"), (0, "-1e30"), (1, "inf")])
def test_a_place_that_is_none_on_earth_is_named(place: int, word: str) -> None:
    words = OXTS.split()
    words[place] = word
    with pytest.raises(InputError, match=r"line 1: expected"):
        read_oxts({"line 1": " ".join(words)})


@pytest.mark.parametrize("size", [0, 1, 15, 18, 20])
def test_a_sweep_that_ends_within_a_point_or_before_the_first_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "0.bin").write_bytes(bytes(size))
    with pytest.raises(InputError, match=r"4 numbers a point"):
        read_sweep(tmp_path / "0.bin", 0)


@pytest.mark.parametrize(
    ("column", "value", "found"),
    [
        (0, np.nan, "finite numbers, found NaN or Inf"),
        (2, -np.inf, "finite numbers, found NaN or Inf"),
        (3, 1.5, "reflectance 0 .. 1, found 0.25 .. 1.5"),
        (3, -0.5, "reflectance 0 .. 1, found -0.5 .. 0.25"),
    ],
)
def test_a_sweep_of_other_numbers_is_refused(tmp_path: Path, column: int, value: float, found: str) -> None:
    points = np.full((2, 4), 0.25, np.float32)
    points[1, column] = value
    points.tofile(tmp_path / "0.bin")
    with pytest.raises(InputError, match=rf"sweep .*0\.bin: expected {found}"):
        read_sweep(tmp_path / "0.bin", 0)


def test_an_archive_without_a_point_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", xyz_5mm=np.zeros((0, 3), np.int16), intensity=np.zeros(0, np.uint8))
    with pytest.raises(InputError, match=r"0\.npz: expected at least one point, found none"):
        read_sweep(tmp_path / "0.npz", 0)


@pytest.mark.parametrize("name", ["0.bin", "0.npz"])
def test_a_sweep_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"{name}: expected a .bin or .npz, found no such file"):
        read_sweep(tmp_path / name, 0)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no archive"])
def test_an_archive_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"0\.npz: expected an archive"):
        read_sweep(tmp_path / "0.npz", 0)


def test_an_archive_of_something_else_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", xyz_5mm=np.zeros((3, 2), np.int16), intensity=np.zeros(3, np.uint8))
    with pytest.raises(InputError, match=r"0\.npz: expected an archive"):
        read_sweep(tmp_path / "0.npz", 0)


def test_a_matrix_that_is_not_finite_or_turns_nothing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "calib.txt"
    path.write_text("P2: 1 0 0 0 0 nan 0 0 0 0 1 0\nR_rect: 0 0 0 0 0 0 0 0 0\nTr_velo_cam: " + "0 " * 12)
    values = read_values(path)
    with pytest.raises(InputError, match=r"P2 of .*calib\.txt: expected finite numbers"):
        named(path, values, "P2", 3, 4)
    with pytest.raises(InputError, match=r"R_rect of .*calib\.txt: expected a rotation"):
        rotation(path, values, "R_rect")
    with pytest.raises(InputError, match=r"Tr_velo_cam of .*calib\.txt: expected a rotation"):
        rigid(path, values, "Tr_velo_cam")
