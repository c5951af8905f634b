# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What goes on in front of the vehicle, read off the motion itself rather than off the script."""

from __future__ import annotations

from typing import Final

import numpy as np

from kestrel.sim.world.traffic import STEP_S, Motion
from kestrel.types import Float64Array

RANGE_M: Final = 30.0
"""Nothing farther ahead of the bumper makes an event, except a braking vehicle (35 m)."""

_FRONT = 3.7
_LANE = 1.75


class EventReader:
    """Finds the event of every time step of a recorded drive.

    sizes: (M, 2) length and width of the movers. walker: (M,) bool.
    """

    def __init__(self, motion: Motion, sizes: Float64Array) -> None:
        self._motion = motion
        self._sizes = sizes
        self._lane_frame()

    def _lane_frame(self) -> None:
        """Positions relative to the ego path: distance ahead and offset to the left, (T, M) each."""
        motion = self._motion
        steps, count = motion.yaw.shape
        self._ahead = np.full((steps, count), np.inf)
        self._left = np.zeros((steps, count))
        self._crossing_angle = np.zeros((steps, count))
        path = motion.ego_path
        reach = np.arange(0.0, 62.0)
        for k in range(steps):
            s = motion.ego_s[k] + reach
            points, heading = path.position(s), path.direction(s)
            delta = motion.position[k, None, :, :2] - points[:, None]
            nearest = (delta**2).sum(-1).argmin(0)
            off = delta[nearest, np.arange(count)]
            cos, sin = np.cos(heading[nearest]), np.sin(heading[nearest])
            along = off[:, 0] * cos + off[:, 1] * sin
            valid = (
                motion.exists[k]
                & ~((nearest == len(reach) - 1) & (along > 1.0))
                & ~((nearest == 0) & (along < -0.5))
            )
            self._ahead[k] = np.where(valid, reach[nearest] + along - _FRONT, np.inf)
            self._left[k] = off[:, 1] * cos - off[:, 0] * sin
            self._crossing_angle[k] = motion.yaw[k] - heading[nearest]

    def names(self) -> list[str]:
        """Event of every time step."""
        motion = self._motion
        acceleration = np.gradient(motion.speed, STEP_S, axis=0) if motion.speed.shape[1] else motion.speed
        drift = motion.speed * np.sin(self._crossing_angle)
        return [self._at(k, acceleration[k], drift[k]) for k in range(len(motion.ego_s))]

    def _at(self, k: int, acceleration: Float64Array, drift: Float64Array) -> str:
        motion = self._motion
        ahead, left = self._ahead[k], self._left[k]
        length, width = self._sizes[:, 0], self._sizes[:, 1]
        moving = motion.exists[k] & (motion.speed[k] > 0.5)
        angle = np.cos(self._crossing_angle[k])
        near = moving & (ahead > 0.3) & (ahead < RANGE_M)
        across = near & (np.abs(drift) > 0.55 * motion.speed[k]) & (np.abs(angle) < 0.84)
        inward = -np.sign(left) * np.sign(drift) > 0
        reach = _LANE / 2 + np.where(length > 1.2, length / 2, 0.4)
        relevant = across & (np.abs(left) < 16.0) & ((inward & self._enters(k)) | (np.abs(left) < reach))
        turned = self._came_against(k)
        order = np.where(relevant, ahead, np.inf)
        if relevant.any():
            first = int(order.argmin())
            if turned[first]:
                return "oncoming_turn"
            return "crossing_from_left" if drift[first] < 0 else "crossing_from_right"
        oncoming = (
            near
            & turned
            & (drift < -0.25 * motion.speed[k])
            & (np.abs(left) < 6.0)
            & (left > -_LANE - length / 2)
        )
        if oncoming.any():
            return "oncoming_turn"
        same = moving & (angle > 0.84) & (ahead - length / 2 < RANGE_M) & (ahead > -1.0)
        entering = (
            same
            & (np.abs(drift) > 0.25)
            & inward
            & (np.abs(left) > 0.3)
            & (np.abs(left) < 3.9)
            & self._enters(k)
        )
        if entering.any():
            return "cut_in"
        lead = (
            motion.exists[k]
            & (angle > 0.84)
            & (np.abs(left) < _LANE)
            & (ahead - length / 2 < 35.0)
            & (ahead > 0.0)
        )
        if motion.ego_speed[k] < 0.3:
            return "stopped"
        if (lead & (acceleration < -1.5) & moving).any():
            return "lead_braking"
        if motion.ego_acceleration[k] < -0.8 and not (lead & (ahead < RANGE_M)).any() and self._stops(k):
            return "ego_stopping"
        return "clear"

    def _came_against(self, k: int) -> np.ndarray:
        """Movers that drove towards the ego vehicle during the last seconds."""
        back = max(k - int(7.0 / STEP_S), 0)
        recent = np.cos(self._crossing_angle[back : k + 1]) < -0.8
        driving = self._sizes[:, 0] > 1.2
        return (recent & np.isfinite(self._ahead[back : k + 1])).any(0) & driving

    def _enters(self, k: int) -> np.ndarray:
        """Movers that are in the ego lane within the next four and a half seconds."""
        later = min(k + int(4.5 / STEP_S), len(self._left) - 1)
        return (np.abs(self._left[k : later + 1]) < 1.2).any(0)

    def _stops(self, k: int) -> bool:
        """Whether the ego vehicle nearly stands within the next five seconds."""
        return bool((self._motion.ego_speed[k : k + int(5.0 / STEP_S)] < 1.0).any())
