# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""ROS messages as plain dataclasses of `kestrel.data.bag.typestore`: headers, transforms, motion, classes."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kestrel.data.bag import typestore
from kestrel.data.trajectory import Quaternion, Vector3
from kestrel.errors import CalibrationError, describe
from kestrel.types import Float64Array


class Source(NamedTuple):
    """What identifies a sensor message in the outputs that it causes."""

    stamp_ns: int
    frame_id: str


def has_source(msgtype: str) -> bool:
    """Return whether messages of a type start with a header."""
    definition = typestore().fielddefs.get(msgtype)
    return definition is not None and bool(definition[1]) and definition[1][0][0] == "header"


def source_of(msgtype: str, raw: bytes) -> Source | None:
    """Return stamp and frame of a serialized message, None if its type does not start with a header."""
    if not has_source(msgtype) or len(raw) < 16:
        return None
    order = "<" if raw[1] else ">"
    seconds, nanoseconds, length = struct.unpack_from(f"{order}iII", raw, 4)
    return Source(seconds * 10**9 + nanoseconds, raw[16 : 16 + max(length - 1, 0)].decode(errors="replace"))


def new(msgtype: str, **fields: Any) -> Any:
    """Return a message object of ``msgtype`` (``package/msg/Name``) with all its fields given."""
    return typestore().types[msgtype](**fields)


def time_message(stamp_ns: int) -> Any:
    """Return a builtin_interfaces/Time."""
    return new("builtin_interfaces/msg/Time", sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)


def stamp_of(message: Any) -> int:
    """Return the stamp in the header of ``message`` in nanoseconds."""
    return int(message.header.stamp.sec) * 10**9 + int(message.header.stamp.nanosec)


def header(stamp_ns: int, frame_id: str) -> Any:
    """Return a std_msgs/Header."""
    return new("std_msgs/msg/Header", stamp=time_message(stamp_ns), frame_id=frame_id)


def vector3(x: float, y: float, z: float) -> Any:
    """Return a geometry_msgs/Vector3."""
    return new("geometry_msgs/msg/Vector3", x=float(x), y=float(y), z=float(z))


def quaternion(rotation: Float64Array) -> Any:
    """Return the geometry_msgs/Quaternion of a (3, 3) rotation."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(rotation).as_quat(canonical=True)
    return new("geometry_msgs/msg/Quaternion", x=float(x), y=float(y), z=float(z), w=float(w))


def yaw_quaternion(yaw: float) -> Any:
    """Return the geometry_msgs/Quaternion of a rotation about z."""
    return new("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=math.sin(yaw / 2), w=math.cos(yaw / 2))


def pose(position: Sequence[float] | NDArray[Any], orientation: Any) -> Any:
    """Return a geometry_msgs/Pose at ``position`` (x, y, z)."""
    x, y, z = (float(value) for value in position)
    position = new("geometry_msgs/msg/Point", x=x, y=y, z=z)
    return new("geometry_msgs/msg/Pose", position=position, orientation=orientation)


def transform_message(parent_from_child: Float64Array, parent: str, child: str, stamp_ns: int) -> Any:
    """Return the geometry_msgs/TransformStamped of a (4, 4) transform."""
    return new(
        "geometry_msgs/msg/TransformStamped",
        header=header(stamp_ns, parent),
        child_frame_id=child,
        transform=new(
            "geometry_msgs/msg/Transform",
            translation=vector3(*parent_from_child[:3, 3]),
            rotation=quaternion(parent_from_child[:3, :3]),
        ),
    )


def tf_message(transforms: Sequence[Any]) -> Any:
    """Return a tf2_msgs/TFMessage."""
    return new("tf2_msgs/msg/TFMessage", transforms=list(transforms))


def transform_from_message(transform: Any) -> Float64Array:
    """Return the (4, 4) parent_from_child of a geometry_msgs/Transform.

    Raises:
        CalibrationError: a number is not finite, or the length of the quaternion is zero or beyond float64.
    """
    from scipy.spatial.transform import Rotation

    matrix = np.eye(4)
    matrix[:3, 3], turn = pose_from_message(transform)
    matrix[:3, :3] = Rotation.from_quat(turn).as_matrix()
    return matrix


def pose_from_message(transform: Any) -> tuple[Vector3, Quaternion]:
    """Return the translation, and the unit quaternion (x, y, z, w), of a geometry_msgs/Transform.

    Raises:
        CalibrationError: a number is not finite, or the length of the quaternion is zero or beyond float64.
    """
    rotation, translation = transform.rotation, transform.translation
    turn = (rotation.x, rotation.y, rotation.z, rotation.w)
    place = (translation.x, translation.y, translation.z)
    length = math.sqrt(sum(value * value for value in turn))  # tiny numbers have squares of zero
    if not 0 < length < math.inf or not np.isfinite(place).all():
        expected = "finite numbers and a quaternion that is not zero"
        raise CalibrationError(describe("transform", expected=expected, found=f"{place}, {turn}"))
    x, y, z, w = (value / length for value in turn)
    return place, (x, y, z, w)


def odometry_message(
    odom_from_base: Float64Array,
    stamp_ns: int,
    *,
    linear: Sequence[float] | NDArray[Any] = (0.0, 0.0, 0.0),
    angular: Sequence[float] | NDArray[Any] = (0.0, 0.0, 0.0),
) -> Any:
    """Return a nav_msgs/Odometry odom -> base_link; ``linear`` and ``angular`` velocity are in base_link."""
    twist = new("geometry_msgs/msg/Twist", linear=vector3(*linear), angular=vector3(*angular))
    at = pose(odom_from_base[:3, 3], quaternion(odom_from_base[:3, :3]))
    return new(
        "nav_msgs/msg/Odometry",
        header=header(stamp_ns, "odom"),
        child_frame_id="base_link",
        pose=new("geometry_msgs/msg/PoseWithCovariance", pose=at, covariance=np.zeros(36)),
        twist=new("geometry_msgs/msg/TwistWithCovariance", twist=twist, covariance=np.zeros(36)),
    )


def imu_message(
    stamp_ns: int,
    *,
    angular_velocity: Sequence[float] | NDArray[Any],
    linear_acceleration: Sequence[float] | NDArray[Any],
    orientation: Any = None,
) -> Any:
    """Return a sensor_msgs/Imu in frame ``imu``.

    orientation: geometry_msgs/Quaternion, or None from an IMU that estimates none (REP-145).
    """
    orientation_covariance = np.zeros(9)
    if orientation is None:
        orientation = yaw_quaternion(0.0)
        orientation_covariance[0] = -1.0
    return new(
        "sensor_msgs/msg/Imu",
        header=header(stamp_ns, "imu"),
        orientation=orientation,
        orientation_covariance=orientation_covariance,
        angular_velocity=vector3(*angular_velocity),
        angular_velocity_covariance=np.zeros(9),
        linear_acceleration=vector3(*linear_acceleration),
        linear_acceleration_covariance=np.zeros(9),
    )


def classification_message(scores: Mapping[str, float], stamp_ns: int, frame_id: str) -> Any:
    """Return a vision_msgs/Classification of class scores, best first."""
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    results = [
        new("vision_msgs/msg/ObjectHypothesis", class_id=name, score=float(score)) for name, score in ranked
    ]
    return new("vision_msgs/msg/Classification", header=header(stamp_ns, frame_id), results=results)


def best_class(message: Any) -> tuple[str, float] | None:
    """Return name and score of the best result of a Classification, None if it is empty."""
    best = max(message.results, key=lambda item: item.score, default=None)
    return None if best is None else (best.class_id, float(best.score))
