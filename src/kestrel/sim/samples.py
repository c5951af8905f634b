# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What the simulated sensors deliver, with its truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from kestrel.sim.scene import EgoState
from kestrel.types import (
    BevMap,
    Boxes3D,
    Calibration,
    Float64Array,
    Image,
    PointCloud,
    UInt8Array,
    UInt16Array,
)

EPOCH_NS: Final = 1_700_000_000 * 1_000_000_000
"""Stamp of second 0 of every simulated drive."""


@dataclass(frozen=True)
class LidarSample:
    """One sweep.

    cloud: in frame ``lidar`` as it was when it measured each point; the stamp is the start of the sweep.
    semantic: (N,) uint8 Semantic, VOID for a return from rain or fog.
    instance: (N,) uint16 track id, 0 for none.
    truth: boxes in base_link at the stamp. bev_map: map layers in base_link at the stamp.
    odom_from_base: (4, 4) float64 at the stamp. base_from_lidar: (4, 4) float64.
    ego: motion at the stamp, to undo the motion within the sweep.
    """

    stamp_ns: int
    cloud: PointCloud
    semantic: UInt8Array
    instance: UInt16Array
    truth: Boxes3D
    bev_map: BevMap
    odom_from_base: Float64Array
    base_from_lidar: Float64Array
    ego: EgoState


@dataclass(frozen=True)
class CameraSample:
    """One picture.

    calibration: its reference frame is base_link, as it was then: at odom_from_base, (4, 4) float64.
    semantic: (H, W) uint8 Semantic. instance: (H, W) uint16 track id, 0 for none.
    event: what goes on in front (classes.EVENTS), of the front camera only.
    """

    stamp_ns: int
    name: str
    image: Image
    calibration: Calibration
    odom_from_base: Float64Array
    semantic: UInt8Array
    instance: UInt16Array
    event: str | None


@dataclass(frozen=True)
class OdometrySample:
    """Pose (4, 4) float64 and velocities (3,), (3,) in base_link, as wheel odometry would give them."""

    stamp_ns: int
    odom_from_base: Float64Array
    velocity: Float64Array
    angular_velocity: Float64Array


@dataclass(frozen=True)
class ImuSample:
    """Specific force (3,) m/s^2 (gravity included) and turn rate (3,) rad/s, in frame ``imu``."""

    stamp_ns: int
    orientation: Float64Array
    angular_velocity: Float64Array
    linear_acceleration: Float64Array


Sample: TypeAlias = LidarSample | CameraSample | OdometrySample | ImuSample
