# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The tree of coordinate frames over time: what /tf and /tf_static said, looked up at the stamp of the data.

A lookup interpolates between the two transforms around the stamp (REP-105 trees: every frame has one parent),
and lets the motion go on for a while where they end: odometry that is made from a sweep comes after it. What
is not known is an error that names the frames, never the identity. Nodes fill it as transforms come, readers
of recordings at once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from threading import RLock

import numpy as np

from kestrel.data.trajectory import MAX_GAP_S, Quaternion, Vector3, pose_between, pose_matrix
from kestrel.errors import CalibrationError, describe
from kestrel.types import Float64Array

NANOSECONDS = 1_000_000_000
STILL_NS = 50_000_000
"""How far a transform holds before and after its stamp where nothing is known of the motion there."""
LOOK_EVERY = 5000
"""How many transforms come between two looks for frames that have ended."""
QUATERNION_NORM_TOLERANCE = 1e-2
"""How far the norm of a received quaternion may be from 1 (tf2 allows the same)."""


def invert(transform: Float64Array) -> Float64Array:
    """Return the inverse of a rigid (4, 4) ``transform``."""
    inverse = np.eye(4)
    inverse[:3, :3] = transform[:3, :3].T
    inverse[:3, 3] = -transform[:3, :3].T @ transform[:3, 3]
    return inverse


@dataclass
class _Edge:
    """What is known between one frame and its parent: one pose for ever, or poses by rising stamp."""

    parent: str
    static: bool
    stamps_ns: list[int] = field(default_factory=list)
    poses: list[tuple[Vector3, Quaternion]] = field(default_factory=list)
    inserted: int = 0
    """Which transform of the buffer was its last."""


