# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Motion of everything that moves: car following with the Intelligent Driver Model, and walking.

Treiber, Hennecke, Helbing, "Congested traffic states in empirical observations and microscopic simulations",
Phys. Rev. E 62 (2000), equations 2 and 3, with anything in the way of a vehicle as the one it follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kestrel.sim.world.path import Path
from kestrel.types import Float64Array

Integers: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]

STEP_S: Final = 0.1
"""Time step of the simulation, seconds."""

INDICATE_M: Final = 20.0
INDICATE_S: Final = 3.0
"""Drivers indicate a turn from so far, or so long, before it."""

_LOOKAHEAD = 24
_JERK = 9.0


@dataclass
class Driver:
    """A vehicle, or a rider, that follows a path.

    actor: track id (0 is the ego vehicle). s: arc length of its reference point; front, rear: from there to
    its ends. rules: functions (driver, traffic) -> None called every step, which may set ``stops``,
    ``target`` and ``forced``. parked: it stands at the kerb, with nobody on the brake, until it moves off.
    shifting: side (1 left, -1 right) of a change of lanes and the arc length at which it is over.
    """

    actor: int
    path: Path
    s: float
    speed: float
    desired: float
    front: float
    rear: float
    width: float
    towed: tuple[int, float] | None = None
    rules: list[Callable[[Driver, Traffic], None]] = field(default_factory=list)
    acceleration: float = 0.0
    standing: float = 0.0
    target: float = 0.0
    stops: list[float] = field(default_factory=list)
    forced: float | None = None
    parked: bool = False
    shifting: tuple[int, float] = (0, 0.0)

    @property
    def indicates(self) -> int:
        """Side (1 left, -1 right, 0 none) to which it changes lanes, turns, or is about to turn."""
        side, end = self.shifting
        if side and self.s < end:
            return side
        notice = max(INDICATE_M, INDICATE_S * self.speed)
        return next((side for a, b, side in self.path.turns if a - notice < self.s < b), 0)

    @property
    def margin(self) -> float:
        """Room to leave on both sides, metres; less after standing for long, so that knots come undone."""
        return 0.35 if self.standing < 2.5 else 0.05

    def discs(self) -> list[float]:
        """Places along the vehicle, from its reference point, of the discs that cover it."""
        length = self.front + self.rear
        count = max(round(length / max(self.width, 0.5)), 1)
        return [(i + 0.5) / count * length - self.rear for i in range(count)]


@dataclass
class Walker:
    """A person on foot, or pushing along a straight way. go: (traffic) -> bool, asked until it says yes."""

    actor: int
    path: Path
    s: float
    speed: float
    z: Callable[[float], float]
    go: Callable[[Traffic], bool]
    walking: bool = False
    stride: float = 1.4

    def step(self, traffic: Traffic) -> None:
        """Walk on for one time step, once the signal to go was given and until the way ends."""
        self.walking = (self.walking or self.go(traffic)) and self.s < self.path.length
        if self.walking:
            self.s = min(self.s + self.speed * STEP_S, self.path.length)


@dataclass(frozen=True)
class Motion:
    """Recorded motion, axis 0 time in steps of STEP_S, axis 1 the movers.

    actor: (M,). position: (T, M, 3). yaw: (T, M), unwrapped. speed: (T, M). travelled: (T, M) metres.
    exists, walks: (T, M) bool. indicates: (T, M), 1 left, -1 right, 0 neither. parked: (M,) bool, stands at
    the kerb at first. ego_s, ego_speed, ego_acceleration: (T,). green: (T, G) bool, groups of signals.
    """

    actor: Integers
    position: Float64Array
    yaw: Float64Array
    speed: Float64Array
    travelled: Float64Array
    exists: Flags
    walks: Flags
    indicates: Float64Array
    parked: Flags
    ego_path: Path
    ego_s: Float64Array
    ego_speed: Float64Array
    ego_acceleration: Float64Array
    green: Flags

    @cached_property
    def acceleration(self) -> Float64Array:
        """(T, M) change of speed, m/s^2."""
        return np.gradient(self.speed, STEP_S, axis=0)


