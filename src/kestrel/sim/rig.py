# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Which sensors a simulated vehicle carries, where they sit and how they measure; read from YAML."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from scipy.spatial.transform import Rotation

from kestrel.errors import CalibrationError, ConfigError, describe
from kestrel.road_view import lowest_top
from kestrel.sim.drawn_rig import drawn_rig
from kestrel.types import Calibration, Float64Array

AXES_FROM_OPTICAL: Final = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""(4, 4) optical axes (x right, y down, z forward) into x forward, y left, z up (REP-103)."""

FASTEST_TURN_HZ: Final = 100.0

_WRONG_ENTRIES: Final = (KeyError, TypeError, ValueError, AttributeError)
_ANGLES: Final = ("yaw_deg", "pitch_deg", "roll_deg")
_RIG_KEYS: Final = frozenset(("name", "odometry_hz", "imu_hz", "imu", "lidar", "cameras", "camera_defaults"))
_IMU_KEYS: Final = frozenset(("position", *_ANGLES))
_LIDAR_KEYS: Final = _IMU_KEYS | {
    *("hz", "phase_s", "columns", "blocks", "range_m", "range_noise_m", "range_noise_per_m"),
    "reference_range_m",
}
_CAMERA_KEYS: Final = _IMU_KEYS | {
    *("hz", "phase_s", "width", "height", "delivered", "focal_px", "principal_px"),
    *("distortion_model", "distortion"),
}
_CAMERA_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
"""What may be part of a topic's name."""
_DRAWN: Final = re.compile(r"drawn:([0-9]+)")


@dataclass(frozen=True)
class LidarSpec:
    """A spinning LiDAR; it turns clockwise seen from above and starts each sweep looking back.

    base_from_lidar: (4, 4) float64. elevation_rad: (R,) float64 by ring, lowest first.
    columns: firings per turn, all rings at once. range_m: (lowest, highest) measured range.
    range_noise_m, range_noise_per_m: standard deviation at range 0 and its growth.
    reference_range_m: range at which half the shots on a surface of reflectivity 0.1, hit squarely, return.
    """

    base_from_lidar: Float64Array
    hz: float
    phase_s: float
    elevation_rad: Float64Array
    columns: int
    range_m: tuple[float, float]
    range_noise_m: float
    range_noise_per_m: float
    reference_range_m: float


@dataclass(frozen=True)
class CameraSpec:
    """A camera with a global shutter.

    base_from_camera: (4, 4) float64, optical frame into base_link. camera_matrix: (3, 3) float64 of the
        native ``width`` x ``height`` picture. delivered: (width, height) of the pictures it sends by default.
    distortion_model, distortion: as in types.Calibration.
    """

    name: str
    base_from_camera: Float64Array
    camera_matrix: Float64Array
    width: int
    height: int
    hz: float
    phase_s: float
    delivered: tuple[int, int]
    distortion_model: str
    distortion: Float64Array

    def calibration(self, size: tuple[int, int] | None = None) -> Calibration:
        """Return how a picture of ``size`` (width, height) projects; its reference frame is base_link.

        The native picture is scaled to cover ``size`` and cropped: equally left and right, and at the top or,
        where that would take the horizon, at the bottom too, as networks see it (`kestrel.road_view`). Pixel
        centres lie on whole numbers.
        """
        width, height = size or self.delivered
        scale = max(width / self.width, height / self.height)
        left = (self.width * scale - width) / 2
        native = Calibration(self.camera_matrix, self.width, self.height, self.base_from_camera)
        top = min(self.height * scale - height, scale * lowest_top(native, height / scale))
        matrix = self.camera_matrix.copy()
        matrix[:2] *= scale
        matrix[0, 2] = (self.camera_matrix[0, 2] + 0.5) * scale - 0.5 - left
        matrix[1, 2] = (self.camera_matrix[1, 2] + 0.5) * scale - 0.5 - top
        return Calibration(
            camera_matrix=matrix,
            width=width,
            height=height,
            reference_from_camera=self.base_from_camera,
            distortion_model=self.distortion_model,
            distortion=self.distortion,
        )


