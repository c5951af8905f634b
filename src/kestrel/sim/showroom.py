# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Moving actors as rays meet them: every mesh of every one stands once, at its own place of a showroom.

A ray meets a moving actor by being moved into the actor's frame, at the ray's own time, and on to where its
mesh stands. So each LiDAR firing and each camera sees the actors exactly where they are at its moment, and no
acceleration structure is ever rebuilt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from kestrel.sim.compiled import compiled
from kestrel.sim.scene import World
from kestrel.sim.surfaces import MeshStack
from kestrel.types import Float32Array, Float64Array, Int64Array, UInt16Array

SLOT_MARGIN_M: Final = 2.0
"""Free space around each mesh of the showroom."""

_BOUNDS_MARGIN_M: Final = 0.01
_NOT_GIVEN: Final = np.zeros(0, np.float32)
"""Stands for arrays that are None."""

_STEP_S: Final = 0.02
"""Time over which the velocity of an actor is measured."""


@dataclass(frozen=True)
class Pairs:
    """Rays that may meet actors: rows of actors (P,), ascending, and of rays (P,)."""

    actor: Int64Array
    ray: Int64Array

    @classmethod
    def of_runs(cls, actor: Int64Array, first: Int64Array, count: Int64Array) -> Pairs:
        """Pair each of the ascending actors (R,) with the rays ``first`` (R,) to ``first + count`` (R,)."""
        before = np.cumsum(count) - count
        ray = np.repeat(first - before, count) + np.arange(int(count.sum()))
        return cls(np.repeat(actor, count), ray)


@dataclass(frozen=True)
class MovingActors:
    """Actors on their way at one moment.

    track: (A,) uint16. place: (A, 3) of their origins in map. yaw: (A,). velocity: (A, 3) m/s in map.
    yaw_rate: (A,) rad/s. slot: (A,) row of the showroom where the mesh of the moment stands.
    lower, upper: (A, 3) bounds of that mesh in the actor's frame.
    """

    track: UInt16Array
    place: Float64Array
    yaw: Float64Array
    velocity: Float64Array
    yaw_rate: Float64Array
    slot: Int64Array
    lower: Float64Array
    upper: Float64Array

    def __len__(self) -> int:
        return len(self.track)

    def corners(self) -> Float64Array:
        """Return (A, 8, 3) corners of the bounds in map; bit k of a corner is its side along axis k."""
        high = (np.arange(8)[:, None] >> np.arange(3)) & 1
        local = np.where(high, self.upper[:, None], self.lower[:, None]).reshape(-1, 3)
        return self._in_map(local, np.repeat(np.arange(len(self)), 8)).reshape(-1, 8, 3)

    def ball(self) -> tuple[Float64Array, Float64Array]:
        """Return centre (A, 3) in map and radius (A,) of one ball around each actor."""
        centre = self._in_map((self.lower + self.upper) / 2, np.arange(len(self)))
        return centre, np.linalg.norm(self.upper - self.lower, axis=1) / 2

    def _in_map(self, local: Float64Array, owner: Int64Array) -> Float64Array:
        """Return places (K, 3) given in the frames of the actors ``owner`` (K,)."""
        cosine, sine = np.cos(self.yaw)[owner], np.sin(self.yaw)[owner]
        places = self.place[owner]
        places[:, 0] += cosine * local[:, 0] - sine * local[:, 1]
        places[:, 1] += sine * local[:, 0] + cosine * local[:, 1]
        places[:, 2] += local[:, 2]
        return places


@dataclass(frozen=True)
class MovedRays:
    """Rays at the bounds of their actors, moved into the showroom.

    pairs: which (Q). rays: (Q, 6). entered: (Q,) metres from the true origin to the bounds, 0 inside.
    """

    pairs: Pairs
    rays: Float32Array
    entered: Float32Array


