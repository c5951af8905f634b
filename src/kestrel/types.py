# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The values that cross borders inside Kestrel: between readers, pipelines, nodes and evaluation.

Frames follow REP-103 (x forward, y left, z up; camera frames are optical: x right, y down, z forward),
units are metres, radians and seconds, stamps are integer nanoseconds. A 4x4 transform ``a_from_b`` maps
homogeneous points of frame ``b`` into frame ``a``. Every class checks its arrays when it is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kestrel.errors import CalibrationError, InputError, describe

Float32Array: TypeAlias = NDArray[np.float32]
Float64Array: TypeAlias = NDArray[np.float64]
UInt8Array: TypeAlias = NDArray[np.uint8]
UInt16Array: TypeAlias = NDArray[np.uint16]
UInt32Array: TypeAlias = NDArray[np.uint32]
Int64Array: TypeAlias = NDArray[np.int64]

DISTORTION_COEFFICIENTS: dict[str, tuple[int, ...]] = {
    "none": (0,),
    "plumb_bob": (4, 5),
    "rational_polynomial": (8,),
    "equidistant": (4,),
}
"""Distortion models of sensor_msgs/CameraInfo that Kestrel removes, and how many coefficients each has."""


def check_array(
    name: str, array: NDArray[np.generic], *, shape: tuple[int | None, ...], dtype: object
) -> None:
    """Raise InputError unless ``array`` has ``dtype`` and ``shape`` (None matches any length)."""
    fits = array.ndim == len(shape) and all(
        want is None or want == have for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype != np.dtype(dtype):  # type: ignore[call-overload]
        wanted = tuple("N" if want is None else want for want in shape)
        raise InputError(
            describe(
                name,
                expected=f"{np.dtype(dtype)} of shape {wanted}",  # type: ignore[call-overload]
                found=f"{array.dtype} of shape {array.shape}",
            )
        )


def check_rigid(name: str, transform: NDArray[np.float64]) -> None:
    """Raise CalibrationError unless ``transform`` is a finite, right-handed rigid 4x4 transform."""
    if transform.shape != (4, 4) or not np.isfinite(transform).all():
        raise CalibrationError(describe(name, expected="a finite 4x4 transform", found=transform.tolist()))
    rotation = transform[:3, :3]
    rigid = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) and np.linalg.det(rotation) > 0
    if not rigid or not np.allclose(transform[3], (0, 0, 0, 1)):
        raise CalibrationError(
            describe(name, expected="an orthonormal right-handed rotation", found=rotation.tolist())
        )


@dataclass(frozen=True)
class Image:
    """One camera picture.

    data: (H, W, 3) uint8, RGB.
    """

    data: UInt8Array
    stamp_ns: int
    frame_id: str

    def __post_init__(self) -> None:
        check_array("image data", self.data, shape=(None, None, 3), dtype=np.uint8)
        if 0 in self.data.shape:
            raise InputError(describe("image data", expected="at least one pixel", found=self.data.shape))


@dataclass(frozen=True)
class PointCloud:
    """One LiDAR sweep.

    points: (N, 4) float32 [x, y, z, intensity], metres, intensity 0..1, all finite.
    ring: (N,) uint16 beam index, or None where the sensor gives none.
    time_s: (N,) float32 measuring time of each point minus the stamp, or None.
    """

    points: Float32Array
    stamp_ns: int
    frame_id: str
    ring: UInt16Array | None = None
    time_s: Float32Array | None = None

    def __post_init__(self) -> None:
        check_array("cloud points", self.points, shape=(None, 4), dtype=np.float32)
        if not np.isfinite(self.points).all():
            raise InputError(describe("cloud points", expected="finite values", found="NaN or Inf"))
        intensity = self.points[:, 3]
        if len(intensity) and (intensity.min() < 0 or intensity.max() > 1):
            found = f"{intensity.min():g} .. {intensity.max():g}"
            raise InputError(describe("intensity of a cloud", expected="0 .. 1", found=found))
        if self.ring is not None:
            check_array("cloud ring", self.ring, shape=(len(self.points),), dtype=np.uint16)
        if self.time_s is not None:
            check_array("cloud time_s", self.time_s, shape=(len(self.points),), dtype=np.float32)

    def __len__(self) -> int:
        return len(self.points)

    def moved(self, to_from_cloud: Float64Array, frame_id: str) -> PointCloud:
        """Return the cloud in another frame, of which ``to_from_cloud`` is (4, 4); the stamp stays."""
        points = self.points.copy()
        points[:, :3] = self.points[:, :3] @ to_from_cloud[:3, :3].T + to_from_cloud[:3, 3]
        return replace(self, points=points, frame_id=frame_id)

    def chosen(self, rows: NDArray[np.bool_]) -> PointCloud:
        """Return the sweep with the points for which ``rows`` (N,) is true."""
        return replace(
            self,
            points=self.points[rows],
            ring=None if self.ring is None else self.ring[rows],
            time_s=None if self.time_s is None else self.time_s[rows],
        )