class TransformBuffer:
    """Transforms between frames, kept for ``history_s`` seconds and interpolated at any stamp.

    Args:
        history_s: how much of each dynamic transform is kept.
        tolerance_s: how far before its first or after its last stamp the motion of a dynamic transform is
            taken to go on; a publisher at 50 Hz is 20 ms late by nature, LiDAR odometry a sweep and more.
        max_gap_s: the longest silence of a publisher that is interpolated across.
        jump_back_s: a transform older than the newest of the same frame by more than this means that
            time was set back: what was known of this frame is forgotten.
    """

    def __init__(
        self,
        *,
        history_s: float = 10.0,
        tolerance_s: float = 0.25,
        max_gap_s: float = MAX_GAP_S,
        jump_back_s: float = 1.0,
    ) -> None:
        self._history_ns = int(history_s * NANOSECONDS)
        self._tolerance_ns = int(tolerance_s * NANOSECONDS)
        self._max_gap_ns = int(max_gap_s * NANOSECONDS)
        self._jump_back_ns = int(jump_back_s * NANOSECONDS)
        self._edges: dict[str, _Edge] = {}
        self._insertions = 0
        self._lock = RLock()
        self.rejected: Counter[str] = Counter()
        """How many transforms were not taken, by reason."""
        self.jumps_back = 0

    def add(
        self,
        parent: str,
        child: str,
        stamp_ns: int,
        translation: Vector3,
        quaternion: Quaternion,
        *,
        static: bool = False,
    ) -> bool:
        """Take one transform ``parent_from_child``; return whether it was usable.

        translation: metres. quaternion: (x, y, z, w), normalised here when its norm is close to 1.
        An unusable one is counted in ``rejected`` and changes nothing.
        """
        parent, child = parent.lstrip("/"), child.lstrip("/")
        reason = _refusal(parent, child, stamp_ns, translation, quaternion, static=static)
        with self._lock:
            if reason is None:
                x, y, z, w = (np.asarray(quaternion) / np.linalg.norm(quaternion)).tolist()
                reason = self._insert(parent, child, stamp_ns, (translation, (x, y, z, w)), static=static)
            if reason is not None:
                self.rejected[reason] += 1
        return reason is None

    def _insert(
        self, parent: str, child: str, stamp_ns: int, pose: tuple[Vector3, Quaternion], *, static: bool
    ) -> str | None:
        edge = self._edges.get(child)
        if edge is None or edge.parent != parent or edge.static != static:
            edge = self._edges[child] = _Edge(parent, static)
        edge.inserted = self._insertions = self._insertions + 1
        if self._insertions % LOOK_EVERY == 0:
            self._forget_ended()
        if static:
            edge.poses = [pose]
            return None
        stamps = edge.stamps_ns
        if stamps and stamp_ns < stamps[-1] - self._jump_back_ns:
            self.jumps_back += 1
            stamps.clear()
            edge.poses.clear()
        at = bisect_left(stamps, stamp_ns)
        if at < len(stamps) and stamps[at] == stamp_ns:
            edge.poses[at] = pose
            return None
        stamps.insert(at, stamp_ns)
        edge.poses.insert(at, pose)
        expired = bisect_left(stamps, stamps[-1] - self._history_ns)
        del stamps[:expired], edge.poses[:expired]
        return None if stamp_ns >= stamps[0] else "older than the history"

    def _forget_ended(self) -> None:
        """Forget frames that are spoken of no more, as those of objects that a tracker names by their number.

        One that is still sent is kept, whatever its clock says.
        """
        newest = max((edge.stamps_ns[-1] for edge in self._edges.values() if edge.stamps_ns), default=0)
        self._edges = {
            child: edge
            for child, edge in self._edges.items()
            if not edge.stamps_ns
            or edge.stamps_ns[-1] >= newest - self._history_ns
            or edge.inserted > self._insertions - LOOK_EVERY
        }

    def reset(self) -> None:
        """Forget every dynamic transform; the static ones are latched and would not be sent again."""
        with self._lock:
            self._edges = {child: edge for child, edge in self._edges.items() if edge.static}

    def lookup(self, target: str, source: str, stamp_ns: int) -> Float64Array:
        """Return ``target_from_source``, (4, 4) float64, at ``stamp_ns``.

        Args:
            target: frame into which the transform leads.
            source: frame from which it leads.
            stamp_ns: when.

        Raises:
            CalibrationError: A frame is unknown, no chain joins the two, or the chain is not known at
                the stamp; the message names the frames.
        """
        name = f"transform {target} <- {source}"
        with self._lock:
            target_chain = self._ancestors(name, target)
            source_chain = self._ancestors(name, source)
            common = next((frame for frame in source_chain if frame in target_chain), None)
            if common is None:
                roots = target_chain[-1], source_chain[-1]
                found = f"two trees: {target!r} is below {roots[0]!r}, {source!r} below {roots[1]!r}"
                raise CalibrationError(describe(name, expected="frames of one tree", found=found))
            to_target = self._climb(name, target_chain, common, stamp_ns)
            to_source = self._climb(name, source_chain, common, stamp_ns)
        return invert(to_target) @ to_source

    def _ancestors(self, name: str, frame: str) -> list[str]:
        """Return ``frame`` and all frames above it, nearest first."""
        chain = [frame.lstrip("/")]
        known = chain[0] in self._edges or any(edge.parent == chain[0] for edge in self._edges.values())
        if not known:
            listed = sorted(self._edges) or "nothing yet"
            raise CalibrationError(
                describe(name, expected=f"frame {frame!r} on /tf or /tf_static", found=listed)
            )
        while chain[-1] in self._edges:
            above = self._edges[chain[-1]].parent
            if above in chain:
                raise CalibrationError(describe(name, expected="a tree", found=f"a loop through {above!r}"))
            chain.append(above)
        return chain

    def _climb(self, name: str, chain: list[str], top: str, stamp_ns: int) -> Float64Array:
        """Return ``top_from_frame`` for the first frame of ``chain``."""
        transform = np.eye(4)
        for child in chain[: chain.index(top)]:
            transform = self._at(name, child, stamp_ns) @ transform
        return transform

    def _at(self, name: str, child: str, stamp_ns: int) -> Float64Array:
        """Return ``parent_from_child`` at ``stamp_ns``, at most the tolerance beyond what is known."""
        edge = self._edges[child]
        if edge.static:
            return pose_matrix(*edge.poses[0])
        known = self._between(edge, stamp_ns)
        if known is not None:
            return known
        after = bisect_left(edge.stamps_ns, stamp_ns)
        around = range(max(after - 1, 0), min(after + 1, len(edge.stamps_ns)))
        nearest = min(around, key=lambda index: abs(edge.stamps_ns[index] - stamp_ns))
        away_ns = stamp_ns - edge.stamps_ns[nearest]
        if abs(away_ns) <= self._tolerance_ns:
            there = pose_matrix(*edge.poses[nearest])
            # As far on the other side of what is known: the step from there to it is made once more.
            mirrored = self._between(edge, edge.stamps_ns[nearest] - away_ns)
            if mirrored is not None:
                return there @ invert(mirrored) @ there
            if abs(away_ns) <= STILL_NS:
                return there
        found = f"{edge.parent!r} <- {child!r} {-away_ns / NANOSECONDS:+.3f} s away from the stamp"
        expected = f"a transform within {self._tolerance_ns / NANOSECONDS:g} s"
        raise CalibrationError(describe(name, expected=expected, found=found))

    def _between(self, edge: _Edge, stamp_ns: int) -> Float64Array | None:
        """Return the pose at a stamp, or between the two around it; None beyond them and in long gaps."""
        stamps = edge.stamps_ns
        after = bisect_left(stamps, stamp_ns)
        if after < len(stamps) and stamps[after] == stamp_ns:
            return pose_matrix(*edge.poses[after])
        if not 0 < after < len(stamps) or stamps[after] - stamps[after - 1] > self._max_gap_ns:
            return None
        ratio = (stamp_ns - stamps[after - 1]) / (stamps[after] - stamps[after - 1])
        return pose_between(edge.poses[after - 1], edge.poses[after], ratio)


def _refusal(
    parent: str,
    child: str,
    stamp_ns: int,
    translation: Vector3,
    quaternion: Quaternion,
    *,
    static: bool,
) -> str | None:
    """Return why a transform cannot be taken, or None."""
    if not parent or not child or parent == child:
        return "frame names empty or equal"
    if not np.isfinite((*translation, *quaternion)).all():
        return "not finite"
    if abs(float(np.linalg.norm(quaternion)) - 1.0) > QUATERNION_NORM_TOLERANCE:
        return "quaternion not of length 1"
    if not static and stamp_ns <= 0:
        return "no stamp"
    return None