@dataclass(frozen=True)
class Rig:
    """All sensors of one vehicle; ``base_from_imu``: (4, 4) float64."""

    name: str
    lidar: LidarSpec
    cameras: tuple[CameraSpec, ...]
    odometry_hz: float
    imu_hz: float
    base_from_imu: Float64Array

    def select(self, cameras: tuple[str, ...] | None = None, lidar_hz: float | None = None) -> Rig:
        """Return the rig with only the named cameras and another turning rate of the LiDAR.

        Raises:
            ConfigError: The rig has no camera of that name, one is named twice, or the rate is not positive.
        """
        known = {camera.name: camera for camera in self.cameras}
        for name in cameras or ():
            if name not in known:
                raise ConfigError(describe(f"camera of rig {self.name}", expected=sorted(known), found=name))
        if cameras is not None and len(set(cameras)) < len(cameras):
            raise ConfigError(describe("cameras", expected="each of them once", found=list(cameras)))
        if lidar_hz is not None and not 0 < lidar_hz <= FASTEST_TURN_HZ:
            raise ConfigError(describe("lidar_hz", expected=f"in (0, {FASTEST_TURN_HZ:g}]", found=lidar_hz))
        return replace(
            self,
            cameras=self.cameras if cameras is None else tuple(known[name] for name in cameras),
            lidar=self.lidar if lidar_hz is None else replace(self.lidar, hz=lidar_hz),
        )