@dataclass(frozen=True)
class Calibration:
    """Where a camera is and how it projects.

    camera_matrix: (3, 3) float64 K in pixels of a ``width`` x ``height`` picture.
    distortion: coefficients in the order of sensor_msgs/CameraInfo; see DISTORTION_COEFFICIENTS.
    reference_from_camera: (4, 4) float64, optical camera frame into the frame of the SensorFrame: where
        the camera was when it took the picture, as of where the vehicle is at the stamp of the frame.
    """

    camera_matrix: Float64Array
    width: int
    height: int
    reference_from_camera: Float64Array
    distortion_model: str = "none"
    distortion: Float64Array = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        matrix = self.camera_matrix
        usable = (
            matrix.shape == (3, 3) and np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0
        )
        if not usable:
            raise CalibrationError(
                describe(
                    "camera matrix", expected="finite 3x3 with positive focal lengths", found=matrix.tolist()
                )
            )
        if self.width <= 0 or self.height <= 0:
            raise CalibrationError(
                describe("picture size", expected="positive", found=(self.width, self.height))
            )
        if self.distortion_model not in DISTORTION_COEFFICIENTS:
            raise CalibrationError(
                describe(
                    "distortion model", expected=sorted(DISTORTION_COEFFICIENTS), found=self.distortion_model
                )
            )
        allowed = DISTORTION_COEFFICIENTS[self.distortion_model]
        if len(self.distortion) not in allowed or not np.isfinite(self.distortion).all():
            raise CalibrationError(
                describe(
                    f"distortion coefficients of {self.distortion_model}",
                    expected=f"{allowed} finite numbers",
                    found=self.distortion.tolist(),
                )
            )
        check_rigid("reference_from_camera", self.reference_from_camera)

    @property
    def pinhole(self) -> Calibration:
        """The same camera without its lens: the calibration of a picture whose distortion was removed."""
        return replace(self, distortion_model="none", distortion=np.zeros(0))


@dataclass(frozen=True)
class SensorFrame:
    """What all sensors saw at (nearly) one moment; a sensor that is not in it took no part.

    stamp_ns: stamp of the LiDAR sweep, or of the reference camera where there is no LiDAR.
    frame_id: reference frame of ``cloud``, ``sweeps`` and the calibrations: x forward, y left, z up,
        origin on the ground below the vehicle (``base_link``).
    cloud: the current sweep expressed in ``frame_id``, or None.
    sweeps: earlier sweeps, newest first, already moved into ``frame_id`` at ``stamp_ns`` (ego motion
        removed); their ``stamp_ns`` stays that of their measurement.
    images, calibrations: by camera name; both have the same keys.
    fixed_from_reference: (4, 4) float64 pose of ``frame_id`` at ``stamp_ns`` in a frame that stands still, as
        odometry tells it; None where nobody knows.
    """

    stamp_ns: int
    frame_id: str
    cloud: PointCloud | None
    images: Mapping[str, Image]
    calibrations: Mapping[str, Calibration]
    sweeps: tuple[PointCloud, ...] = ()
    fixed_from_reference: Float64Array | None = None

    def __post_init__(self) -> None:
        for cloud in (self.cloud, *self.sweeps):
            if cloud is not None and cloud.frame_id != self.frame_id:
                expected = f"points in the frame of the SensorFrame, {self.frame_id!r}"
                raise InputError(describe("cloud", expected=expected, found=repr(cloud.frame_id)))
        if self.fixed_from_reference is not None:
            check_rigid("fixed_from_reference", self.fixed_from_reference)
        if self.images.keys() != self.calibrations.keys():
            raise InputError(
                describe("calibrations", expected=sorted(self.images), found=sorted(self.calibrations))
            )
        if self.cloud is None and not self.images:
            raise InputError(
                describe("sensor frame", expected="a cloud or at least one image", found="neither")
            )

    @property
    def modality(self) -> str:
        """``camera+lidar``, ``lidar`` or ``camera``."""
        return "+".join(
            name for name, there in (("camera", self.images), ("lidar", self.cloud is not None)) if there
        )


_COLUMNS: Final = ("center", "size", "yaw", "velocity", "label", "score")
_OPTIONAL_COLUMNS: Final = ("track_id", "num_points", "attribute")
"""Columns of Boxes3D that may be absent."""


