# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Where a vehicle was, at any time within a recording."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from kestrel.types import Float64Array


class Trajectory:
    """Poses of a vehicle in a frame that stands still; between two of them it moves and turns evenly.

    Args:
        poses: (4, 4) float64 fixed_from_base by stamp in nanoseconds.
    """

    def __init__(self, poses: Mapping[int, Float64Array]) -> None:
        self._stamps = np.array(sorted(poses), np.int64)
        ordered = np.array([poses[stamp] for stamp in self._stamps.tolist()]).reshape(-1, 4, 4)
        self._places = ordered[:, :3, 3]
        self._turns = Rotation.from_matrix(ordered[:, :3, :3]) if len(ordered) else None

    def __len__(self) -> int:
        return len(self._stamps)

    def at(self, stamp_ns: int) -> Float64Array | None:
        """Return fixed_from_base (4, 4) at a stamp, None before the first and after the last pose."""
        after = int(np.searchsorted(self._stamps, stamp_ns))
        if self._turns is None or after == len(self) or (after == 0 and self._stamps[0] != stamp_ns):
            return None
        before = max(after - 1, 0)
        pose = np.eye(4)
        if before == after:
            pose[:3, 3], pose[:3, :3] = self._places[0], self._turns[0].as_matrix()
            return pose
        share = (stamp_ns - self._stamps[before]) / (self._stamps[after] - self._stamps[before])
        pose[:3, 3] = self._places[before] + share * (self._places[after] - self._places[before])
        pose[:3, :3] = Slerp([0, 1], self._turns[[before, after]])([share]).as_matrix()[0]
        return pose

    def motion(self, now_ns: int, then_ns: int) -> Float64Array:
        """Return where the vehicle was at one stamp as of where it is at another, (4, 4).

        Where either is not known it counts as standing: the identity.
        """
        now, then = self.at(now_ns), self.at(then_ns)
        return np.eye(4) if now is None or then is None else np.linalg.inv(now) @ then