class Traffic:
    """All movers; ``drivers[0]`` is the ego vehicle."""

    def __init__(self, ego: Driver, *, reach: int) -> None:
        self.drivers = [ego]
        self.walkers: list[Walker] = []
        self.time = 0.0
        self.updates: list[Callable[[Traffic], None]] = []
        self.signals: list[Callable[[], bool]] = []
        self._stride = reach
        self._ways: dict[int, Float64Array] = {}

    @property
    def ego(self) -> Driver:
        """The vehicle that carries the sensors."""
        return self.drivers[0]

    def add(self, driver: Driver) -> bool:
        """Add a vehicle unless it would stand in another one."""
        own = driver.path.position(driver.s)
        for other in self.drivers:
            there = other.path.position(other.s)
            distance = float(np.hypot(*(there - own)))
            heading = float(driver.path.direction(driver.s) - other.path.direction(other.s))
            lateral = abs(
                float(
                    -np.sin(other.path.direction(other.s)) * (own - there)[0]
                    + np.cos(other.path.direction(other.s)) * (own - there)[1]
                )
            )
            near = distance < driver.front + driver.rear + other.front + other.rear
            if near and (lateral < 2.4 or abs(np.sin(heading)) > 0.3):
                return False
        self.drivers.append(driver)
        return True

    def reroute(self, driver: Driver, path: Path) -> None:
        """Put a driver on another path, at the place nearest to where it is."""
        s, _ = path.project(driver.path.position(driver.s)[None])
        driver.path, driver.s = path, float(s[0])
        self._ways.pop(id(driver), None)

    def run(self, seconds: float) -> Motion:
        """Simulate and record from 0 to a little after ``seconds``."""
        steps = int(np.ceil(seconds / STEP_S)) + 3
        frames, ego, green = [], [], []
        for index in range(steps):
            self.time = index * STEP_S
            for update in self.updates:
                update(self)
            self._decide()
            frames.append(self._snapshot())
            ego.append((self.ego.s, self.ego.speed, self.ego.acceleration))
            green.append([signal() for signal in self.signals])
            self._advance()
        data = np.stack(frames)
        towed = [driver.towed[0] for driver in self._towing() if driver.towed is not None]
        actors = [driver.actor for driver in self.drivers[1:]] + towed + [w.actor for w in self.walkers]
        parked = [driver.parked for driver in self.drivers[1:]]
        own = np.array(ego)
        return Motion(
            actor=np.array(actors, np.int64),
            position=data[..., 0:3],
            yaw=np.unwrap(data[..., 3], axis=0),
            speed=data[..., 4],
            travelled=data[..., 5],
            exists=data[..., 6] > 0,
            walks=data[..., 7] > 0,
            indicates=data[..., 8],
            parked=np.array(parked + [False] * (len(actors) - len(parked)), bool),
            ego_path=self.ego.path,
            ego_s=own[:, 0],
            ego_speed=own[:, 1],
            ego_acceleration=own[:, 2],
            green=np.array(green, bool).reshape(steps, -1),
        )

    def _snapshot(self) -> Float64Array:
        rows = []
        for driver in self.drivers[1:]:
            rows.append(self._row(driver, 0.0))
        for driver in self._towing():
            assert driver.towed is not None
            rows.append(self._row(driver, driver.towed[1]))
        for walker in self.walkers:
            x, y, heading = walker.path.at(walker.s)
            speed = walker.speed if walker.walking else 0.0
            travelled = walker.s / walker.stride
            rows.append(
                (x, y, walker.z(walker.s), heading, speed, travelled, 1.0, float(walker.walking), 0.0)
            )
        return np.array(rows, np.float64).reshape(-1, 9)

    def _towing(self) -> list[Driver]:
        return [driver for driver in self.drivers if driver.towed is not None]

    @staticmethod
    def _row(driver: Driver, back: float) -> tuple[float, ...]:
        """State of a vehicle, or of the trailer ``back`` metres behind it."""
        s = driver.s - back
        x, y, heading = driver.path.at(s)
        exists = 0.0 <= s <= driver.path.length
        return x, y, 0.0, heading, driver.speed, s, float(exists), 0.0, float(driver.indicates)

    def _decide(self) -> None:
        """Choose every driver's acceleration from its rules and from what is in its way."""
        gaps, closing = self._leaders()
        for index, driver in enumerate(self.drivers):
            driver.target, driver.forced = driver.desired, None
            driver.stops.clear()
            for rule in driver.rules:
                rule(driver, self)
            bend = abs(driver.path.at(driver.s + 12.0)[2] - driver.path.at(driver.s)[2]) / 12.0
            target = min(driver.target, (2.2 / max(bend, 1e-4)) ** 0.5)
            wish = _idm(driver.speed, target, gaps[index], closing[index])
            for stop in driver.stops:
                gap = stop - driver.s - driver.front
                if gap > -3.0:
                    wish = min(wish, _idm(driver.speed, target, gap + 1.2, driver.speed))
            if driver.forced is not None:
                wish = min(wish, driver.forced)
            change = min(max(wish - driver.acceleration, -_JERK * STEP_S), _JERK * STEP_S)
            if wish < -4.0:
                change = wish - driver.acceleration
            driver.acceleration = min(max(driver.acceleration + change, -7.0), 2.5)

    def _advance(self) -> None:
        for driver in self.drivers:
            speed = driver.speed + driver.acceleration * STEP_S
            if speed < 0.0:
                speed, driver.acceleration = 0.0, max(driver.acceleration, -driver.speed / STEP_S)
            driver.s += (driver.speed + speed) / 2 * STEP_S
            driver.speed = speed
            driver.standing = driver.standing + STEP_S if speed < 0.25 else 0.0
        for walker in self.walkers:
            walker.step(self)

    def _way(self, driver: Driver) -> Float64Array:
        """Points of a path, padded so that the look ahead never runs out."""
        key = id(driver)
        if key not in self._ways:
            s = np.arange(0.0, driver.path.length + _LOOKAHEAD * self._stride + 2.0)
            self._ways[key] = driver.path.position(s)
        return self._ways[key]

    def _leaders(self) -> tuple[list[float], list[float]]:
        """Gap to the nearest thing in the way of each driver, and how fast it closes."""
        centres, owners, velocities, radii = self._discs()
        reach = _LOOKAHEAD * self._stride
        ahead = np.arange(_LOOKAHEAD + 1) * self._stride
        ways, offset = [], []
        for driver in self.drivers:
            way = self._way(driver)
            first = min(max(int(driver.s), 0), len(way) - reach - 1)
            ways.append(way[first + ahead])
            offset.append(first - driver.s)
        points = np.stack(ways)
        distance = ((centres - points[:, :1]) ** 2).sum(-1)
        who, what = np.nonzero((distance < (reach + 8.0) ** 2) & (owners != np.arange(len(points))[:, None]))
        delta = centres[what, None] - points[who]
        nearest = (delta**2).sum(-1).argmin(1)
        off = delta[np.arange(len(who)), nearest]
        tangents = np.diff(points, axis=1) / self._stride
        tangent = tangents[who, np.minimum(nearest, _LOOKAHEAD - 1)]
        along = nearest * self._stride + np.array(offset)[who] + (off * tangent).sum(-1)
        lateral = np.abs(off[:, 1] * tangent[:, 0] - off[:, 0] * tangent[:, 1])
        half = np.array([d.width / 2 + d.margin for d in self.drivers])[who]
        relevant = (lateral < half + radii[what]) & (along > 0.0) & (along < reach + 1.0)
        front = np.array([d.front for d in self.drivers])[who]
        gap = np.where(relevant, np.maximum(along - front - radii[what], 0.05), np.inf)
        speed = np.array([d.speed for d in self.drivers])[who]
        closing = speed - (velocities[what] * tangent).sum(-1)
        gaps, closings = [np.inf] * len(points), [0.0] * len(points)
        for pair in np.flatnonzero(relevant).tolist():
            if gap[pair] < gaps[who[pair]]:
                gaps[who[pair]], closings[who[pair]] = float(gap[pair]), float(closing[pair])
        return gaps, closings

    def _discs(self) -> tuple[Float64Array, Integers, Float64Array, Float64Array]:
        """Centres (D, 2), owner index, velocity (D, 2) and radius of the discs that cover all movers."""
        rows = []
        for index, driver in enumerate(self.drivers):
            if 0.0 <= driver.s <= driver.path.length + 1.0:
                x, y, heading = driver.path.at(driver.s)
                cos, sin = math.cos(heading), math.sin(heading)
                for place in driver.discs():
                    spot = (x + place * cos, y + place * sin)
                    rows.append((*spot, index, driver.speed * cos, driver.speed * sin, driver.width / 2))
        for walker in self.walkers:
            x, y, heading = walker.path.at(walker.s)
            speed = walker.speed if walker.walking else 0.0
            rows.append((x, y, -1, speed * math.cos(heading), speed * math.sin(heading), 0.35))
        table = np.array(rows)
        return table[:, :2], table[:, 2].astype(np.int64), table[:, 3:5], table[:, 5]


def _idm(speed: float, target: float, gap: float, closing: float) -> float:
    """Acceleration of the Intelligent Driver Model, m/s^2."""
    strength, comfort, headway, standstill = 1.9, 2.2, 1.1, 2.0
    free = strength * (1.0 - (speed / max(target, 0.1)) ** 4)
    wanted = standstill + max(speed * headway + speed * closing / (2 * math.sqrt(strength * comfort)), 0.0)
    follow = strength * (wanted / max(gap, 0.3)) ** 2 if gap < math.inf else 0.0
    return min(max(max(free, -3.0) - follow, -7.0), strength)
