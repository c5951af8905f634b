# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Lamps of vehicles and traffic signals: which pieces there are, when they shine, and how it looks.

A triangle says which lamp it is a piece of (Mesh.lamp); the state of an actor or of a signal group says which
lights are on (Lights). Lamps shine by themselves: neither sun nor shadow changes them, only the air does.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

import cv2
import numpy as np

from kestrel.sim.scene import World
from kestrel.types import Float32Array, Int64Array, UInt16Array

GLARE_ANGLE_RAD: Final = 0.0045
"""Spread (standard deviation) of the light that lens and eye scatter around a lamp."""

GLARE_SHARE: Final = 0.45
GLARE_PER_FOG: Final = 6.0
"""Part of a lamp's light that goes into its glare in clear air, and what each unit of fog_per_m adds."""

SIGNAL_GROUP: Final = 16
"""Mesh.lamp of a traffic signal is its Lamp plus SIGNAL_GROUP times its group."""


class Lamp(IntEnum):
    """What a piece of a lamp is; the value in Mesh.lamp."""

    NONE = 0
    HEAD = 1
    REAR = 2
    STOP = 3
    LEFT = 4
    RIGHT = 5
    RED = 6
    AMBER = 7
    GREEN = 8


class Lights(IntFlag):
    """What is switched on; the value of ActorState.lights, or (RED to GREEN) of a signal group."""

    DRIVING = 1
    BRAKE = 2
    LEFT = 4
    RIGHT = 8
    RED = 16
    AMBER = 32
    GREEN = 64


_SHINES: Final[tuple[tuple[Lamp, Lights, tuple[float, float, float]], ...]] = (
    (Lamp.HEAD, Lights.DRIVING, (3.4, 3.1, 2.5)),
    (Lamp.REAR, Lights.DRIVING, (0.55, 0.012, 0.008)),
    (Lamp.REAR, Lights.BRAKE, (3.4, 0.05, 0.03)),
    (Lamp.STOP, Lights.BRAKE, (3.4, 0.05, 0.03)),
    (Lamp.LEFT, Lights.LEFT, (3.2, 0.95, 0.03)),
    (Lamp.RIGHT, Lights.RIGHT, (3.2, 0.95, 0.03)),
    (Lamp.RED, Lights.RED, (3.0, 0.1, 0.05)),
    (Lamp.AMBER, Lights.AMBER, (3.0, 1.3, 0.04)),
    (Lamp.GREEN, Lights.GREEN, (0.12, 2.6, 0.9)),
)
"""Exposed radiance (red, green, blue) that a lamp adds while a light is on; the brightest light wins."""


def _glow_table() -> Float32Array:
    table = np.zeros((SIGNAL_GROUP, 128, 3), np.float32)
    state = np.arange(128)
    for lamp, light, radiance in _SHINES:
        on = (state & light) != 0
        table[lamp, on] = np.maximum(table[lamp, on], np.array(radiance, np.float32))
    return table


_GLOW: Final = _glow_table()
"""(SIGNAL_GROUP, 128, 3) exposed radiance by Lamp and Lights."""


class Switches:
    """Which lights of all actors and signals of a world are on at one moment."""

    def __init__(self, world: World, time_s: float) -> None:
        self._first_signal = max(world.actors, default=0) + 1
        signals = world.signals(time_s)
        self._lights = np.zeros(self._first_signal + max(len(signals), 1), np.uint8)
        for state in world.actor_states(time_s):
            self._lights[state.track_id] = state.lights
        self._lights[self._first_signal : self._first_signal + len(signals)] = signals

    def glow(self, lamp: UInt16Array, instance: UInt16Array) -> Float32Array:
        """Return (K, 3) exposed radiance of pieces (K,) Mesh.lamp of lamps of (K,) tracks, 0 for signals."""
        group = self._first_signal + (lamp // SIGNAL_GROUP).astype(np.int64)
        lights = self._lights[np.where(instance > 0, instance, group)]
        glow: Float32Array = _GLOW[lamp % SIGNAL_GROUP, lights]
        return glow


def add_glare(
    radiance: Float32Array, rows: Int64Array, glow: Float32Array, sigma_px: float, share: float
) -> None:
    """Add the veil that bright lamps spread over the pixels around them, in place.

    Args:
        radiance: (H, W, 3) exposed.
        rows: (K,) flat pixels that show a lamp.
        glow: (K, 3) its radiance there.
        sigma_px: Standard deviation of the spread.
        share: Part of the light that is spread.
    """
    height, width = radiance.shape[:2]
    row, column = np.divmod(rows, width)
    margin = int(np.ceil(3 * sigma_px))
    top, bottom = max(int(row.min()) - margin, 0), min(int(row.max()) + margin + 1, height)
    left, right = max(int(column.min()) - margin, 0), min(int(column.max()) + margin + 1, width)
    source = np.zeros((bottom - top, right - left, 3), np.float32)
    source[row - top, column - left] = share * glow
    size = 2 * margin + 1
    spread = cv2.GaussianBlur(source, (size, size), sigma_px, borderType=cv2.BORDER_CONSTANT)
    radiance[top:bottom, left:right] += spread
