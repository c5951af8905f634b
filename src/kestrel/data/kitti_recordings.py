# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Recordings of KITTI, raw and tracking: which files belong to a frame, and when and where that was.

Both are read as they are distributed, and in the compact form of :mod:`kestrel.data.kitti_files`. The LiDAR
frame has x ahead, y to the left and z up already; ``base_link`` is the ground below it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from kestrel.data.kitti_files import (
    Moment,
    expect,
    named,
    numbered,
    read_labels,
    read_lines,
    read_oxts,
    read_stamps,
    read_values,
    rigid,
    rotation,
)
from kestrel.errors import InputError, describe
from kestrel.types import Float64Array

LIDAR_HEIGHT_M: Final = 1.73
PERIOD_NS: Final = 100_000_000
START_NS: Final = 1_317_000_000 * 10**9
"""A moment on the day of the recordings, where their own stamps are not part of the data."""


@dataclass(frozen=True)
class Calibrations:
    """One KITTI calibration: of the camera of image_02, and of camera 0 after rectification."""

    camera_matrix: Float64Array
    base_from_camera: Float64Array
    base_from_rectified: Float64Array


@dataclass(frozen=True)
class Frame:
    """One sweep and what belongs to it: a picture, or None; each with its stamp in nanoseconds."""

    number: int
    sweep: Path
    stamp_ns: int
    picture: Path | None = None
    picture_ns: int = 0


@dataclass(frozen=True)
class Recording:
    """Parts of a recording.

    odometry: of base_link, by stamp, from the first one's pose. labels: by number of the frame, or None.
    """

    calibrations: Calibrations
    frames: list[Frame]
    odometry: Mapping[int, Moment] = field(default_factory=dict)
    labels: Mapping[int, list[list[str]]] | None = None


def raw_recording(folder: Path) -> Recording:
    """Find the parts of a raw recording.

    Args:
        folder: ``DATE_drive_NNNN_sync`` inside the folder of its day with the calibrations, as distributed
            (rectified and synchronised); or one of the compact form, with one stamp for both sensors and no
            poses.

    Raises:
        InputError: part of it is missing.
    """
    distributed = _is_distributed(folder, "velodyne_points")
    return _raw(folder) if distributed else _compact_raw(folder)


def tracking_recording(folder: Path, sequence: str) -> Recording:
    """Find the parts of a tracking sequence.

    Args:
        folder: ``training`` as distributed, where images are optional; or one of the compact form, without
            images.
        sequence: which of them; the compact form is one.

    Raises:
        InputError: part of it is missing.
    """
    distributed = _is_distributed(folder, "calib")
    return _tracking(folder, sequence) if distributed else _compact_tracking(folder)


def _is_distributed(folder: Path, mark: str) -> bool:
    """Return whether a recording is as distributed, by a folder that the compact form does not have."""
    distributed = (folder / mark).is_dir()
    if not distributed and not any(folder.glob("calib_*.txt")):
        expected = f"{mark} (as distributed), or calib_*.txt (the compact form)"
        found = sorted(path.name for path in folder.iterdir())[:8]
        raise InputError(describe(f"KITTI recording {folder}", expected=expected, found=found or "nothing"))
    return distributed


def _raw(folder: Path) -> Recording:
    day = folder.resolve().parent
    camera, lidar = day / "calib_cam_to_cam.txt", day / "calib_velo_to_cam.txt"
    imu = day / "calib_imu_to_velo.txt"
    calibrations = _calibrations(camera, read_values(camera), rigid(lidar, read_values(lidar)))
    base_from_imu = base_from_lidar() @ rigid(imu, read_values(imu))
    sweeps = folder / "velodyne_points"
    stamps, shown = (read_stamps(folder / name / "timestamps.txt") for name in (sweeps.name, "image_02"))
    frames = []
    for number, sweep in numbered(sweeps / "data", "bin"):
        if number >= min(len(stamps), len(shown)):
            found = f"{len(stamps)} of sweeps, {len(shown)} of pictures"
            raise InputError(describe(f"stamps for {sweep}", expected=f"{number + 1}", found=found))
        picture = expect(folder / "image_02" / "data" / f"{sweep.stem}.png")
        frames.append(Frame(number, sweep, stamps[number], picture, shown[number]))
    measured = numbered(folder / "oxts" / "data", "txt")
    moments = read_oxts({str(path): " ".join(read_lines(path)) for _, path in measured})
    times = read_stamps(folder / "oxts" / "timestamps.txt")
    if len(times) != len(moments):
        raise InputError(
            describe(f"stamps in {folder / 'oxts'}", expected=str(len(moments)), found=len(times))
        )
    return Recording(calibrations, frames, _of_base(dict(zip(times, moments, strict=True)), base_from_imu))


def _compact_raw(folder: Path) -> Recording:
    calibrations = _read_calibration(next(folder.glob("calib_*.txt")))
    frames = []
    for number, sweep in numbered(folder / "velodyne", "npz"):
        stamp = START_NS + number * PERIOD_NS
        frames.append(Frame(number, sweep, stamp, folder / "image_02" / f"{sweep.stem}.jpg", stamp))
    return Recording(calibrations, frames)


