# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Where a vehicle was at any time within a recording, and what lies between two poses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from kestrel.types import Float32Array, Float64Array

Vector3: TypeAlias = tuple[float, float, float]
Quaternion: TypeAlias = tuple[float, float, float, float]
"""(x, y, z, w), as in geometry_msgs."""

MAX_GAP_S: Final = 1.0
"""What happened in a longer silence is not known: nobody says that a vehicle moved evenly through it."""


def rotation_from_quaternion(quaternion: Quaternion) -> Float64Array:
    """Return the (3, 3) rotation of a unit ``quaternion`` (x, y, z, w)."""
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def slerp(first: Quaternion, second: Quaternion, ratio: float) -> Quaternion:
    """Return the rotation ``ratio`` (0..1) of the shorter way from ``first`` to ``second``.

    Frames look up dozens of poses; scipy's takes five times as long for one.
    """
    a, b = np.asarray(first), np.asarray(second)
    cosine = float(a @ b)
    if cosine < 0.0:
        b, cosine = -b, -cosine
    if cosine > 1.0 - 1e-10:
        mixed = a + ratio * (b - a)
    else:
        angle = np.arccos(cosine)
        mixed = (np.sin((1.0 - ratio) * angle) * a + np.sin(ratio * angle) * b) / np.sin(angle)
    x, y, z, w = (mixed / np.linalg.norm(mixed)).tolist()
    return (x, y, z, w)


def pose_matrix(translation: Vector3, quaternion: Quaternion) -> Float64Array:
    """Return a pose as a (4, 4) transform."""
    transform = np.eye(4)
    transform[:3, :3] = rotation_from_quaternion(quaternion)
    transform[:3, 3] = translation
    return transform


def pose_between(
    first: tuple[Vector3, Quaternion], second: tuple[Vector3, Quaternion], ratio: float
) -> Float64Array:
    """Return the (4, 4) pose ``ratio`` (0..1) of the way from ``first`` to ``second``."""
    start, end = np.asarray(first[0]), np.asarray(second[0])
    x, y, z = (start + ratio * (end - start)).tolist()
    return pose_matrix((x, y, z), slerp(first[1], second[1], ratio))


def moved(points: Float32Array, transform: Float64Array) -> Float32Array:
    """Return ``points`` (N, 4) after the rigid (4, 4) ``transform`` of x, y, z; the fourth column stays."""
    if not len(points):
        return points.copy()
    affine = np.zeros((4, 5))
    affine[:3, :3], affine[:3, 4], affine[3, 3] = transform[:3, :3], transform[:3, 3], 1.0
    # One pass of a picture of four channels: many times as fast as a product and a sum of three columns.
    return np.asarray(cv2.transform(points[None], affine)[0])


class Trajectory:
    """Poses of a vehicle in a frame that stands still; between two of them it moves and turns evenly.

    Nothing is known between two that are more than MAX_GAP_S apart.

    Args:
        poses: (4, 4) float64 fixed_from_base by stamp in nanoseconds.
    """

    def __init__(self, poses: Mapping[int, Float64Array]) -> None:
        self._stamps = np.array(sorted(poses), np.int64)
        ordered = [poses[stamp] for stamp in self._stamps.tolist()]
        self._poses: list[tuple[Vector3, Quaternion]] = []
        for pose in ordered:
            x, y, z = pose[:3, 3].tolist()
            qx, qy, qz, qw = Rotation.from_matrix(pose[:3, :3]).as_quat().tolist()
            self._poses.append(((x, y, z), (qx, qy, qz, qw)))

    def __len__(self) -> int:
        return len(self._stamps)

    def at(self, stamp_ns: int) -> Float64Array | None:
        """Return fixed_from_base (4, 4) at a stamp, None beyond all poses and in long gaps."""
        after = int(np.searchsorted(self._stamps, stamp_ns))
        if after < len(self) and self._stamps[after] == stamp_ns:
            return pose_matrix(*self._poses[after])
        if not 0 < after < len(self):
            return None
        start, end = self._stamps[after - 1 : after + 1].tolist()
        if end - start > MAX_GAP_S * 1e9:
            return None
        ratio = (stamp_ns - start) / (end - start)
        return pose_between(self._poses[after - 1], self._poses[after], ratio)

    def motion(self, now_ns: int, then_ns: int) -> Float64Array:
        """Return where the vehicle was at one stamp as of where it is at another, (4, 4).

        Where either is not known it counts as standing: the identity.
        """
        now, then = self.at(now_ns), self.at(then_ns)
        return np.eye(4) if now is None or then is None else np.linalg.inv(now) @ then
