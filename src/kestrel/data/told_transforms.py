# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What a whole recording tells of its frames: what is fixed, what moves, and in what the vehicle moves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
from scipy.spatial.transform import Rotation

from kestrel.data.messages import new, pose_from_message, transform_from_message, vector3
from kestrel.data.trajectory import Quaternion, Vector3
from kestrel.data.transform_buffer import TransformBuffer, invert
from kestrel.errors import CalibrationError
from kestrel.types import Float64Array

BASE: Final = "base_link"
FOOTPRINT: Final = "base_footprint"
"""Where the vehicle is on the ground (REP-120): it moves with base_link."""
ODOM: Final = "odom"

STILL: Final = 1e-4
"""What is told again within so many metres and radians has not moved."""

Pose: TypeAlias = tuple[Vector3, Quaternion]


@dataclass(frozen=True)
class Chain:
    """Frames from base_link upwards. moves_in: the one that stands still while the vehicle moves, or None."""

    frames: tuple[str, ...]
    moves_in: str | None


@dataclass
class _Edge:
    """What is told of a frame below one parent.

    count: of the messages. fixed: of /tf_static, the newest. poses: of /tf, by stamp. moves: whether those
    differ.
    """

    count: int = 0
    fixed: Pose | None = None
    poses: list[tuple[int, Pose]] = field(default_factory=list)
    moves: bool = False


class TellsTransforms:
    """Takes all transforms of a recording."""

    def __init__(self) -> None:
        self._edges: dict[str, dict[str, _Edge]] = {}

    def add(self, transform: Any, stamp_ns: int, *, static: bool) -> None:
        """Take a geometry_msgs/TransformStamped.

        Raises:
            CalibrationError: its numbers are no transform.
        """
        parent, child = transform.header.frame_id.lstrip("/"), transform.child_frame_id.lstrip("/")
        edge = self._edges.setdefault(child, {}).setdefault(parent, _Edge())
        pose = pose_from_message(transform.transform)
        edge.count += 1
        if static:
            edge.fixed = pose
        else:
            edge.moves = edge.moves or (bool(edge.poses) and not _same(edge.poses[0][1], pose))
            edge.poses.append((stamp_ns, pose))

    def fill(self, buffer: TransformBuffer) -> Chain:
        """Put every frame into a buffer, below the parent that most messages name; return those of base_link.

        What /tf tells again and again and never moves is fixed, as if it were on /tf_static. Not so below
        odom: of a vehicle that stands nobody says for how long.
        """
        parents: dict[str, str] = {}
        moving: set[str] = set()
        for child, edges in self._edges.items():
            parent, edge = max(reversed(edges.items()), key=lambda item: item[1].count)
            if _filled(buffer, parent, child, edge):
                parents[child] = parent
                if edge.moves:
                    moving.add(child)
        frames = _upwards(parents, BASE)
        return Chain(tuple(frames), _moves_in(frames, _upwards(parents, ODOM), moving))


def _upwards(parents: Mapping[str, str], frame: str) -> list[str]:
    """Return a frame and all above it; of frames that go round in a circle each comes once."""
    frames = [frame]
    while (above := parents.get(frames[-1])) is not None and above not in frames:
        frames.append(above)
    return frames


def _filled(buffer: TransformBuffer, parent: str, child: str, edge: _Edge) -> bool:
    """Put a frame into a buffer; return whether anything of it is usable."""
    if edge.poses and (edge.moves or parent == ODOM):
        return sum(buffer.add(parent, child, stamp, *pose) for stamp, pose in edge.poses) > 0
    pose = edge.fixed if not edge.poses else edge.poses[-1][1]
    return pose is not None and buffer.add(parent, child, 0, *pose, static=True)


def _moves_in(frames: list[str], odom: list[str], moving: set[str]) -> str | None:
    """Return the frame in which the vehicle moves: odom, or what is above all that moves.

    ``frames`` and ``odom`` are base_link and odom, each with all above it.
    """
    common = next((frame for frame in frames if frame in odom), None)
    if common is not None:
        between = *frames[: frames.index(common)], *odom[: odom.index(common)]
        if moving.intersection(between):
            return ODOM
    highest = max((place for place, frame in enumerate(frames[:-1]) if frame in moving), default=None)
    if highest is None:
        return None
    above = frames[highest + 1]
    # base_link that rocks above its footprint says nothing of where the footprint goes.
    return None if above == FOOTPRINT else above


def _same(one: Pose, other: Pose) -> bool:
    turn = abs(sum(a * b for a, b in zip(one[1], other[1], strict=True)))
    return math.dist(one[0], other[0]) <= STILL and 2 * math.acos(min(turn, 1.0)) <= STILL


class TellsOdometry:
    """Takes all odometry of a recording that is of base_link, or of base_footprint.

    Attributes:
        frame: the frame that stands still.
    """

    def __init__(self) -> None:
        self.frame = ODOM
        self._poses: dict[int, tuple[str, Float64Array]] = {}

    def add(self, odometry: Any, stamp_ns: int) -> None:
        """Take a nav_msgs/Odometry.

        Raises:
            CalibrationError: its numbers are no pose.
        """
        child = odometry.child_frame_id.lstrip("/")
        if child in (BASE, FOOTPRINT):
            self.frame = odometry.header.frame_id.lstrip("/") or ODOM
            self._poses[stamp_ns] = child, _pose(odometry.pose.pose)

    def fill(self, buffer: TransformBuffer, chain: Chain) -> bool:
        """Put the poses into a buffer, above what moves with base_link; return whether there are any.

        Those of base_footprint count where it is known how base_link sits on it.
        """
        frames = chain.frames
        top = frames[frames.index(self.frame) - 1] if self.frame in frames[1:] else frames[-1]
        taken = False
        for stamp, (child, fixed_from_child) in self._poses.items():
            try:
                top_from_child = _between(buffer, top, child, stamp)
            except CalibrationError:
                continue
            pose = fixed_from_child @ invert(top_from_child)
            x, y, z = pose[:3, 3].tolist()
            qx, qy, qz, qw = Rotation.from_matrix(pose[:3, :3]).as_quat().tolist()
            taken |= buffer.add(self.frame, top, stamp, (x, y, z), (qx, qy, qz, qw))
        return taken


def _between(buffer: TransformBuffer, target: str, source: str, stamp_ns: int) -> Float64Array:
    """Return target_from_source (4, 4), the identity for the same frame, which a buffer need not know."""
    return np.eye(4) if target == source else buffer.lookup(target, source, stamp_ns)


def _pose(pose: Any) -> Float64Array:
    place = vector3(pose.position.x, pose.position.y, pose.position.z)
    return transform_from_message(
        new("geometry_msgs/msg/Transform", translation=place, rotation=pose.orientation)
    )
