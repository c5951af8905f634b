# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Light and air of a drive."""

from __future__ import annotations

from typing import Final

import numpy as np

from kestrel.errors import ConfigError, describe
from kestrel.sim.scene import Weather

WEATHERS: Final = ("day", "dusk", "fog", "rain")

_SKY: Final = {
    "day": ((0.74, 0.83, 0.93), (0.30, 0.52, 0.86)),
    "dusk": ((0.93, 0.66, 0.47), (0.26, 0.30, 0.50)),
    "fog": ((0.76, 0.78, 0.80), (0.70, 0.73, 0.76)),
    "rain": ((0.58, 0.61, 0.65), (0.46, 0.50, 0.55)),
}


def build_weather(rng: np.random.Generator, name: str | None) -> Weather:
    """Weather of a name in WEATHERS, or one drawn at random (day as often as all others together).

    Raises:
        ConfigError: there is no weather of that name.
    """
    chosen = name or str(rng.choice(WEATHERS, p=(0.5, 0.2, 0.14, 0.16)))
    if chosen not in WEATHERS:
        raise ConfigError(describe("weather", expected=list(WEATHERS), found=name))
    elevation = float(rng.uniform(0.08, 0.24) if chosen == "dusk" else rng.uniform(0.45, 1.15))
    azimuth = float(rng.uniform(-np.pi, np.pi))
    direction = (np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation))
    sun, ambient = {"day": (1.1, 0.55), "dusk": (0.7, 0.38), "fog": (0.15, 0.8), "rain": (0.1, 0.62)}[chosen]
    horizon, zenith = (np.clip(np.array(c) + rng.normal(0, 0.02, 3), 0, 1) for c in _SKY[chosen])
    return Weather(
        name=chosen,
        sun_direction=np.array(direction, np.float32),
        sun=sun * float(rng.uniform(0.85, 1.15)),
        ambient=ambient * float(rng.uniform(0.9, 1.1)),
        fog_per_m=float(
            {"fog": rng.uniform(0.012, 0.03), "rain": rng.uniform(0.003, 0.008)}.get(chosen, 0.0006)
        ),
        rain=float(rng.uniform(0.3, 1.0)) if chosen == "rain" else 0.0,
        sky=horizon.astype(np.float32),
        zenith=zenith.astype(np.float32),
    )
