# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Rigs drawn at random: what a network has to serve that calibration tells which sensors it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.random import Generator

Span = tuple[float, float]


@dataclass(frozen=True)
class _Body:
    """What carries the sensors: spans in metres from which its size is drawn.

    reach: from the middle to the cameras ahead. middle: in front of the rear axle. side: to those beside it.
    height: of the cameras. above: of the LiDAR above the highest of them. down_deg: how far they look down.
    """

    reach: Span
    middle: Span
    side: Span
    height: Span
    above: Span
    down_deg: Span


_BODIES: Final = (
    _Body((0.6, 1.2), (0.6, 1.3), (0.4, 0.8), (1.3, 2.1), (0.05, 0.5), (-1.0, 5.0)),  # car or van
    _Body((0.1, 0.4), (0.0, 0.3), (0.1, 0.35), (0.5, 1.3), (0.05, 0.4), (-6.0, 2.0)),  # small robot
    _Body((1.0, 1.8), (2.0, 4.5), (0.9, 1.2), (2.1, 3.0), (0.05, 0.4), (4.0, 12.0)),  # lorry or bus
)
_BODY_SHARES: Final = (0.6, 0.2, 0.2)

_CAMERAS: Final = (1, 2, 3, 4, 5, 6, 7, 8)
_PICTURES: Final = ((1920, 1080), (1600, 900), (1920, 1200), (1280, 720), (1440, 720), (1242, 375))
_VIEW_DEG: Final = (48.0, 112.0)
"""Horizontal angles of view; they are drawn alike often in the logarithm of the focal length."""

_OTHER_VIEW: Final = 0.3
"""Share of the rigs one of whose cameras has another lens than the rest."""

_DISTORTED: Final = 0.3
"""Share of the rigs whose lenses draw the corners of their pictures in."""

_BEAMS: Final = (16, 32, 40, 64, 128)


def drawn_rig(seed: int) -> dict[str, Any]:
    """Return the entries of a rig file, drawn by ``seed``: 1 to 8 cameras and a LiDAR of 16 to 128 beams.

    Cameras sit around a car, a small robot or a lorry. They are spread over all sides, or look ahead side by
    side with some overlap where they are too few for that; the first looks ahead.
    """
    draw = np.random.default_rng((seed, 0x716))
    body = _BODIES[int(draw.choice(len(_BODIES), p=_BODY_SHARES))]
    count = int(draw.choice(_CAMERAS))
    width, height = _PICTURES[int(draw.integers(len(_PICTURES)))]
    focals = _focals_px(draw, count, width)
    yaws_deg = _yaws_deg(draw, count, float(np.degrees(2 * np.arctan(width / 2 / focals[0]))))
    middle, reach, side = (draw.uniform(*span) for span in (body.middle, body.reach, body.side))
    above_ground, down_deg = draw.uniform(*body.height), draw.uniform(*body.down_deg)
    cameras: dict[str, dict[str, Any]] = {}
    for number, yaw_deg in enumerate(yaws_deg):
        yaw_deg += draw.uniform(-4, 4) if number else draw.uniform(-1, 1)
        ahead, left = np.cos(np.radians(yaw_deg)), np.sin(np.radians(yaw_deg))
        place = middle + reach * ahead, side * left, above_ground + draw.uniform(-0.1, 0.1)
        cameras["front" if number == 0 else f"camera_{number}"] = {
            "position": [_rounded(value) for value in place],
            "yaw_deg": _rounded(yaw_deg),
            "pitch_deg": _rounded(down_deg + draw.uniform(-1, 1)),
            "roll_deg": _rounded(draw.normal(0, 0.5)),
            "focal_px": _rounded(focals[number]),
            "phase_s": _rounded(draw.uniform(0, 0.05)),
        }
    defaults: dict[str, Any] = {"hz": 10, "width": width, "height": height, "delivered": [width, height]}
    if draw.random() < _DISTORTED:
        defaults |= {"distortion_model": "plumb_bob", "distortion": _distortion(draw, width, height, focals)}
    top = max(camera["position"][2] for camera in cameras.values())
    return {
        "name": f"drawn_{seed}",
        "odometry_hz": 50,
        "imu_hz": 100,
        "imu": {"position": [_rounded(middle), 0.0, _rounded(above_ground / 3)]},
        "lidar": _lidar(draw, [_rounded(middle), 0.0, _rounded(top + draw.uniform(*body.above))]),
        "cameras": cameras,
        "camera_defaults": defaults,
    }


def _yaws_deg(draw: Generator, count: int, view_deg: float) -> list[float]:
    """Return where cameras look: 0, 1, -1, 2, -2, ... steps from straight ahead, views overlap."""
    step_deg = min(360 / count, view_deg * draw.uniform(0.75, 1.0))
    return [(number + 1) // 2 * (1 if number % 2 else -1) * step_deg for number in range(count)]


def _focals_px(draw: Generator, count: int, width: int) -> list[float]:
    """Return the focal length of each camera, pixels: mostly nearly the same for all."""
    widest, longest = (width / 2 / np.tan(np.radians(view) / 2) for view in reversed(_VIEW_DEG))
    focals = np.exp(draw.uniform(np.log(widest), np.log(longest))) * draw.uniform(0.97, 1.03, count)
    if count > 1 and draw.random() < _OTHER_VIEW:
        focals[draw.integers(count)] = np.exp(draw.uniform(np.log(widest), np.log(longest)))
    return [float(focal) for focal in focals]


def _distortion(draw: Generator, width: int, height: int, focals: list[float]) -> list[float]:
    """Return plumb_bob coefficients by which the corners of the widest picture move in by up to a tenth."""
    corner = (width**2 + height**2) / 4 / min(focals) ** 2
    return [round(-draw.uniform(0.02, 0.1) / corner, 6), 0.0, 0.0, 0.0, 0.0]


def _lidar(draw: Generator, position: list[float]) -> dict[str, Any]:
    beams = int(draw.choice(_BEAMS))
    lowest, highest = draw.uniform(-31, -15), draw.uniform(2, 15)
    return {
        "position": position,
        "pitch_deg": _rounded(draw.normal(0, 0.5)),
        "hz": 10,
        "phase_s": 0.0,
        "columns": int(draw.choice((900, 1024, 1800, 2048))),
        "blocks": [{"lowest_deg": _rounded(lowest), "highest_deg": _rounded(highest), "beams": beams}],
        "range_m": [_rounded(draw.uniform(0.5, 2.0)), _rounded(draw.uniform(80, 150))],
        "range_noise_m": 0.02,
        "range_noise_per_m": 0.0002,
        "reference_range_m": _rounded(draw.uniform(50, 100)),
    }


def _rounded(value: float) -> float:
    return round(float(value), 4)
