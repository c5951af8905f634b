# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Plane curves with arc length: centre lines, lanes and the ways of everything that moves."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from kestrel.types import Float64Array

STEP = 1.0
"""Spacing of the points of a Path, metres."""

TURN_CURVATURE, TURN_ANGLE = 0.035, 0.7
"""A stretch of a path that is bent more than this (per metre), by more than this (radians), is a turn."""


class Path:
    """A smooth plane curve sampled every metre.

    points: (N, 2) metres. heading: (N,) radians, unwrapped. s: (N,) arc length from 0.
    """

    def __init__(self, points: Float64Array) -> None:
        steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
        keep = np.concatenate([[True], steps > 1e-6])
        points = points[keep]
        along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
        count = max(round(along[-1] / STEP), 2) + 1
        self.s = np.linspace(0.0, along[-1], count)
        self.points = np.column_stack([np.interp(self.s, along, points[:, i]) for i in range(2)])
        slope = np.gradient(self.points, axis=0)
        self.heading = np.unwrap(np.arctan2(slope[:, 1], slope[:, 0]))

        self._x, self._y, self._bearing = (
            values.tolist() for values in (self.points[:, 0], self.points[:, 1], self.heading)
        )
        self._step = float(self.s[1])

    def at(self, s: float) -> tuple[float, float, float]:
        """x, y and heading at one arc length; the fast way for one point at a time."""
        last = len(self._x) - 1
        place = min(max(s / self._step, 0.0), float(last))
        i = min(int(place), last - 1)
        f = place - i
        bearing = self._bearing[i] * (1 - f) + self._bearing[i + 1] * f
        beyond = s - place * self._step
        x = self._x[i] * (1 - f) + self._x[i + 1] * f + beyond * math.cos(bearing)
        y = self._y[i] * (1 - f) + self._y[i + 1] * f + beyond * math.sin(bearing)
        return x, y, bearing

    @cached_property
    def turns(self) -> list[tuple[float, float, int]]:
        """Turns at junctions: arc lengths of start and end, and side (1 left, -1 right)."""
        tight = np.abs(np.diff(self.heading)) / self._step > TURN_CURVATURE
        edges = np.flatnonzero(np.diff(np.concatenate([[False], tight, [False]]).astype(np.int8)))
        found = []
        for first, last in edges.reshape(-1, 2).tolist():
            angle = float(self.heading[last] - self.heading[first])
            if abs(angle) > TURN_ANGLE:
                found.append((first * self._step, last * self._step, 1 if angle > 0 else -1))
        return found

    @property
    def length(self) -> float:
        """Arc length, metres."""
        return float(self.s[-1])

    def position(self, s: float | Float64Array, left: float | Float64Array = 0.0) -> Float64Array:
        """Points (..., 2) at arc length ``s``, moved ``left`` metres across; straight on beyond the ends."""
        s = np.asarray(s, np.float64)
        heading = self.direction(s)
        beyond = np.where(s < 0, s, np.maximum(s - self.length, 0.0))
        x = np.interp(s, self.s, self.points[:, 0]) + beyond * np.cos(heading) - left * np.sin(heading)
        y = np.interp(s, self.s, self.points[:, 1]) + beyond * np.sin(heading) + left * np.cos(heading)
        return np.stack([x, y], -1)

    def direction(self, s: float | Float64Array) -> Float64Array:
        """Heading at arc length ``s``, radians."""
        return np.asarray(np.interp(s, self.s, self.heading))

    def curvature(self, s: float) -> float:
        """Change of heading per metre at arc length ``s``, averaged over two metres."""
        return float(self.direction(s + 1.0) - self.direction(s - 1.0)) / 2.0

    def offset(self, left: float | Float64Array) -> Path:
        """The parallel curve ``left`` metres to the left (constant, or (N,) per point)."""
        return Path(self.position(self.s, left))

    def reverse(self) -> Path:
        """The same curve the other way."""
        return Path(self.points[::-1])

    def cut(self, start: float, end: float) -> Path:
        """The part between two arc lengths."""
        count = max(round((end - start) / STEP), 1) + 1
        return Path(self.position(np.linspace(start, end, count)))

    def project(self, points: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Arc length and left offset of (M, 2) points, exact to the chord of one step."""
        delta = points[:, None] - self.points
        nearest = np.argmin((delta**2).sum(-1), 1)
        offset = points - self.points[nearest]
        cos, sin = np.cos(self.heading[nearest]), np.sin(self.heading[nearest])
        return self.s[nearest] + offset[:, 0] * cos + offset[:, 1] * sin, offset[:, 1] * cos - offset[
            :, 0
        ] * sin


def from_curvature(curvature: Float64Array, start: Float64Array, heading: float) -> Path:
    """The curve of (N,) curvatures per metre from ``start`` (2,), the bends eased over eight metres."""
    eased = np.convolve(np.pad(curvature, 4, mode="edge"), np.ones(9) / 9, mode="valid")
    headings = heading + np.concatenate([[0.0], np.cumsum(eased)])
    middle = (headings[1:] + headings[:-1]) / 2
    steps = np.column_stack([np.cos(middle), np.sin(middle)])
    return Path(start + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, 0)]))


def join(first: Path, second: Path) -> Path:
    """``first``, then an easy bend from its end to the start of ``second``, then ``second``."""
    a, b = first.points[-1], second.points[0]
    reach = float(np.linalg.norm(b - a)) * 0.56
    p1 = a + reach * np.array([np.cos(first.heading[-1]), np.sin(first.heading[-1])])
    p2 = b - reach * np.array([np.cos(second.heading[0]), np.sin(second.heading[0])])
    t = np.linspace(0.0, 1.0, 48)[1:-1, None]
    bend = (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * p2 + t**3 * b
    return Path(np.concatenate([first.points, bend, second.points]))
