# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Objects over time: ids that last, velocity and heading from how they moved.

After Weng et al., A Baseline for 3D Multi-Object Tracking (IROS 2020): a Kalman filter of constant velocity
for each track, along its heading and across, and one-to-one assignment. Distances are of centres, as in
CenterPoint (Yin et al., CVPR 2021), in units of their uncertainty.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy.optimize import linear_sum_assignment

from kestrel.types import Boxes3D, Float32Array, Float64Array

GATE: Final = 3.4
"""A box further from where a track is expected, in standard deviations, is another object's (1 in 300)."""
MOVING: Final = 2.0
"""A track that is faster than so many standard deviations of its velocity has a course."""
TURNED: Final = np.pi / 6
"""A box that heads further off its course than this heads along it."""


@dataclass(frozen=True)
class Motion:
    """How objects of a class move.

    speed, sideways: standard deviation of the velocity of one that was seen once, along its heading and
        across, m/s.
    acceleration: standard deviation of what no constant velocity explains, m/s².
    """

    speed: float
    sideways: float
    acceleration: float


MOTIONS: Final = {
    "pedestrian": Motion(2.0, 2.0, 1.0),
    "bicycle": Motion(6.0, 6.0, 2.0),
    "traffic_cone": Motion(0.5, 0.5, 0.1),
    "barrier": Motion(0.5, 0.5, 0.1),
}
VEHICLE: Final = Motion(12.0, 2.0, 3.0)
"""Of every other class."""


@dataclass
class _Track:
    """One object.

    axes: (2, 2) unit vectors along the heading with which it began and across. covariance: (2, 2, 2), along
        each of them that of place and velocity.
    """

    number: int
    class_name: str
    motion: Motion
    place: Float64Array
    velocity: Float64Array
    axes: Float64Array
    covariance: Float64Array
    seen_ns: int

    def predicted(self, stamp_ns: int) -> tuple[Float64Array, Float64Array]:
        """Return the place and the covariance expected at ``stamp_ns``."""
        elapsed = (stamp_ns - self.seen_ns) / 1e9
        step = np.array([[1.0, elapsed], [0.0, 1.0]])
        push = self.motion.acceleration * np.array([elapsed**2 / 2, elapsed])
        return self.place + elapsed * self.velocity, step @ self.covariance @ step.T + np.outer(push, push)

    def update(self, place: Float64Array, stamp_ns: int, variance: float) -> None:
        """Take a box of this track."""
        expected, covariance = self.predicted(stamp_ns)
        gain = covariance[:, :, 0] / (covariance[:, :1, 0] + variance)
        off = self.axes @ (place - expected)
        self.place = expected + (gain[:, 0] * off) @ self.axes
        self.velocity = self.velocity + (gain[:, 1] * off) @ self.axes
        self.covariance = covariance - gain[:, :, None] * covariance[:, :1]
        self.seen_ns = stamp_ns

    def measure(self, velocity: Float64Array, variance: float) -> None:
        """Take the velocity that the box of the last update was seen to have."""
        gain = self.covariance[:, :, 1] / (self.covariance[:, 1:, 1] + variance)
        off = self.axes @ (velocity - self.velocity)
        self.place = self.place + (gain[:, 0] * off) @ self.axes
        self.velocity = self.velocity + (gain[:, 1] * off) @ self.axes
        self.covariance = self.covariance - gain[:, :, None] * self.covariance[:, 1:]

    @property
    def has_course(self) -> bool:
        speed = float(np.hypot(*self.velocity))
        return speed**2 > MOVING * float(np.sqrt((self.axes @ self.velocity) ** 2 @ self.covariance[:, 1, 1]))


