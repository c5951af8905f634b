# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Where the roads run: a main road with crossing roads, planned around the events of the drive.

Traffic keeps to the right. Offsets across a road are to the left of its direction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from kestrel.sim.world.path import Path, from_curvature
from kestrel.sim.world.towns import Town
from kestrel.types import Float64Array

RUN_IN = 110.0
"""Length of the main road behind the place where the drive starts, metres."""

CROSSING_BEGIN, CROSSING_END, STOP_BEGIN, STOP_END = 0.6, 4.0, 4.9, 5.4
"""Zebra and stop line of an arm of a junction, metres outwards from the end of its kerb curves."""

CRUISE = {"urban": 9.5, "suburban": 11.0, "highway": 24.0}
"""Usual speed of a scene, m/s."""

_STRAIGHT = {"cross": 32.0, "left": 32.0, "right": 32.0, "zebra": 8.0, "open": 0.0}
"""How far the main road is straight on both sides of a station, metres."""


@dataclass(frozen=True)
class Profile:
    """Cross-section of a road, metres.

    lanes: per direction. edge: strip between the outer lane and the kerb (gutter, shoulder or parking).
    median: raised strip in the middle, 0 where there is only a line. parking: cars may stand on the edge.
    """

    lanes: int
    lane_width: float
    edge: float
    sidewalk: float
    median: float
    parking: bool

    @property
    def half(self) -> float:
        """From the middle to the kerb."""
        return self.median / 2 + self.lanes * self.lane_width + self.edge

    @property
    def outer(self) -> float:
        """From the middle to the far side of the sidewalk."""
        return self.half + self.sidewalk

    def lane(self, index: int) -> float:
        """Distance from the middle of the road to the middle of lane ``index``, 0 being the innermost."""
        return self.median / 2 + (index + 0.5) * self.lane_width


@dataclass(frozen=True)
class Road:
    """A centre line with one cross-section; ``gaps`` are the arc lengths (from, to) that junctions cover."""

    path: Path
    profile: Profile
    gaps: list[tuple[float, float]] = field(default_factory=list)
    main: bool = False

    def stretches(self, margin: float = 0.0) -> list[tuple[float, float]]:
        """Arc lengths (from, to) between junctions, shortened by ``margin`` at each junction."""
        edges = [(0.0 - margin, 0.0 - margin), *sorted(self.gaps)]
        edges.append((self.path.length + margin, self.path.length + margin))
        pairs = [(a[1] + margin, b[0] - margin) for a, b in pairwise(edges)]
        return [(a, b) for a, b in pairs if b - a > 1.0]

    def lane(self, index: int, forward: bool) -> Path:
        """Middle of a lane in its driving direction."""
        side = self.path.offset(-self.profile.lane(index) if forward else self.profile.lane(index))
        return side if forward else side.reverse()


@dataclass(frozen=True)
class Arm:
    """One leg of a junction: ``s`` is where the middle of the junction lies on ``road``.

    direction: +1 where the road leaves the junction with growing arc length, else -1.
    start: distance from the middle of the junction to the end of the kerb curves. zebra: it has a crossing.
    """

    road: Road
    s: float
    direction: int
    start: float
    zebra: bool

    def at(self, outwards: float, left: float) -> Float64Array:
        """Point ``outwards`` metres beyond the kerb curves, ``left`` seen from the junction."""
        return self.road.path.position(
            self.s + self.direction * (self.start + outwards), self.direction * left
        )


@dataclass(frozen=True)
class Junction:
    """Where a side road meets the main road.

    s: on the main road. radius: of the kerb curves. arms: ahead, left, back, right (None where no road is).
    """

    s: float
    centre: Float64Array
    radius: float
    signals: bool
    arms: tuple[Arm | None, Arm | None, Arm | None, Arm | None]


@dataclass(frozen=True)
class Station:
    """A place on the ego route where something may happen.

    kind: cross (four arms), left or right (T-junction), zebra (crossing only) or open (nothing built).
    """

    s: float
    kind: str
    event: str
    turn: int = 0


