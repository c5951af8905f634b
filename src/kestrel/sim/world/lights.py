# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Lights of vehicles and signals over a drive, read off the recorded motion, which they so agree with."""

from __future__ import annotations

from typing import Final

import numpy as np

from kestrel.sim.lamps import Lights
from kestrel.sim.world.traffic import STEP_S, Flags, Motion
from kestrel.types import UInt8Array

BRAKE_ON_M_S2: Final = -0.6
BRAKE_OFF_M_S2: Final = -0.3
"""A vehicle that slows down more than the first brakes; it has let go of the pedal at the second."""

STANDING_M_S: Final = 0.3
BLINK_HZ: Final = 1.5
AHEAD_S: Final = 1.4
"""Indicators are on so long before a vehicle changes its lane."""

AMBER_S: Final = 2.0
DARK_WEATHERS: Final = ("dusk", "fog", "rain")
"""Weathers in which everyone drives with lights on."""

_GOLDEN: Final = 0.618034


class RoadLights:
    """What is lit at every moment of a drive.

    Args:
        motion: Of all movers.
        motor: (M,) bool, movers that have lamps.
        weather: Name of the weather.
    """

    def __init__(self, motion: Motion, motor: Flags, weather: str) -> None:
        indicated = _before(motion.indicates > 0), _before(motion.indicates < 0)
        steady = np.where(_braking(motion), Lights.BRAKE, 0) | (
            Lights.DRIVING if weather in DARK_WEATHERS else 0
        )
        sides = np.where(indicated[0], Lights.LEFT, 0) | np.where(indicated[1], Lights.RIGHT, 0)
        self._steady = (steady * motor).astype(np.uint8)
        self._sides = (sides * motor).astype(np.uint8)
        self._phase = motion.actor * _GOLDEN
        self._signals = _signals(motion.green)

    def movers(self, step: int, time_s: float) -> UInt8Array:
        """Return (M,) Lights of all movers; indicators blink."""
        blink = (self._phase + time_s * BLINK_HZ) % 1.0 < 0.5
        lights: UInt8Array = self._steady[step] | np.where(blink, self._sides[step], 0).astype(np.uint8)
        return lights

    def signals(self, step: int) -> UInt8Array:
        """Return (G,) Lights of all groups of traffic signals."""
        lights: UInt8Array = self._signals[step]
        return lights


def _braking(motion: Motion) -> Flags:
    """Return (T, M): the brake is on, while slowing down and while standing in traffic."""
    lit = np.zeros(motion.speed.shape, bool)
    held = ~motion.parked
    for k, (speed, change) in enumerate(zip(motion.speed, motion.acceleration, strict=True)):
        standing = (speed < STANDING_M_S) & (change < -BRAKE_OFF_M_S2)
        slowing = (change < BRAKE_ON_M_S2) | (held & (change < BRAKE_OFF_M_S2))
        held = np.where(standing, held | slowing, slowing)
        lit[k] = held
    return lit


def _before(flags: Flags) -> Flags:
    """Return flags (T, M) that are also set during AHEAD_S before they are."""
    early = flags.copy()
    for step in range(1, round(AHEAD_S / STEP_S) + 1):
        early[:-step] |= flags[step:]
    return early


def _signals(green: Flags) -> UInt8Array:
    """Return (T, G) Lights of signals that let traffic go while ``green`` (T, G)."""
    after = round(AMBER_S / STEP_S)
    lights = np.where(green, Lights.GREEN, Lights.RED).astype(np.uint8)
    ended = np.zeros_like(green)
    for step in range(1, after + 1):
        ended[step:] |= green[:-step] & ~green[step:]
    lights[ended] = Lights.AMBER
    return lights
