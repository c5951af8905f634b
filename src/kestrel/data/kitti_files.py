# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Files of KITTI as they are distributed.

Geiger et al., Vision meets Robotics: The KITTI Dataset, IJRR 2013. Beside them the compact form of a
recording, one folder with ``calib_*.txt``, ``velodyne/N.npz`` (``xyz_5mm`` int16, ``intensity`` uint8),
``image_02/N.jpg``, ``label_02_*.txt`` and ``CameraTrajectory.txt``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

from kestrel.errors import InputError, describe
from kestrel.types import Float32Array, Float64Array, PointCloud

UNITS_M: Final = 0.005
EARTH_RADIUS_M: Final = 6_378_137.0
MAX_LATITUDE: Final = 85.0
"""Mercator's projection has no poles."""
OXTS_COLUMNS: Final = 30
POINT_COLUMNS: Final = 4
LABEL_COLUMNS: Final = 17

NAMES: Final = {
    "P_rect_02": "P2",
    "R0_rect": "R_rect",
    "R_rect_00": "R_rect",
    "Tr_velo_to_cam": "Tr_velo_cam",
    "Tr_imu_to_velo": "Tr_imu_velo",
}
"""What the files of raw recordings, tracking and detection call alike in different ways."""


@dataclass(frozen=True)
class Moment:
    """Where something on the vehicle was in ``odom``, and how it moved.

    pose: (4, 4). linear: (3,) m/s, angular: (3,) rad/s, both in its own axes, ahead, left and up.
    """

    pose: Float64Array
    linear: Float64Array
    angular: Float64Array