@dataclass(frozen=True)
class Layout:
    """All roads of a world.

    stations: in driving order. zebras: arc lengths of crossings between junctions.
    """

    roads: list[Road]
    junctions: list[Junction]
    stations: list[Station]
    zebras: list[float]

    @property
    def main(self) -> Road:
        """The road on which the drive starts."""
        return self.roads[0]


def _kind_for(event: str, rng: np.random.Generator) -> str:
    """Kind of place that ``event`` needs."""
    if event in ("crossing_from_left", "crossing_from_right"):
        return str(
            rng.choice(["zebra", "zebra", "cross", "cross", "left" if event.endswith("left") else "right"])
        )
    if event == "ego_stopping":
        return str(rng.choice(["cross", "cross", "left", "right"]))
    if event == "oncoming_turn":
        return str(rng.choice(["cross", "right"]))
    return str(rng.choice(["open", "open", "open", "cross"]))


def plan_stations(rng: np.random.Generator, scene: str, seconds: float) -> list[Station]:
    """Choose what happens during the drive, and at which arc length of the main road."""
    speed = CRUISE[scene]
    if scene == "highway":
        count = 1 + round(seconds / 6.0)
        events = [
            str(rng.choice(["lead_braking", "cut_in", "cut_in", "cut_in", "jam"])) for _ in range(count)
        ]
        return [
            Station(RUN_IN + speed * (2.0 + 5.5 * i) + rng.uniform(0, 30), "open", event)
            for i, event in enumerate(events)
        ]
    choices = ["crossing_from_left", "crossing_from_right", "oncoming_turn", "cut_in", "lead_braking"]
    weights = np.array([2.0, 2.6, 4.4, 2.4, 1.4])
    names = [*choices, "ego_stopping", "clear"]
    weights = np.append(weights, (1.2, 0.1))
    stations: list[Station] = []
    s = RUN_IN + speed * rng.uniform(1.5, 3.5) + 14.0
    while s < RUN_IN + speed * seconds + 40.0:
        previous = stations[-1].event if stations else "clear"
        likely = np.where(np.array(names) == previous, 0.25 * weights, weights)
        event = str(rng.choice(names, p=likely / likely.sum()))
        kind = _kind_for(event, rng)
        if stations:
            s += max(_STRAIGHT[stations[-1].kind] + _STRAIGHT[kind], 26.0) + rng.uniform(2, 9)
        stations.append(Station(float(s), kind, event))
    turns = {"cross": (-1, 1), "left": (1,), "right": (-1,)}
    last = stations[-1] if len(stations) == 1 else stations[-2]
    if last.kind in turns and last.event in ("ego_stopping", "clear", "cut_in") and rng.random() < 0.6:
        kept = stations[: stations.index(last)]
        turn = int(rng.choice(turns[last.kind]))
        return [*kept, Station(last.s, last.kind, last.event, turn)]
    return stations


def _profile(rng: np.random.Generator, town: Town, scene: str, events: set[str], *, main: bool) -> Profile:
    if scene == "highway":
        return Profile(int(rng.integers(2, 4)), 3.6, 2.4, 0.0, float(rng.uniform(2.0, 6.0)), False)
    lanes = 1 + int(rng.random() < (0.4 if main else 0.15))
    if main and "cut_in" in events:
        lanes = 2
    wide = rng.random() < town.parking_rate
    median = float(rng.uniform(1.2, 2.6)) if main and rng.random() < town.median_rate else 0.0
    return Profile(
        lanes=lanes,
        lane_width=float(rng.uniform(*town.lane_width)),
        edge=float(rng.uniform(2.2, 2.5)) if wide else float(rng.uniform(0.3, 0.7)),
        sidewalk=float(rng.uniform(*town.sidewalk)),
        median=median,
        parking=wide,
    )


