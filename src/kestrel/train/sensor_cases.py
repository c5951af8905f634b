# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Frames of the training data with some of their sensors left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from kestrel.train import cache
from kestrel.types import Image, Int64Array, PointCloud, SensorFrame

BASE: Final = "base_link"
START_NS: Final = 10**9
CAMERAS: Final = "cameras"
LIDAR: Final = "lidar"

RING: Final = ("front", "front_left", "back_left", "back", "back_right", "front_right")
"""Cameras of a rig of six, counter-clockwise from the one that looks ahead."""


@dataclass(frozen=True)
class Without:
    """Sensors that are left out of a drive.

    sensors: LIDAR, CAMERAS (all of them), or names of RING. later: whether only in its second half.
    """

    sensors: frozenset[str] = frozenset()
    later: bool = False

    @classmethod
    def of(cls, *sensors: str, later: bool = False) -> Without:
        """Return what leaves these sensors out."""
        return cls(frozenset(sensors), later)

    def __contains__(self, sensor: str) -> bool:
        return sensor in self.sensors

    def __str__(self) -> str:
        if not self.sensors:
            return "all sensors"
        return f"without {', '.join(sorted(self.sensors))}{', later' if self.later else ''}"


NOTHING: Final = Without()
CASES: Final[Mapping[str, Mapping[str, Without]]] = {
    "1 of 6 cameras": {name: Without.of(name) for name in RING},
    "3 of 6 cameras": {
        "all ahead": Without.of("front_left", "front", "front_right"),
        "all behind": Without.of("back_left", "back", "back_right"),
    },
    "all cameras": {"all cameras": Without.of(CAMERAS)},
    "LiDAR": {"LiDAR": Without.of(LIDAR)},
    "LiDAR, later": {"LiDAR, later": Without.of(LIDAR, later=True)},
}
"""What fails, and the runs of which the case is the mean. Each camera fails in turn; of the ways to lose
three the two that leave half of the surroundings unseen. Of what fails later the frames before count neither
with it nor without."""


def is_later(place: int, count: int) -> bool:
    """Return whether frame ``place`` of ``count`` is in the second half of its drive."""
    return 2 * place >= count


def camera_names(cached: cache.CachedFrame) -> tuple[str, ...]:
    """Return the name of each camera of a frame: by RING where there are six, else numbered like that."""
    order = _around(cached)
    names = [""] * len(order)
    for place, number in enumerate(order):
        names[number] = RING[place] if len(order) == len(RING) else f"camera{place}"
    return tuple(names)


def _around(cached: cache.CachedFrame) -> Int64Array:
    """Return the numbers of the cameras counter-clockwise from the one that looks ahead the most.

    None need look straight ahead: one that is mounted a little to the right is still the first, not the last.
    """
    ahead = cached.base_from_camera[:, :2, 2]  # the optical axis in base_link
    bearing = np.round(np.degrees(np.arctan2(ahead[:, 1], ahead[:, 0])), 3)
    # Of two that are as far from ahead the left one comes first, and the right one last.
    first = min(bearing, key=lambda angle: (abs(angle), -angle), default=0.0)
    return np.argsort(np.round(bearing - first, 3) % 360, kind="stable")


def stamp_of(path: Path) -> int:
    """Return the stamp of a key frame in a recording that its drive might be, nanoseconds."""
    return START_NS + round(cache.frame_number(path) * 1e9 / cache.frame_hz(path.parent))


def sensor_frame(
    cached: cache.CachedFrame, sweeps: int, without: Without = NOTHING, stamp_ns: int = START_NS
) -> SensorFrame:
    """Return a cached key frame as a node would hand it over.

    Args:
        cached: the frame.
        sweeps: how many earlier ones, at most.
        without: sensors that are left out.
        stamp_ns: of the frame, and of its pictures.
    """
    names = camera_names(cached)
    images, calibrations = {}, {}
    for number in _around(cached):
        name = names[number]
        if CAMERAS in without or name in without:
            continue
        picture = cached.picture(number)
        images[name] = Image(picture, stamp_ns, name)
        calibrations[name] = cached.calibration(number, (picture.shape[0], picture.shape[1]))
    clouds = [] if LIDAR in without else _clouds(cached, sweeps, stamp_ns)
    return SensorFrame(
        stamp_ns=stamp_ns,
        frame_id=BASE,
        cloud=clouds[0] if clouds else None,
        images=images,
        calibrations=calibrations,
        sweeps=tuple(clouds[1:]),
        fixed_from_reference=cached.odom_from_base if np.isfinite(cached.odom_from_base).all() else None,
    )


def _clouds(cached: cache.CachedFrame, sweeps: int, stamp_ns: int) -> list[PointCloud]:
    points = cached.cloud()
    return [
        PointCloud(
            np.ascontiguousarray(points[cached.sweep == index, :4]),
            stamp_ns - round(float(cached.ages[index]) * 1e9),
            BASE,
        )
        for index in range(min(1 + sweeps, len(cached.ages)))
    ]