def expect(path: Path) -> Path:
    """Return the path.

    Raises:
        InputError: there is nothing.
    """
    if not path.exists():
        raise InputError(describe("KITTI recording", expected=path, found="no such file"))
    return path


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file.

    Raises:
        InputError: there is none, or it is no text.
    """
    try:
        return expect(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(describe(str(path), expected="a text", found=error)) from error


def read_values(path: Path) -> dict[str, Float64Array]:
    """Return the numbers behind each name of a calibration file; with or without a colon, by one spelling."""
    values = {}
    for line in read_lines(path):
        name, *numbers = line.replace(":", " ", 1).split() or [""]
        try:
            values[NAMES.get(name, name)] = np.array(numbers, float)
        except ValueError:  # the day of the calibration
            continue
    return values


def named(path: Path, values: dict[str, Float64Array], name: str, rows: int, columns: int) -> Float64Array:
    """Return a matrix of a calibration file.

    Raises:
        InputError: it is not in it, or of another size, or not finite.
    """
    if name not in values or len(values[name]) != rows * columns:
        found = f"{len(values[name])} numbers" if name in values else sorted(values)
        wanted = f"{name} with {rows * columns} numbers"
        raise InputError(describe(f"calibration {path}", expected=wanted, found=found))
    if not np.isfinite(values[name]).all():
        raise InputError(
            describe(f"{name} of {path}", expected="finite numbers", found=values[name].tolist())
        )
    return values[name].reshape(rows, columns)


def rigid(path: Path, values: dict[str, Float64Array], name: str | None = None) -> Float64Array:
    """Return the (4, 4) of ``name`` (3x4), or of R (3x3) and T (3).

    Raises:
        InputError: it is not in the file, or turns nothing.
    """
    matrix = np.eye(4)
    if name is not None:
        matrix[:3] = named(path, values, name, 3, 4)
    else:
        matrix[:3, :3], matrix[:3, 3:] = named(path, values, "R", 3, 3), named(path, values, "T", 3, 1)
    _check_rotation(path, name or "R", matrix[:3, :3])
    return matrix


def rotation(path: Path, values: dict[str, Float64Array], name: str) -> Float64Array:
    """Return the (3, 3) of ``name``; InputError as for `rigid`."""
    matrix = named(path, values, name, 3, 3)
    _check_rotation(path, name, matrix)
    return matrix


def _check_rotation(path: Path, name: str, matrix: Float64Array) -> None:
    if not np.abs(matrix).max() < 1.1 or abs(np.linalg.det(matrix) - 1) > 0.1:
        raise InputError(describe(f"{name} of {path}", expected="a rotation", found=matrix.tolist()))


def read_sweep(path: Path, stamp_ns: int) -> PointCloud:
    """Read one sweep in frame ``lidar``: ``.bin`` (float32 x, y, z, reflectance 0..1), or ``.npz``.

    Raises:
        InputError: it is missing, cut off or empty, or has numbers that are not finite or no reflectance.
    """
    if not path.is_file():
        raise InputError(describe(f"sweep {path}", expected="a .bin or .npz", found="no such file"))
    points = _binary_points(path) if path.suffix == ".bin" else _compact_points(path)
    if not np.isfinite(points).all():
        raise InputError(describe(f"sweep {path}", expected="finite numbers", found="NaN or Inf"))
    least, most = points[:, 3].min(), points[:, 3].max()
    if least < 0 or most > 1:
        found = f"{least:g} .. {most:g}"
        raise InputError(describe(f"sweep {path}", expected="reflectance 0 .. 1", found=found))
    return PointCloud(points, stamp_ns, "lidar")


def _binary_points(path: Path) -> Float32Array:
    raw = path.read_bytes()
    if not raw or len(raw) % (4 * POINT_COLUMNS):
        expected = "4 numbers a point, 4 bytes each"
        raise InputError(describe(f"sweep {path}", expected=expected, found=f"{len(raw)} bytes"))
    return np.frombuffer(raw, "<f4").reshape(-1, POINT_COLUMNS).astype(np.float32)


def _compact_points(path: Path) -> Float32Array:
    try:
        with np.load(path) as stored:
            points = np.empty((len(stored["xyz_5mm"]), POINT_COLUMNS), np.float32)
            points[:, :3] = stored["xyz_5mm"] * np.float32(UNITS_M)
            points[:, 3] = stored["intensity"] / np.float32(255)
    except Exception as error:  # a damaged archive, or another one, makes numpy and zipfile raise anything
        expected = "an archive of xyz_5mm and intensity"
        raise InputError(describe(f"sweep {path}", expected=expected, found=error)) from error
    if not len(points):
        raise InputError(describe(f"sweep {path}", expected="at least one point", found="none"))
    return points


def read_stamps(path: Path) -> list[int]:
    """Return the nanoseconds of each line of a timestamps.txt; its times count as UTC."""
    stamps = []
    for number, line in enumerate(read_lines(path), start=1):
        second, _, fraction = line.strip().partition(".")
        try:
            whole = datetime.strptime(second, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
            stamps.append(round(whole.timestamp()) * 10**9 + int(fraction.ljust(9, "0")[:9]))
        except ValueError:
            raise InputError(
                describe(f"line {number} of {path}", expected="YYYY-MM-DD hh:mm:ss.fraction", found=line)
            ) from None
    return stamps


def read_oxts(rows: Mapping[str, str]) -> list[Moment]:
    """Return what the GPS and IMU measured, from lines of 30 numbers by name.

    Poses are those of the IMU from the first place, axes east, north, up: Mercator coordinates at the first
    latitude, as in the development kit of the data set.
    """
    table = []
    for name, row in rows.items():
        try:
            values = np.array(row.split(), np.float64)
        except ValueError as error:
            raise InputError(describe(name, expected="numbers", found=error)) from error
        if len(values) != OXTS_COLUMNS:
            raise InputError(describe(name, expected="30 columns", found=len(values)))
        if not np.isfinite(values).all() or abs(values[0]) > MAX_LATITUDE or abs(values[1]) > 360:
            raise InputError(describe(name, expected="finite numbers, first a place on Earth", found=row))
        table.append(values.tolist())
    moments, begin = [], None
    for latitude, longitude, altitude, roll, pitch, yaw, *rest in table:
        begin = begin or (latitude, longitude, altitude)
        scale = EARTH_RADIUS_M * np.cos(np.radians(begin[0]))
        north = [np.log(np.tan(np.pi / 4 + np.radians(angle) / 2)) for angle in (latitude, begin[0])]
        pose = np.eye(4)
        pose[:3, :3] = _turn(2, yaw) @ _turn(1, pitch) @ _turn(0, roll)
        east = np.radians(longitude - begin[1])
        pose[:3, 3] = scale * east, scale * (north[0] - north[1]), altitude - begin[2]
        moments.append(Moment(pose, np.array(rest[2:5]), np.array(rest[14:17])))
    return moments


def _turn(axis: int, angle: float) -> Float64Array:
    """Return the rotation about x, y or z."""
    first, second = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[second, first] = np.sin(angle)
    matrix[first, second] = -matrix[second, first]
    return matrix


def read_labels(path: Path) -> dict[int, list[list[str]]]:
    """Return the columns behind the number of the frame, of each frame's lines."""
    labels: dict[int, list[list[str]]] = {}
    for number, line in enumerate(read_lines(path), start=1):
        parts = line.split()
        if len(parts) != LABEL_COLUMNS:
            raise InputError(describe(f"line {number} of {path}", expected="17 columns", found=len(parts)))
        try:
            int(parts[0]), int(parts[1])
            usable = bool(np.isfinite(np.array(parts[3:], np.float64)).all())
        except (ValueError, OverflowError):
            usable = False
        if not usable:
            expected = "numbers around the name of a class"
            raise InputError(describe(f"line {number} of {path}", expected=expected, found=line))
        labels.setdefault(int(parts[0]), []).append(parts[1:])
    return labels


def numbered(folder: Path, suffix: str) -> list[tuple[int, Path]]:
    """Return the files by the number of their frame; some recordings lack sweeps (tracking 0001: four)."""
    found = sorted(expect(folder).glob(f"*.{suffix}"))
    if not found:
        raise InputError(describe(f"sweeps in {folder}", expected=f"*.{suffix}", found="none"))
    unnumbered = [path.name for path in found if not path.stem.isdecimal()]
    if unnumbered:
        raise InputError(
            describe(
                f"sweeps in {folder}", expected="the number of the frame as their name", found=unnumbered[0]
            )
        )
    return [(int(path.stem), path) for path in found]