def _main_path(rng: np.random.Generator, scene: str, stations: list[Station], length: float) -> Path:
    """Straight where the stations are, bent between them."""
    curvature = np.zeros(round(length))
    edges = [0.0]
    for station in stations:
        edges += [station.s - _STRAIGHT[station.kind], station.s + _STRAIGHT[station.kind]]
    edges.append(length)
    tightest = 1 / 350 if scene == "highway" else 1 / 38
    heading = 0.0
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        span = min(end - begin - 8.0, 120.0)
        if span < 16.0 or rng.random() < 0.25:
            continue
        angle = np.clip(rng.normal(0.0, 0.5), -tightest * span, tightest * span)
        angle = np.clip(heading + angle, -0.9, 0.9) - heading
        first = round(rng.uniform(begin + 4.0, end - 4.0 - span))
        curvature[first : first + round(span)] = angle / span
        heading += angle
    return from_curvature(curvature, np.zeros(2), float(rng.uniform(-np.pi, np.pi)))


def _side_path(
    rng: np.random.Generator, others: list[Path], centre: Float64Array, heading: float, length: float
) -> Path:
    """A road away from ``centre``, ended before it would come too near to another road."""
    curvature = np.zeros(round(length))
    bend = round(rng.uniform(25, 50))
    curvature[42 : 42 + bend] = np.clip(rng.normal(0.0, 0.5), -0.8, 0.8) / bend
    path = from_curvature(curvature, centre, heading)
    beyond = path.points[path.s > 40.0]
    for other in others:
        distance = np.sqrt(((beyond[:, None] - other.points[::4]) ** 2).sum(-1)).min(1)
        if (distance < 32.0).any():
            beyond = beyond[: int(np.argmax(distance < 32.0))]
    return path.cut(0.0, 40.0 + len(beyond))


def _junction(
    rng: np.random.Generator, town: Town, scene: str, station: Station, roads: list[Road]
) -> Junction:
    """Build the side roads of a station, add them to ``roads`` and open a gap in every road that meets."""
    main = roads[0]
    profile = _profile(rng, town, scene, set(), main=False)
    centre = main.path.position(station.s)
    heading = float(main.path.direction(station.s))
    radius = float(rng.uniform(*town.corner_radius)) + max(main.profile.sidewalk, profile.sidewalk) - 2.0
    radius = max(radius, max(main.profile.sidewalk, profile.sidewalk) + 0.8)
    along, across = profile.half + radius, main.profile.half + radius
    zebra = rng.random(4) < 0.75
    arms: list[Arm | None] = [
        Arm(main, station.s, 1, along, bool(zebra[0])),
        None,
        Arm(main, station.s, -1, along, bool(zebra[2])),
        None,
    ]
    main.gaps.append((station.s - along, station.s + along))
    others = [road.path for road in roads]
    for index, side in ((1, 1), (3, -1)):
        if station.kind not in ("cross", "left" if side > 0 else "right"):
            continue
        length = 260.0 if station.turn == side else 125.0
        road = Road(_side_path(rng, others, centre, heading + side * np.pi / 2, length), profile)
        road.gaps.append((-1.0, across))
        roads.append(road)
        arms[index] = Arm(road, 0.0, 1, across, bool(zebra[index]))
    calm = station.event in ("clear", "cut_in", "lead_braking")
    signals = station.event == "ego_stopping" or (calm and station.kind == "cross" and rng.random() < 0.6)
    return Junction(station.s, centre, radius, signals, (arms[0], arms[1], arms[2], arms[3]))


def build_layout(rng: np.random.Generator, town: Town, scene: str, seconds: float) -> Layout:
    """Plan the stations and lay the roads."""
    stations = plan_stations(rng, scene, seconds)
    events = {station.event for station in stations}
    profile = _profile(rng, town, scene, events, main=True)
    length = RUN_IN + CRUISE[scene] * 1.15 * seconds + 130.0
    length = max(length, stations[-1].s + 110.0)
    main = Road(_main_path(rng, scene, stations, length), profile, main=True)
    roads = [main]
    junctions = [
        _junction(rng, town, scene, station, roads)
        for station in stations
        if station.kind in ("cross", "left", "right")
    ]
    return Layout(roads, junctions, stations, [station.s for station in stations if station.kind == "zebra"])