class Showroom:
    """All meshes of the actors of ``world`` that ``moving`` names, each at its own place.

    Attributes:
        stack: The meshes. origin: (slots, 3) float32 where each stands. slot_of_triangle: (T,).
    """

    def __init__(self, world: World, moving: list[int]) -> None:
        self._world = world
        meshes = [
            (track, phase, mesh) for track in moving for phase, mesh in enumerate(world.actors[track].meshes)
        ]
        corners = [mesh.vertices for _, _, mesh in meshes]
        reach = max((float(np.linalg.norm(v, axis=1).max()) for v in corners), default=0.0)
        side = int(np.ceil(np.sqrt(max(1, len(meshes)))))
        self.stack = MeshStack()
        self._slots: dict[tuple[int, int], int] = {}
        places: dict[int, int] = {}
        origins: list[Float32Array] = []
        bounds: list[Float32Array] = []
        for track, phase, mesh in meshes:
            if id(mesh) not in places:
                places[id(mesh)] = row = len(origins)
                spacing = np.float32(2 * reach + SLOT_MARGIN_M)
                origins.append(np.array([row % side, row // side, 0.0], np.float32) * spacing)
                bounds.append(np.stack([mesh.vertices.min(0), mesh.vertices.max(0)]))
                self.stack.add(mesh, mesh.vertices + origins[row], track)
            self._slots[track, phase] = places[id(mesh)]
        self.origin = np.array(origins, np.float32).reshape(-1, 3)
        self._bounds = np.array(bounds, np.float64).reshape(-1, 2, 3)
        counts = [len(mesh.triangles) for mesh in self.stack.meshes]
        self.slot_of_triangle = np.repeat(np.arange(len(counts)), counts)
        self._moving = frozenset(moving)

    def actors(self, time_s: float, near: Float64Array, within_m: float) -> MovingActors:
        """Return the moving actors that reach within ``within_m`` of ``near`` (3,) at ``time_s``."""
        states = [state for state in self._world.actor_states(time_s) if state.track_id in self._moving]
        later = {state.track_id: state for state in self._world.actor_states(time_s + _STEP_S)}
        after = [later.get(state.track_id, state) for state in states]
        place = np.array([state.position for state in states], np.float64).reshape(-1, 3)
        slot = np.array([self._slots[state.track_id, state.phase] for state in states], np.int64)
        bounds = self._bounds[slot]
        reach = np.abs(bounds).max(1)
        away = np.linalg.norm(place - near, axis=1) - np.linalg.norm(reach, axis=1)
        close = np.flatnonzero(away < within_m)
        yaw = np.array([state.yaw for state in states], np.float64)
        turn = np.array([state.yaw for state in after], np.float64) - yaw
        moved = np.array([state.position for state in after], np.float64).reshape(-1, 3) - place
        return MovingActors(
            track=np.array([state.track_id for state in states], np.uint16)[close],
            place=place[close],
            yaw=yaw[close],
            velocity=moved[close] / _STEP_S,
            yaw_rate=((turn[close] + np.pi) % (2 * np.pi) - np.pi) / _STEP_S,
            slot=slot[close],
            lower=bounds[close, 0] - _BOUNDS_MARGIN_M,
            upper=bounds[close, 1] + _BOUNDS_MARGIN_M,
        )

    def enter(
        self,
        actors: MovingActors,
        pairs: Pairs,
        rays: Float32Array,
        delay_s: Float32Array | None = None,
        nearest: Float32Array | None = None,
    ) -> MovedRays:
        """Move the rays that meet the bounds of their actors into the showroom.

        Args:
            actors: At one moment.
            pairs: Which rays may meet which actor.
            rays: (N, 6) float32 in map.
            delay_s: (N,) seconds of each ray after the moment of the actors, or None for 0.
            nearest: (N,) metres; actors that are farther away than this on a ray are left out.
        """
        most = len(pairs.ray)
        met, moved = np.empty((2, most), np.int64), np.empty((most, 6), np.float32)
        entered = np.empty(most, np.float32)
        places = actors.place, actors.velocity, actors.yaw, actors.yaw_rate, actors.lower, actors.upper
        count = _meet(
            pairs.actor,
            pairs.ray,
            rays,
            _NOT_GIVEN if delay_s is None else delay_s,
            _NOT_GIVEN if nearest is None else nearest,
            places,
            self.origin[actors.slot],
            (met, moved, entered),
        )
        return MovedRays(Pairs(met[0, :count], met[1, :count]), moved[:count], entered[:count])


@compiled
def _meet(
    actor: Int64Array,
    ray: Int64Array,
    rays: Float32Array,
    delay_s: Float32Array,
    nearest: Float32Array,
    actors: tuple[Float64Array, Float64Array, Float64Array, Float64Array, Float64Array, Float64Array],
    origin: Float32Array,
    out: tuple[Int64Array, Float32Array, Float32Array],
) -> int:
    """Move the rays that meet the bounds of their actors to the meshes; return how many they are.

    Args:
        actor: (P,) of each pair.
        ray: (P,) of each pair.
        rays: (N, 6).
        delay_s: (N,), or empty for 0.
        nearest: (N,), or empty for inf.
        actors: place, velocity, yaw, yaw rate, lower and upper bounds of MovingActors.
        origin: (A, 3) where their meshes stand.
        out: actor and ray (2, P), moved ray (P, 6) and distance to the bounds (P,) of those that meet.
    """
    place, velocity, yaw, yaw_rate, lower, upper = actors
    met, moved, entered = out
    count = 0
    last = -1
    cosine = sine = 0.0
    start, along = np.empty(3), np.empty(3)
    for pair in range(len(actor)):
        who, row = actor[pair], ray[pair]
        delay = delay_s[row] if len(delay_s) else 0.0
        if who != last or delay > 0.0:
            angle = yaw[who] + yaw_rate[who] * delay
            cosine, sine = np.cos(angle), np.sin(angle)
            last = who
        x = rays[row, 0] - place[who, 0] - velocity[who, 0] * delay
        y = rays[row, 1] - place[who, 1] - velocity[who, 1] * delay
        start[0], start[1] = cosine * x + sine * y, cosine * y - sine * x
        start[2] = rays[row, 2] - place[who, 2] - velocity[who, 2] * delay
        x, y = rays[row, 3], rays[row, 4]
        along[0], along[1] = cosine * x + sine * y, cosine * y - sine * x
        along[2] = rays[row, 5]
        entry, leave = 0.0, np.inf
        if len(nearest):
            leave = nearest[row]
        for axis in range(3):
            slope = 1.0 / (along[axis] if abs(along[axis]) > 1e-9 else 1e-9)
            first = (lower[who, axis] - start[axis]) * slope
            second = (upper[who, axis] - start[axis]) * slope
            entry = max(entry, min(first, second))
            leave = min(leave, max(first, second))
        if entry < leave:
            met[0, count], met[1, count] = who, row
            entered[count] = entry
            for axis in range(3):
                moved[count, axis] = start[axis] + entry * along[axis] + origin[who, axis]
                moved[count, 3 + axis] = along[axis]
            count += 1
    return count
