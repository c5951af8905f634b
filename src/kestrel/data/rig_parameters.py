# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What the fusion node is told of a vehicle's sensors, from its ROS parameter file.

Commands that read recordings take the same file, so that a score or a training sees what the vehicle sees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from kestrel.data.own_vehicle import OwnVehicle
from kestrel.errors import ConfigError, InputError, describe

SECTIONS: Final = ("/**", "fusion", "/fusion", "/**/fusion")
"""Names of the fusion node in a parameter file; of two that say the same parameter the later one counts."""
VALUES: Final = "ros__parameters"
LARGEST_INTENSITY: Final = 1e9
NANOSECONDS: Final = 1e9


@dataclass(frozen=True)
class RigParameters:
    """What recordings are read with: parameters of the fusion node by their names there.

    cameras: the names of those that count, None: all that a recording has. intensity_max: what is intensity
    1; 0: the largest of an integer type, 1 for floats. rectified: P and R of CameraInfo count.
    sensor_offsets_s: how far the stamps of the LiDAR and of each of ``cameras`` are ahead; empty: not at all.
    own_vehicle_box_m: see :class:`OwnVehicle`.

    Raises:
        ConfigError: a value that the node refuses.
    """

    cameras: tuple[str, ...] | None = None
    intensity_max: float = 0.0
    rectified: bool = False
    sensor_offsets_s: tuple[float, ...] = ()
    own_vehicle_box_m: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.intensity_max <= LARGEST_INTENSITY:
            expected = f"0 .. {LARGEST_INTENSITY:g}"
            raise ConfigError(
                describe("parameter intensity_max", expected=expected, found=self.intensity_max)
            )
        names = self.cameras or ()
        if len(set(names)) != len(names):
            raise ConfigError(describe("parameter cameras", expected="distinct names", found=names))
        if self.sensor_offsets_s and self.cameras is None:
            expected = "the parameter cameras, whose order it has, in the same file"
            raise ConfigError(describe("parameter sensor_offsets_s", expected=expected, found="none"))
        if self.sensor_offsets_s and len(self.sensor_offsets_s) != 1 + len(names):
            expected = f"none or {1 + len(names)} values (LiDAR, then each camera)"
            found = len(self.sensor_offsets_s)
            raise ConfigError(describe("parameter sensor_offsets_s", expected=expected, found=found))
        OwnVehicle(self.own_vehicle_box_m)

    def ahead_ns(self, camera: str) -> int:
        """Return how much further ahead the stamps of a camera are than those of the LiDAR."""
        if not self.sensor_offsets_s or self.cameras is None:
            return 0
        lidar_s, *each_s = self.sensor_offsets_s
        of_camera = dict(zip(self.cameras, each_s, strict=True))
        return int(of_camera.get(camera, lidar_s) * NANOSECONDS) - int(lidar_s * NANOSECONDS)


ALL_THERE_IS: Final = RigParameters()
"""Nobody has told anything: every camera of a recording, intensity by its type."""


def read_rig_parameters(path: Path | None) -> RigParameters:
    """Return what a ROS parameter file tells the fusion node of its sensors; without a file, ALL_THERE_IS.

    Other parameters, which the file may hold as well, are left to the node.

    Raises:
        InputError: the file cannot be read, or is no YAML.
        ConfigError: it has no section of the fusion node, or a value is not what the parameter takes.
    """
    if path is None:
        return ALL_THERE_IS
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(describe("--params", expected="a ROS parameter file", found=error)) from error
    try:
        return RigParameters(**{name: KINDS[name](name, value) for name, value in _values(told).items()})
    except ConfigError as error:
        expected = "what the fusion node takes"
        raise ConfigError(describe(f"--params {path}", expected=expected, found=error)) from error


def _values(told: object) -> dict[str, object]:
    """Return the parameters of RigParameters that a file says of the fusion node."""
    if not isinstance(told, Mapping) or not set(SECTIONS) & set(told):
        found = list(told) if isinstance(told, Mapping) else told
        expected = f"a section of the fusion node: {' or '.join(SECTIONS)}"
        raise ConfigError(describe("sections", expected=expected, found=found))
    values: dict[str, object] = {}
    for name, section in told.items():
        if name not in SECTIONS:
            continue
        inner = section.get(VALUES) if isinstance(section, Mapping) else None
        if not isinstance(inner, Mapping):
            raise ConfigError(describe(f"section {name}", expected=f"{VALUES} below it", found=section))
        values |= {key: value for key, value in inner.items() if key in KINDS}
    return values


def _wrong(name: str, expected: str, value: object) -> ConfigError:
    return ConfigError(describe(f"parameter {name}", expected=expected, found=repr(value)))


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, "bool", value)
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _wrong(name, "double", value)
    return float(value)


def _numbers(name: str, value: object) -> tuple[float, ...]:
    if not isinstance(value, list):
        raise _wrong(name, "double[]", value)
    return tuple(_number(name, item) for item in value)


def _names(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(name, "string[]", value)
    # ROS cannot type an empty list in YAML; [""] is how an empty string list is written there.
    return tuple(item for item in value if item)


KINDS: Final[dict[str, Any]] = {
    "cameras": _names,
    "intensity_max": _number,
    "rectified": _flag,
    "sensor_offsets_s": _numbers,
    "own_vehicle_box_m": _numbers,
}
"""What reads each parameter."""
