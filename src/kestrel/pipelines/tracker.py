# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Ids that follow objects from frame to frame: constant velocity, one-to-one assignment by distance.

After Weng et al., A Baseline for 3D Multi-Object Tracking (IROS 2020), with the centre distance of
CenterPoint (Yin et al., CVPR 2021) in place of the overlap. An alpha-beta filter keeps each track.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy.optimize import linear_sum_assignment

from kestrel.types import Boxes3D, Float64Array

POSITION_GAIN: Final = 0.7
VELOCITY_GAIN: Final = 0.3
"""How much of the distance between where a track was expected and its box goes into place and velocity."""


@dataclass
class _Track:
    number: int
    class_name: str
    place: Float64Array
    velocity: Float64Array
    seen_ns: int

    def expected(self, stamp_ns: int) -> Float64Array:
        return self.place + self.velocity * ((stamp_ns - self.seen_ns) / 1e9)


class Tracker:
    """Gives boxes of consecutive frames the ids of their tracks.

    Args:
        memory_s: how long a track lives without a box.
        distance_m: largest distance of a box from where its track is expected.
    """

    def __init__(self, *, memory_s: float = 0.6, distance_m: float = 2.0) -> None:
        self._memory_ns = int(memory_s * 1e9)
        self._distance_m = distance_m
        self._tracks: list[_Track] = []
        self._next = 0

    @property
    def alive(self) -> int:
        """How many tracks are remembered."""
        return len(self._tracks)

    def reset(self) -> None:
        """Forget all tracks; ids are not used again."""
        self._tracks = []

    def step(self, boxes: Boxes3D, fixed_from_boxes: Float64Array) -> Boxes3D:
        """Return ``boxes`` with track ids; each box continues a track or begins one.

        Args:
            boxes: of one frame, not older than that of the last call.
            fixed_from_boxes: (4, 4) into a frame that stands still, at the stamp of the boxes.
        """
        stamp = boxes.stamp_ns
        self._tracks = [track for track in self._tracks if 0 <= stamp - track.seen_ns <= self._memory_ns]
        places = (boxes.center @ fixed_from_boxes[:3, :3].T + fixed_from_boxes[:3, 3])[:, :2]
        velocities = boxes.velocity @ fixed_from_boxes[:2, :2].T
        names = [boxes.class_names[label] for label in boxes.label]
        ids = np.full(len(boxes), -1, np.int64)
        for box, track in self._matches(places, names, stamp):
            _update(track, places[box], stamp)
            ids[box] = track.number
        for box in np.flatnonzero(ids < 0).tolist():
            velocity = np.nan_to_num(velocities[box], nan=0.0, posinf=0.0, neginf=0.0)
            self._tracks.append(_Track(self._next, names[box], places[box], velocity, stamp))
            ids[box] = self._next
            self._next += 1
        return replace(boxes, track_id=ids)

    def _matches(self, places: Float64Array, names: list[str], stamp: int) -> list[tuple[int, _Track]]:
        """Return (box, track) of equal class with the least sum of distances, none beyond the limit."""
        if not self._tracks or not names:
            return []
        expected = np.stack([track.expected(stamp) for track in self._tracks])
        distance = np.linalg.norm(places[:, None] - expected[None], axis=-1)
        same = np.array(names)[:, None] == np.array([track.class_name for track in self._tracks])[None]
        allowed = same & (distance <= self._distance_m)
        # Beyond the limit all pairs cost the same, more than any sum of allowed ones.
        cost = np.where(allowed, distance, self._distance_m * (len(names) + 1))
        pairs = zip(*linear_sum_assignment(cost), strict=True)
        return [(int(box), self._tracks[track]) for box, track in pairs if allowed[box, track]]


def _update(track: _Track, place: Float64Array, stamp: int) -> None:
    elapsed = (stamp - track.seen_ns) / 1e9
    expected = track.expected(stamp)
    residual = place - expected
    track.place = expected + POSITION_GAIN * residual
    if elapsed > 0:
        track.velocity = track.velocity + VELOCITY_GAIN * residual / elapsed
    track.seen_ns = stamp