class Tracker:
    """Gives boxes of consecutive frames the ids of their tracks, and what the tracks know of their motion.

    Args:
        memory_s: how long a track lives without a box.
        position_std_m: standard deviation of the centre of a box, along each axis.
        velocity_std_mps: of the velocity of a box, where it was seen.
    """

    def __init__(
        self, *, memory_s: float = 0.6, position_std_m: float = 0.5, velocity_std_mps: float = 0.5
    ) -> None:
        self._memory_ns = int(memory_s * 1e9)
        self._variance = position_std_m**2
        self._velocity_variance = velocity_std_mps**2
        self._tracks: list[_Track] = []
        self._next = 0

    @property
    def alive(self) -> int:
        """How many tracks are remembered."""
        return len(self._tracks)

    def reset(self) -> None:
        """Forget all tracks; ids are not used again."""
        self._tracks = []

    def step(
        self, boxes: Boxes3D, fixed_from_boxes: Float64Array, *, velocities_seen: bool = False
    ) -> Boxes3D:
        """Return ``boxes`` with track ids and covariances; each box continues a track or begins one.

        From the second box of a track on, the velocity is the track's, and a box that heads off the course of
        its track by more than 30 degrees is turned along it (so is one that reverses).

        Args:
            boxes: of one frame, not older than that of the last call.
            fixed_from_boxes: (4, 4) into a frame that stands still, at the stamp of the boxes.
            velocities_seen: whether the boxes' velocities come of several sweeps. Or else they are guesses,
                of use until a second box tells.
        """
        stamp = boxes.stamp_ns
        self._tracks = [track for track in self._tracks if 0 <= stamp - track.seen_ns <= self._memory_ns]
        places = (boxes.center @ fixed_from_boxes[:3, :3].T + fixed_from_boxes[:3, 3])[:, :2]
        names = [boxes.class_names[label] for label in boxes.label]
        velocities = boxes.velocity @ fixed_from_boxes[:2, :2].T
        tracks: list[_Track | None] = [None] * len(boxes)
        for box, track in self._matches(places, names, stamp):
            track.update(places[box], stamp, self._variance)
            if velocities_seen and np.isfinite(velocities[box]).all():
                track.measure(velocities[box], self._velocity_variance)
            tracks[box] = track
        velocity, yaw = _motion(boxes, tracks, fixed_from_boxes)
        for box in (box for box, track in enumerate(tracks) if track is None):
            ahead = np.array([np.cos(boxes.yaw[box]), np.sin(boxes.yaw[box])]) @ fixed_from_boxes[:2, :2].T
            tracks[box] = self._begin(names[box], places[box], velocities[box], ahead, stamp)
        known = [track for track in tracks if track is not None]
        ids = np.array([track.number for track in known], np.int64)
        covariance = self._covariance(known, fixed_from_boxes)
        return replace(boxes, track_id=ids, velocity=velocity, yaw=yaw, covariance=covariance)

    def _covariance(self, tracks: list[_Track], fixed_from_boxes: Float64Array) -> Float32Array:
        """Return the (N, 4, 4) covariances of places as seen and of velocities as filtered."""
        result = np.zeros((len(tracks), 2, 2, 2, 2), np.float32)  # place or velocity, x or y, twice
        for track, into in zip(tracks, result, strict=True):
            along = track.covariance.copy()
            # With the velocity a place as seen shares what the filtered one does, of which it is a part.
            along[:, 0, 0] = self._variance
            axes = track.axes @ fixed_from_boxes[:2, :2]
            into[:] = np.einsum("aij,ax,ay->ixjy", along, axes, axes)
        return result.reshape(-1, 4, 4)

    def _begin(
        self, name: str, place: Float64Array, velocity: Float64Array, ahead: Float64Array, stamp: int
    ) -> _Track:
        motion = MOTIONS.get(name, VEHICLE)
        # A vehicle goes where it heads: or else a box beside it would be itself, gone there at its speed.
        covariance = np.stack([np.diag([self._variance, std**2]) for std in (motion.speed, motion.sideways)])
        axes = np.array([ahead, (-ahead[1], ahead[0])])
        known = np.nan_to_num(velocity, nan=0.0, posinf=0.0, neginf=0.0)
        self._tracks.append(_Track(self._next, name, motion, place, known, axes, covariance, stamp))
        self._next += 1
        return self._tracks[-1]

    def _matches(self, places: Float64Array, names: list[str], stamp: int) -> list[tuple[int, _Track]]:
        """Return (box, track) of equal class with the greatest likelihood, none outside the gate."""
        if not self._tracks or not names:
            return []
        predicted = [track.predicted(stamp) for track in self._tracks]
        variance = np.array([covariance[:, 0, 0] for _, covariance in predicted]) + self._variance
        expected = np.stack([place for place, _ in predicted])
        axes = np.stack([track.axes for track in self._tracks])
        off = np.einsum("tak,btk->bta", axes, places[:, None] - expected)
        squared = (off**2 / variance).sum(-1)
        same = np.array(names)[:, None] == np.array([track.class_name for track in self._tracks])[None]
        allowed = same & (squared <= GATE**2)
        cost = squared + np.log(variance / self._variance).sum(-1)
        # Outside the gate all pairs cost the same, more than any sum of allowed ones.
        dearest = float(cost.max(initial=0.0, where=allowed)) + 1
        cost = np.where(allowed, cost, dearest * (len(names) + 1))
        pairs = zip(*linear_sum_assignment(cost), strict=True)
        return [(int(box), self._tracks[track]) for box, track in pairs if allowed[box, track]]


def _motion(
    boxes: Boxes3D, tracks: list[_Track | None], fixed_from_boxes: Float64Array
) -> tuple[Float32Array, Float32Array]:
    """Return velocity (N, 2) and yaw (N,) in the frame of the boxes; those of the boxes without a track."""
    velocity, yaw = boxes.velocity.copy(), boxes.yaw.copy()
    for box, track in enumerate(tracks):
        if track is None:
            continue
        velocity[box] = track.velocity @ fixed_from_boxes[:2, :2]
        if not track.has_course:
            continue
        course = np.arctan2(velocity[box, 1], velocity[box, 0])
        off = np.arctan2(np.sin(yaw[box] - course), np.cos(yaw[box] - course))
        if abs(off) > TURNED:
            yaw[box] = course
    return velocity, yaw
