# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What goes on in front of the vehicle, read off the motion itself rather than off the script."""

from __future__ import annotations

from typing import Final

import numpy as np

from kestrel.sim.world.traffic import STEP_S, Flags, Motion
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
        self._drift = motion.speed * np.sin(self._crossing_angle)

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
        """Event of every time step, without flickers shorter than half a second."""
        names = [self._across(k) or self._own(k) for k in range(len(self._motion.ego_s))]
        keep = round(0.5 / STEP_S)
        start = 0
        for k in range(1, len(names) + 1):
            if k == len(names) or names[k] != names[start]:
                if k - start < keep and start > 0:
                    names[start:k] = [names[start - 1]] * (k - start)
                start = k if k < len(names) and names[k] != names[k - 1] else start
        return names

    def _across(self, k: int) -> str | None:
        """Someone crosses the way of the ego vehicle, turns across it or moves into its lane."""
        motion, ahead, left, drift = self._motion, self._ahead[k], self._left[k], self._drift[k]
        length = self._sizes[:, 0]
        moving = motion.exists[k] & (motion.speed[k] > 0.5)
        along = np.cos(self._crossing_angle[k])
        inward = left * drift < 0
        enters = self._enters(k)
        near = moving & (ahead > 0.3) & (ahead < RANGE_M)
        sideways = near & (np.abs(drift) > 0.55 * motion.speed[k]) & (np.abs(along) < 0.84)
        reach = 2.6 + length / 2
        crossing = sideways & (np.abs(left) < 16.0) & ((inward & enters) | (np.abs(left) < reach))
        turned = self._came_against(k)
        if crossing.any():
            first = int(np.where(crossing, ahead, np.inf).argmin())
            if turned[first]:
                return "oncoming_turn"
            return "crossing_from_left" if drift[first] < 0 else "crossing_from_right"
        turning = near & turned & (drift < -0.25 * motion.speed[k]) & (np.abs(left) < 6.0)
        if (turning & (left > -_LANE - length / 2)).any():
            return "oncoming_turn"
        beside = moving & (along > 0.84) & (ahead - length / 2 < RANGE_M) & (ahead > -1.0)
        shift = inward & (np.abs(drift) > 0.25) & (np.abs(left) > 0.3) & (np.abs(left) < 3.9)
        return "cut_in" if (beside & shift & enters).any() else None

    def _own(self, k: int) -> str:
        """What the ego vehicle does, and the vehicle in front of it."""
        motion, ahead = self._motion, self._ahead[k]
        if motion.ego_speed[k] < 0.3:
            return "stopped"
        rear = ahead - self._sizes[:, 0] / 2
        same_way = np.cos(self._crossing_angle[k]) > 0.84
        lead = motion.exists[k] & same_way & (np.abs(self._left[k]) < _LANE) & (rear < 35.0) & (ahead > 0.0)
        if (lead & (motion.acceleration[k] < -1.5) & (motion.speed[k] > 0.5)).any():
            return "lead_braking"
        slowing = motion.ego_acceleration[k] < (-0.8 if motion.ego_speed[k] > 4.0 else -0.25)
        free = not (lead & (motion.speed[k] > 1.0)).any()
        return "ego_stopping" if slowing and free and self._stops(k) else "clear"

    def _came_against(self, k: int) -> Flags:
        """Movers that drove towards the ego vehicle during the last seconds."""
        back = max(k - int(7.0 / STEP_S), 0)
        recent = np.cos(self._crossing_angle[back : k + 1]) < -0.8
        there = recent & np.isfinite(self._ahead[back : k + 1])
        came: Flags = np.any(there, axis=0)
        return came & (self._sizes[:, 0] > 1.2)

    def _enters(self, k: int) -> Flags:
        """Movers that are in the ego lane within the next four and a half seconds."""
        later = min(k + int(4.5 / STEP_S), len(self._left) - 1)
        enters: Flags = np.any(np.abs(self._left[k : later + 1]) < 1.2, axis=0)
        return enters

    def _stops(self, k: int) -> bool:
        """Whether the ego vehicle nearly stands within the next five seconds."""
        return bool((self._motion.ego_speed[k : k + int(5.0 / STEP_S)] < 1.0).any())