def _tracking(folder: Path, sequence: str) -> Recording:
    path = folder / "calib" / f"{sequence}.txt"
    values = read_values(path)
    calibrations = _calibrations(path, values, rigid(path, values, "Tr_velo_cam"))
    base_from_imu = base_from_lidar() @ rigid(path, values, "Tr_imu_velo")
    pictures = folder / "image_02" / sequence
    frames = []
    for number, sweep in numbered(folder / "velodyne" / sequence, "bin"):
        stamp = START_NS + number * PERIOD_NS
        picture = expect(pictures / f"{sweep.stem}.png") if pictures.is_dir() else None
        frames.append(Frame(number, sweep, stamp, picture, stamp))
    measured = expect(folder / "oxts" / f"{sequence}.txt")
    rows = enumerate(read_lines(measured), start=1)
    moments = read_oxts({f"line {number} of {measured}": row for number, row in rows})
    odometry = {START_NS + number * PERIOD_NS: moment for number, moment in enumerate(moments)}
    labels = read_labels(folder / "label_02" / f"{sequence}.txt")
    return Recording(calibrations, frames, _of_base(odometry, base_from_imu), labels)


def _compact_tracking(folder: Path) -> Recording:
    calibrations = _read_calibration(next(folder.glob("calib_*.txt")))
    frames = [
        Frame(number, sweep, START_NS + number * PERIOD_NS)
        for number, sweep in numbered(folder / "velodyne", "npz")
    ]
    poses = _odom_from_base(folder / "CameraTrajectory.txt", calibrations)
    still = np.zeros(3)
    odometry = {
        START_NS + number * PERIOD_NS: Moment(pose, still, still) for number, pose in enumerate(poses)
    }
    return Recording(calibrations, frames, odometry, read_labels(_only(folder, "label_02_*.txt")))


def _of_base(moments: Mapping[int, Moment], base_from_imu: Float64Array) -> dict[int, Moment]:
    """Return poses of base_link in the first one's frame and its velocities, from those of the IMU."""
    imu_from_base, turn = np.linalg.inv(base_from_imu), base_from_imu[:3, :3]
    begin = None
    placed = {}
    for stamp, moment in moments.items():
        pose = moment.pose @ imu_from_base
        begin = np.linalg.inv(pose) if begin is None else begin
        angular = turn @ moment.angular
        linear = turn @ moment.linear - np.cross(angular, base_from_imu[:3, 3])
        placed[stamp] = Moment(begin @ pose, linear, angular)
    return placed


def _read_calibration(path: Path) -> Calibrations:
    """Return the calibration in a file with P2, R0_rect and Tr_velo_to_cam."""
    values = read_values(path)
    return _calibrations(path, values, rigid(path, values, "Tr_velo_cam"))


def _calibrations(
    path: Path, values: dict[str, Float64Array], camera_from_lidar: Float64Array
) -> Calibrations:
    """Return the calibration of a camera whose projection and rectification are in a file."""
    projection, rectified_from_camera = named(path, values, "P2", 3, 4), np.eye(4)
    rectified_from_camera[:3, :3] = rotation(path, values, "R_rect")
    camera_from_rectified = np.eye(4)
    if not np.linalg.det(projection[:, :3]):
        raise InputError(describe(f"P2 of {path}", expected="focal lengths", found=projection.tolist()))
    camera_from_rectified[:3, 3] = np.linalg.solve(projection[:, :3], projection[:, 3])
    base_from_rectified = base_from_lidar() @ np.linalg.inv(rectified_from_camera @ camera_from_lidar)
    base_from_camera = base_from_rectified @ np.linalg.inv(camera_from_rectified)
    return Calibrations(projection[:, :3], base_from_camera, base_from_rectified)


def base_from_lidar() -> Float64Array:
    """Return where the LiDAR is on the vehicle, (4, 4)."""
    matrix = np.eye(4)
    matrix[2, 3] = LIDAR_HEIGHT_M
    return matrix


def _odom_from_base(path: Path, calibrations: Calibrations) -> list[Float64Array]:
    """Return the poses of base_link in the first one's frame, from those of the camera (3x4, row-major)."""
    try:
        rows = np.array([line.split() for line in read_lines(path) if line.strip()], np.float64)
    except ValueError as error:
        raise InputError(describe(f"poses {path}", expected="12 numbers a line", found=error)) from error
    if rows.ndim != 2 or rows.shape[1] != 12 or not np.isfinite(rows).all():
        found = f"{rows.shape} of them"
        raise InputError(describe(f"poses {path}", expected="12 finite numbers a line", found=found))
    base_from_camera = calibrations.base_from_rectified
    camera_from_base = np.linalg.inv(base_from_camera)
    poses = []
    for row in rows:
        world_from_camera = np.vstack([row.reshape(3, 4), (0, 0, 0, 1)])
        poses.append(base_from_camera @ world_from_camera @ camera_from_base)
    return poses


def _only(folder: Path, pattern: str) -> Path:
    return next(iter(sorted(folder.glob(pattern))), folder / pattern)