def parse_size(text: str) -> tuple[int, int]:
    """Return (width, height) of a text like 704x256; ConfigError if it is none."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0):
        raise ConfigError(describe("image size", expected="WIDTHxHEIGHT, for one 704x256", found=text))
    return int(width), int(height)


def rig_names() -> list[str]:
    """Return the names of the rigs that come with Kestrel."""
    folder = resources.files("kestrel.sim") / "rigs"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def load_rig(name_or_path: str | Path) -> Rig:
    """Return a rig that comes with Kestrel, by name, one from a YAML file, or one drawn by a seed.

    Args:
        name_or_path: "drawn:7" is the rig that seed 7 draws, see kestrel.sim.drawn_rig.

    Raises:
        ConfigError: No such rig, or the file cannot be read, lacks an entry or holds a wrong one.
    """
    if drawn := _DRAWN.fullmatch(str(name_or_path)):
        return _rig(drawn_rig(int(drawn[1])))
    shipped = str(name_or_path) in rig_names()
    if not shipped and not Path(name_or_path).is_file():
        raise ConfigError(
            describe("rig", expected=f"one of {rig_names()}, drawn:SEED or a YAML file", found=name_or_path)
        )
    path = resources.files("kestrel.sim") / "rigs" / f"{name_or_path}.yaml" if shipped else Path(name_or_path)
    try:
        return _rig(yaml.safe_load(path.read_text()))
    except (*_WRONG_ENTRIES, CalibrationError, OSError, yaml.YAMLError) as error:
        found = f"no entry {error}" if isinstance(error, KeyError) else repr(error)
        raise ConfigError(
            describe(f"rig {name_or_path}", expected="the entries of rigs/nuscenes.yaml", found=found)
        ) from error


def _rig(entry: Mapping[str, Any]) -> Rig:
    _check_keys("the rig", entry, _RIG_KEYS)
    defaults = entry.get("camera_defaults", {})
    rig = Rig(
        name=str(entry["name"]),
        lidar=_lidar(entry["lidar"]),
        cameras=tuple(_camera(name, {**defaults, **camera}) for name, camera in entry["cameras"].items()),
        odometry_hz=_positive(entry, "odometry_hz"),
        imu_hz=_positive(entry, "imu_hz"),
        base_from_imu=_mount(entry["imu"]),
    )
    _check_keys("imu", entry["imu"], _IMU_KEYS)
    return rig


def _check_keys(name: str, entry: Mapping[str, Any], known: frozenset[str]) -> None:
    """Raise ValueError if there are keys that nobody reads: a misspelt one would have no effect."""
    if unknown := set(entry) - known:
        raise ValueError(f"{name} has no entry {sorted(map(str, unknown))}; there are {sorted(known)}")


def _number(entry: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = float(entry[name] if default is None else entry.get(name, default))
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value}")
    return value


def _positive(entry: Mapping[str, Any], name: str) -> float:
    value = _number(entry, name)
    if value <= 0:
        raise ValueError(f"{name} must be positive, not {value}")
    return value


def _not_negative(entry: Mapping[str, Any], name: str) -> float:
    value = _number(entry, name)
    if value < 0:
        raise ValueError(f"{name} must not be negative, but is {value}")
    return value


def _count(entry: Mapping[str, Any], name: str) -> int:
    value = _positive(entry, name)
    if value != int(value):
        raise ValueError(f"{name} must be a whole number, not {value}")
    return int(value)


def _mount(entry: Mapping[str, Any]) -> Float64Array:
    transform = np.eye(4)
    angles = [_number(entry, angle, 0.0) for angle in _ANGLES]
    transform[:3, :3] = Rotation.from_euler("ZYX", angles, degrees=True).as_matrix()
    position = np.asarray(entry["position"], np.float64)
    if position.shape != (3,) or not np.isfinite(position).all():
        raise ValueError(f"position must be three finite numbers, not {entry['position']}")
    transform[:3, 3] = position
    return transform


def _lidar(entry: Mapping[str, Any]) -> LidarSpec:
    _check_keys("lidar", entry, _LIDAR_KEYS)
    degrees = np.concatenate(
        [
            np.linspace(_number(block, "lowest_deg"), _number(block, "highest_deg"), _count(block, "beams"))
            for block in entry["blocks"]
        ]
    )
    nearest, farthest = (float(value) for value in entry["range_m"])
    if not 0 <= nearest < farthest < math.inf:
        raise ValueError(f"range_m must be the lowest and the highest range, not {entry['range_m']}")
    if _positive(entry, "hz") > FASTEST_TURN_HZ:
        raise ValueError(f"hz of the lidar must be at most {FASTEST_TURN_HZ:g}, not {entry['hz']}")
    return LidarSpec(
        base_from_lidar=_mount(entry),
        hz=_positive(entry, "hz"),
        phase_s=_number(entry, "phase_s"),
        elevation_rad=np.deg2rad(np.sort(degrees)),
        columns=_count(entry, "columns"),
        range_m=(nearest, farthest),
        range_noise_m=_not_negative(entry, "range_noise_m"),
        range_noise_per_m=_not_negative(entry, "range_noise_per_m"),
        reference_range_m=_positive(entry, "reference_range_m"),
    )


def _camera(name: Any, entry: Mapping[str, Any]) -> CameraSpec:
    if not isinstance(name, str) or not _CAMERA_NAME.fullmatch(name):
        raise ValueError(f"name of a camera must be letters, digits and underscores, not {name!r}")
    _check_keys(f"camera {name}", entry, _CAMERA_KEYS)
    width, height = _count(entry, "width"), _count(entry, "height")
    centre_x, centre_y = entry.get("principal_px", ((width - 1) / 2, (height - 1) / 2))
    focal = _positive(entry, "focal_px")
    delivered_width, delivered_height = entry.get("delivered", (width, height))
    spec = CameraSpec(
        name=name,
        base_from_camera=_mount(entry) @ AXES_FROM_OPTICAL,
        camera_matrix=np.array([[focal, 0, centre_x], [0, focal, centre_y], [0, 0, 1.0]]),
        width=width,
        height=height,
        hz=_positive(entry, "hz"),
        phase_s=_number(entry, "phase_s"),
        delivered=(int(delivered_width), int(delivered_height)),
        distortion_model=str(entry.get("distortion_model", "none")),
        distortion=np.asarray(entry.get("distortion", []), np.float64),
    )
    if min(spec.delivered) < 1:
        raise ValueError(f"delivered must be a positive width and height, not {spec.delivered}")
    spec.calibration()  # what is wrong with its lens is said before a world is built
    return spec
