# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Moving actors as rays meet them: every mesh of every one stands once, at its own place of a showroom.

A ray meets a moving actor by being moved into the actor's frame, at the ray's own time, and on to where its
mesh stands. So each LiDAR firing and each camera sees the actors exactly where they are at its moment, and no
acceleration structure is ever rebuilt.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from kestrel.sim.scene import World
from kestrel.sim.surfaces import MeshStack
from kestrel.types import Float32Array, Float64Array, Int64Array, UInt16Array

SLOT_MARGIN_M: Final = 2.0
"""Free space around each mesh of the showroom."""

_BOUNDS_MARGIN_M: Final = 0.01
_AT_A_TIME: Final = 8192
"""Rays that are moved together: few enough to stay in the cache."""

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
    """All meshes of the actors of ``world`` that ``moving`` names, each at its own place."""

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
        self._origin = np.array(origins, np.float32).reshape(-1, 3)
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
        bounds = [*range(0, len(pairs.actor), _AT_A_TIME), len(pairs.actor)]
        parts = [
            self._enter_some(
                actors, Pairs(pairs.actor[start:stop], pairs.ray[start:stop]), rays, delay_s, nearest
            )
            for start, stop in pairwise(bounds)
        ]
        if not parts:
            return MovedRays(pairs, np.zeros((0, 6), np.float32), np.zeros(0, np.float32))
        return MovedRays(
            Pairs(
                np.concatenate([part.pairs.actor for part in parts]),
                np.concatenate([part.pairs.ray for part in parts]),
            ),
            np.concatenate([part.rays for part in parts]),
            np.concatenate([part.entered for part in parts]),
        )

    def _enter_some(
        self,
        actors: MovingActors,
        pairs: Pairs,
        rays: Float32Array,
        delay_s: Float32Array | None,
        nearest: Float32Array | None,
    ) -> MovedRays:
        """Do the work of ``enter`` for a few pairs."""
        first = np.flatnonzero(np.diff(pairs.actor, prepend=-1))
        present, count = pairs.actor[first], np.diff(first, append=len(pairs.actor))

        def of_pairs(values: Float64Array | Float32Array) -> Float32Array:
            """Return (..., K) of one value (..., A) per actor."""
            return np.repeat(values[..., present].astype(np.float32), count, axis=-1)

        chosen = np.ascontiguousarray(rays.take(pairs.ray, axis=0).T)
        origin, direction = chosen[:3], chosen[3:]
        origin -= of_pairs(actors.place.T)
        if delay_s is None:
            yaw = actors.yaw.astype(np.float32)
            cosine, sine = of_pairs(np.cos(yaw)), of_pairs(np.sin(yaw))
        else:
            delay = delay_s[pairs.ray]
            origin -= of_pairs(actors.velocity.T) * delay
            angle = of_pairs(actors.yaw) + of_pairs(actors.yaw_rate) * delay
            cosine, sine = np.cos(angle), np.sin(angle)
        for part in (origin, direction):
            part[0], part[1] = cosine * part[0] + sine * part[1], cosine * part[1] - sine * part[0]
        entry, leave = _through(origin, direction, of_pairs(actors.lower.T), of_pairs(actors.upper.T))
        meets = (entry < leave) & (leave > 0)
        if nearest is not None:
            meets &= entry < nearest[pairs.ray]
        met = np.flatnonzero(meets)
        entered = np.maximum(entry[met], np.float32(0))
        actor = pairs.actor[met]
        moved = np.empty((len(met), 6), np.float32)
        slot = self._origin[actors.slot[actor]]
        for axis in range(3):
            along = direction[axis][met]
            moved[:, axis] = origin[axis][met] + entered * along + slot[:, axis]
            moved[:, 3 + axis] = along
        return MovedRays(Pairs(actor, pairs.ray[met]), moved, entered)

    def from_slot(self, points: Float32Array, slot: Int64Array) -> Float32Array:
        """Return places (3, K) in the frames of actors whose meshes stand in ``slot`` (K,)."""
        local: Float32Array = points - self._origin[slot].T
        return local


def _through(
    origin: Float32Array, direction: Float32Array, lower: Float32Array, upper: Float32Array
) -> tuple[Float32Array, Float32Array]:
    """Return where lines (3, K) enter and leave boxes from lower to upper (3, K); not if enter > leave."""
    entry = np.full(origin.shape[1], -np.inf, np.float32)
    leave = np.full(origin.shape[1], np.inf, np.float32)
    for axis in range(3):
        along = direction[axis]
        slope = 1 / np.where(np.abs(along) < 1e-9, np.float32(1e-9), along)
        first, second = lower[axis] - origin[axis], upper[axis] - origin[axis]
        first *= slope
        second *= slope
        np.maximum(entry, np.minimum(first, second), out=entry)
        np.minimum(leave, np.maximum(first, second), out=leave)
    return entry, leave