@dataclass(frozen=True)
class Boxes3D:
    """Oriented boxes in one frame.

    center: (N, 3) float32 middle of the box. size: (N, 3) float32 length (along yaw), width, height.
    yaw: (N,) float32 about z. velocity: (N, 2) float32 over ground, axes of the frame; NaN where unknown.
    label: (N,) int64 index into ``class_names``. score: (N,) float32 in 0..1 (1 for truth).
    track_id: (N,) int64, -1 where there is none.
    num_points: (N,) int64 LiDAR points inside, -1 where not counted.
    attribute: (N,) int64 index into classes.ATTRIBUTES, NO_ATTRIBUTE where none is known.
    covariance: (N, 4, 4) float32 of the errors of x, y and velocity x, y; None where they are not estimated.
    """

    center: Float32Array
    size: Float32Array
    yaw: Float32Array
    velocity: Float32Array
    label: Int64Array
    score: Float32Array
    class_names: tuple[str, ...]
    frame_id: str
    stamp_ns: int
    track_id: Int64Array | None = None
    num_points: Int64Array | None = None
    attribute: Int64Array | None = None
    covariance: Float32Array | None = None

    def __post_init__(self) -> None:
        count = len(self.center)
        check_array("box center", self.center, shape=(count, 3), dtype=np.float32)
        check_array("box size", self.size, shape=(count, 3), dtype=np.float32)
        check_array("box yaw", self.yaw, shape=(count,), dtype=np.float32)
        check_array("box velocity", self.velocity, shape=(count, 2), dtype=np.float32)
        check_array("box label", self.label, shape=(count,), dtype=np.int64)
        check_array("box score", self.score, shape=(count,), dtype=np.float32)
        for name in _OPTIONAL_COLUMNS:
            values = getattr(self, name)
            if values is not None:
                check_array(f"box {name}", values, shape=(count,), dtype=np.int64)
        if self.covariance is not None:
            check_array("box covariance", self.covariance, shape=(count, 4, 4), dtype=np.float32)

    def __len__(self) -> int:
        return len(self.center)

    def chosen(self, keep: NDArray[np.bool_]) -> Boxes3D:
        """Return the boxes where ``keep`` (N,) is true."""
        rows = {
            name: None if (values := getattr(self, name)) is None else values[keep]
            for name in (*_COLUMNS, *_OPTIONAL_COLUMNS, "covariance")
        }
        return replace(self, **rows)  # type: ignore[arg-type]

    def at(self, stamp_ns: int) -> Boxes3D:
        """Return the boxes where they are at another stamp if they keep their velocity, in the same frame."""
        seconds = np.float32((stamp_ns - self.stamp_ns) * 1e-9)
        center = self.center.copy()
        center[:, :2] += seconds * np.nan_to_num(self.velocity)
        step = np.eye(4, dtype=np.float32) + seconds * np.eye(4, k=2, dtype=np.float32)
        covariance = None if self.covariance is None else step @ self.covariance @ step.T
        return replace(self, center=center, stamp_ns=stamp_ns, covariance=covariance)

    def contain(self, points: Float32Array) -> NDArray[np.bool_]:
        """Return which of the points (P, 3), in the frame of the boxes, are inside of which box: (N, P)."""
        inside = np.zeros((len(self), len(points)), np.bool_)
        for row, center, half, yaw in zip(inside, self.center, self.size / 2, self.yaw, strict=True):
            offset, cos, sin = points - center, np.cos(yaw), np.sin(yaw)
            along, across = offset[:, 0] * cos + offset[:, 1] * sin, offset[:, 1] * cos - offset[:, 0] * sin
            row[:] = (abs(along) < half[0]) & (abs(across) < half[1]) & (abs(offset[:, 2]) < half[2])
        return inside


@dataclass(frozen=True)
class PointLabels:
    """The class of every point of one cloud, in its order.

    label: (N,) uint8 index into ``class_names``, 255 (classes.IGNORE) for no class.
    probability: (N,) float32 in 0..1.
    """

    label: UInt8Array
    probability: Float32Array
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        check_array("point label", self.label, shape=(None,), dtype=np.uint8)
        check_array("point probability", self.probability, shape=(len(self.label),), dtype=np.float32)


@dataclass(frozen=True)
class BevMap:
    """Map layers seen from above.

    probability: (L, X, Y) float32 in 0..1; cell [l, i, j] covers
        x in lower_x + [i, i + 1) * resolution and y in lower_y + [j, j + 1) * resolution of ``frame_id``.
    lower: (lower_x, lower_y), metres. resolution: metres per cell.
    """

    probability: Float32Array
    layer_names: tuple[str, ...]
    lower: tuple[float, float]
    resolution: float
    frame_id: str
    stamp_ns: int

    def __post_init__(self) -> None:
        check_array(
            "map probability", self.probability, shape=(len(self.layer_names), None, None), dtype=np.float32
        )


@dataclass(frozen=True)
class ActionScores:
    """Scores of what goes on in a video, after the newest frame.

    probability: (K,) float32, sums to 1. warm: False while the temporal state holds fewer frames
        than the network looks back.
    """

    probability: Float32Array
    class_names: tuple[str, ...]
    stamp_ns: int
    warm: bool = True

    def __post_init__(self) -> None:
        check_array("action probability", self.probability, shape=(len(self.class_names),), dtype=np.float32)

    @property
    def best(self) -> str:
        """Name of the most probable class."""
        return self.class_names[int(self.probability.argmax())]
