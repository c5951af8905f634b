# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What drivers and walkers react to beside the vehicle in front: lights, scripted acts and each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kestrel.sim.world.path import Path
from kestrel.sim.world.traffic import STEP_S, Driver, Traffic, Walker

Signal = Callable[[Traffic], bool]


@dataclass
class Light:
    """Traffic lights of a junction: the main road waits until the ego vehicle stood ``hold`` seconds.

    group: number of the signals of the main road; those of the side roads have the next.
    """

    group: int
    ego_stop: float
    main_green: bool
    hold: float
    stood: float = 0.0

    @property
    def cross_green(self) -> bool:
        """The side roads may go; they stop some seconds before the main road starts."""
        return not self.main_green and self.stood < self.hold - 3.0

    def main_red(self, _: Traffic) -> bool:
        """The main road waits."""
        return not self.main_green

    def cross_red(self, _: Traffic) -> bool:
        """The side roads wait."""
        return not self.cross_green

    def __call__(self, traffic: Traffic) -> None:
        """Count how long the ego vehicle has been standing at this light."""
        ego = traffic.ego
        if not self.main_green and ego.speed < 0.3 and abs(self.ego_stop - ego.s - ego.front) < 15.0:
            self.stood += STEP_S
            self.main_green = self.stood > self.hold


@dataclass
class Gate:
    """A place of the main road that all vehicles keep free while someone crosses.

    before, behind: arc lengths on the main road where traffic with and against its direction stops.
    """

    before: float
    behind: float
    until: float = -1.0

    def closed(self, traffic: Traffic) -> bool:
        """Someone is crossing."""
        return traffic.time < self.until


@dataclass
class StopAt:
    """Do not pass ``s`` while ``closed`` is true."""

    s: float
    closed: Signal

    def __call__(self, driver: Driver, traffic: Traffic) -> None:
        """Set the stop."""
        if driver.s + driver.front < self.s + 2.0 and self.closed(traffic):
            driver.stops.append(self.s)


@dataclass
class WaitFor:
    """Stand at ``s`` until ``signal`` was true once, then go briskly."""

    s: float
    signal: Signal
    brisk: float = 0.0
    gone: bool = False

    def __call__(self, driver: Driver, traffic: Traffic) -> None:
        """Set the stop, or the speed after it."""
        self.gone = self.gone or self.signal(traffic)
        if not self.gone:
            driver.stops.append(self.s)
        elif self.brisk and driver.desired > 0.0:
            driver.target = max(driver.target, self.brisk)


@dataclass
class Yield:
    """The ego vehicle lets someone cross at ``s``: from ``signal`` until the other is past its path."""

    s: float
    other: Driver | Walker
    signal: Signal
    clear: float
    gate: Gate
    side: float = 0.0
    began: float = -1.0
    done: bool = False

    def __call__(self, driver: Driver, traffic: Traffic) -> None:
        """Stop before the place of crossing."""
        if self.done or (self.began < 0.0 and not self.signal(traffic)):
            return
        if self.began < 0.0:
            self.began = traffic.time
        _, left = driver.path.project(self.other.path.position(self.other.s)[None])
        self.side = self.side or float(np.sign(left[0]))
        self.gate.until = traffic.time + 2 * STEP_S
        self.done = left[0] * self.side < -self.clear or self.other.s >= self.other.path.length
        outside = left[0] * self.side > 3.0 + (self.other.front if isinstance(self.other, Driver) else 0.0)
        if traffic.time - self.began > 9.0 and outside:
            self.done = True
            if isinstance(self.other, Driver):
                self.other.desired = 0.0
        if driver.s + driver.front < self.s + 1.5:
            driver.stops.append(self.s)


@dataclass
class Brake:
    """Brake hard down to ``speed`` when ``signal`` comes, stay slow for ``hold`` seconds, then go on."""

    signal: Signal
    deceleration: float
    speed: float
    hold: float
    phase: int = 0
    slow_since: float = 0.0

    def __call__(self, driver: Driver, traffic: Traffic) -> None:
        """Force the deceleration, or keep the low speed."""
        if self.phase == 0 and self.signal(traffic):
            self.phase = 1
        if self.phase == 1:
            driver.forced = -self.deceleration
            if driver.speed <= self.speed + 0.2:
                self.phase, self.slow_since = 2, traffic.time
        if self.phase == 2:
            driver.target = max(self.speed, 0.05)
            if self.speed < 0.5:
                driver.forced = -1.0
            if traffic.time - self.slow_since > self.hold:
                self.phase = 3


@dataclass
class Pace:
    """Keep ``lead`` metres in front of the ego vehicle from ``since`` until ``until``."""

    lead: float
    since: Signal
    until: Signal
    over: bool = False

    def __call__(self, driver: Driver, traffic: Traffic) -> None:
        """Set the wished speed."""
        self.over = self.over or self.until(traffic)
        if not self.over and self.since(traffic):
            ego = traffic.ego
            s, _ = ego.path.project(driver.path.position(driver.s)[None])
            error = ego.s + self.lead - float(s[0])
            slowest = 3.5 if error > -25.0 else 0.1
            driver.target = float(np.clip(ego.speed + 0.35 * error, slowest, 1.35 * max(driver.desired, 3.0)))


@dataclass
class ChangePath:
    """Leave the present path for the one that ``route`` draws, when ``signal`` comes.

    route: (driver) -> path, and the metres on it after which the change is over. side: 1 left, -1 right.
    """

    signal: Signal
    route: Callable[[Driver], tuple[Path, float]]
    side: int
    done: bool = False

    def __call__(self, driver: Driver, traffic: Traffic) -> None:
        """Reroute the driver."""
        if not self.done and self.signal(traffic):
            self.done = True
            path, length = self.route(driver)
            traffic.reroute(driver, path)
            driver.shifting = (self.side, driver.s + length)


def ego_passes(s: float) -> Signal:
    """True once the ego vehicle is beyond ``s`` of its path."""
    return lambda traffic: traffic.ego.s >= s


def never(_: Traffic) -> bool:
    """A signal that does not come."""
    return False


def always(_: Traffic) -> bool:
    """A signal that is there from the start."""
    return True
