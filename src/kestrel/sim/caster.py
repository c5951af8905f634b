# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Casting rays into a world with moving actors.

Two scenes are built once per drive: the static world (with everything that rests), and the showroom of all
that moves.

Large products of matrices are written out: BLAS would start threads of its own for them, which cost more than
they compute here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import open3d as o3d

from kestrel.sim.scene import World
from kestrel.sim.showroom import MovedRays, MovingActors, Pairs, Showroom
from kestrel.sim.surfaces import BoolArray, MeshStack, resting_states, stack_static, surface_table
from kestrel.types import Float32Array, Float64Array, Int64Array, UInt16Array

NO_TRIANGLE = -1

ONE_THREAD = 1
"""Threads of one cast: the other cores make other samples."""


@dataclass
class Hits:
    """First surface on each ray; arrays of vectors are (3, N), since channels are worked on one by one.

    rays: (N, 6) float32 origin and unit direction in map.
    distance: (N,) float32 metres, inf where nothing is hit.
    triangle: (N,) int64 row of the SurfaceTable, or NO_TRIANGLE.
    normal: (3, N) float32 unit vectors in map, to either side. instance: (N,) uint16 track id, 0 for none.
    on_actors: where moving actors were hit.
    """

    rays: Float32Array
    distance: Float32Array
    triangle: Int64Array
    normal: Float32Array
    instance: UInt16Array
    on_actors: ActorHits

    def points(self, direction: Float32Array) -> Float32Array:
        """Return (3, N) places in map along ``direction`` (3, N) float32; the origin where nothing is hit."""
        points: Float32Array = direction * np.where(np.isfinite(self.distance), self.distance, np.float32(0))
        for axis in range(3):
            points[axis] += self.rays[:, axis]
        return points

    def part(self, rows: slice) -> Hits:
        """Return a view of the rays ``rows``."""
        on = slice(*np.searchsorted(self.on_actors.rows, (rows.start, rows.stop)))
        on_actors = ActorHits(
            self.on_actors.rows[on] - rows.start, self.on_actors.point[:, on], self.on_actors.normal[:, on]
        )
        return Hits(
            self.rays[rows],
            self.distance[rows],
            self.triangle[rows],
            self.normal[:, rows],
            self.instance[rows],
            on_actors,
        )


@dataclass(frozen=True)
class ActorHits:
    """Hits on moving actors: ascending rows (K,) of rays, point and normal (3, K) in the actor's frame."""

    rows: Int64Array
    point: Float32Array
    normal: Float32Array


class WorldCaster:
    """All triangles of one drive, ready for rays.

    Args:
        world: The town and its traffic.
        seconds: How long the drive is; actors that do not move in it become part of the static scene.
    """

    def __init__(self, world: World, seconds: float) -> None:
        resting = resting_states(world, seconds)
        static = stack_static(world, resting)
        self._showroom = Showroom(world, sorted(set(world.actors) - set(resting)))
        self._static_scene = _scene(static)
        self._showroom_scene = _scene(self._showroom.stack)
        self.table = surface_table((static, self._showroom.stack))
        self._static_count = sum(len(mesh.triangles) for mesh in static.meshes)

    def moving_actors(self, time_s: float, near: Float64Array, within_m: float) -> MovingActors:
        """Return the moving actors that reach within ``within_m`` of ``near`` (3,) at ``time_s``."""
        return self._showroom.actors(time_s, near, within_m)

    def cast_static(self, rays: Float32Array) -> Hits:
        """Return what the rays (N, 6) float32, origin and unit direction in map, hit of the static world."""
        answer = self._static_scene.cast_rays(o3d.core.Tensor.from_numpy(rays), ONE_THREAD)
        distance = answer["t_hit"].numpy()
        miss = np.flatnonzero(np.isinf(distance))
        triangle = answer["primitive_ids"].numpy().astype(np.int64)
        triangle[miss] = NO_TRIANGLE
        instance = self.table.instance.take(triangle)
        instance[miss] = 0
        normal = np.ascontiguousarray(answer["primitive_normals"].numpy().T)
        nothing = ActorHits(np.zeros(0, np.int64), np.zeros((3, 0), np.float32), np.zeros((3, 0), np.float32))
        return Hits(rays, distance, triangle, normal, instance, nothing)

    def add_actors(
        self, hits: Hits, actors: MovingActors, pairs: Pairs, delay_s: Float32Array | None = None
    ) -> None:
        """Replace the hits on rays that meet a moving actor before the static world.

        Args:
            hits: Of all rays, changed in place.
            actors: At one moment.
            pairs: Which rays may meet which of the actors.
            delay_s: (N,) seconds of each ray after the moment of the actors, or None for 0.
        """
        moved = self._showroom.enter(actors, pairs, hits.rays, delay_s, hits.distance)
        if not len(moved.rays):
            return
        past, triangle, normal = self._cast_showroom(moved, actors)
        distance = past + moved.entered
        nearer = np.flatnonzero(distance < hits.distance[moved.pairs.ray])
        np.minimum.at(hits.distance, moved.pairs.ray[nearer], distance[nearer])
        nearest = nearer[distance[nearer] == hits.distance[moved.pairs.ray[nearer]]]
        first = np.full(len(hits.distance), -1)
        first[moved.pairs.ray[nearest[::-1]]] = nearest[::-1]  # of several, the last to be set stays
        rows = np.flatnonzero(first >= 0)
        seen = first[rows]
        actor, ray, local_normal = moved.pairs.actor[seen], moved.rays[seen].T, normal[seen].T
        hits.triangle[rows] = triangle[seen] + self._static_count
        hits.instance[rows] = actors.track[actor]
        cosine, sine = (f(actors.yaw).astype(np.float32)[actor] for f in (np.cos, np.sin))
        hits.normal[0, rows] = cosine * local_normal[0] - sine * local_normal[1]
        hits.normal[1, rows] = sine * local_normal[0] + cosine * local_normal[1]
        hits.normal[2, rows] = local_normal[2]
        point = self._showroom.from_slot(ray[:3] + ray[3:] * past[seen], actors.slot[actor])
        hits.on_actors = ActorHits(rows, point, local_normal)

    def _cast_showroom(
        self, moved: MovedRays, actors: MovingActors
    ) -> tuple[Float32Array, Int64Array, Float32Array]:
        """Return distance (Q,), inf unless the own actor is hit, triangle (Q,) and normal (Q, 3)."""
        answer = self._showroom_scene.cast_rays(o3d.core.Tensor.from_numpy(moved.rays), ONE_THREAD)
        past = answer["t_hit"].numpy()
        finite = np.isfinite(past)
        triangle = np.where(finite, answer["primitive_ids"].numpy(), 0).astype(np.int64)
        own = self._showroom.slot_of_triangle[triangle] == actors.slot[moved.pairs.actor]
        return np.where(own, past, np.float32(np.inf)), triangle, answer["primitive_normals"].numpy()

    def shaded(self, rays: Float32Array) -> BoolArray:
        """Return (N,) bool: the static world is in the way of the rays (N, 6) float32 to the sun."""
        dark: BoolArray = self._static_scene.test_occlusions(
            o3d.core.Tensor.from_numpy(rays), nthreads=ONE_THREAD
        ).numpy()
        return dark

    def shade_by_actors(
        self, dark: BoolArray, rays: Float32Array, actors: MovingActors, pairs: Pairs
    ) -> None:
        """Set ``dark`` (N,) where a pair of an actor and a ray (N, 6) to the sun meets, in place."""
        moved = self._showroom.enter(actors, pairs, rays)
        if len(moved.rays):
            past, _, _ = self._cast_showroom(moved, actors)
            dark[moved.pairs.ray[np.isfinite(past)]] = True


def _scene(stack: MeshStack) -> o3d.t.geometry.RaycastingScene:
    scene = o3d.t.geometry.RaycastingScene()
    vertices, triangles = stack.geometry()
    if len(triangles):
        scene.add_triangles(o3d.core.Tensor.from_numpy(vertices), o3d.core.Tensor.from_numpy(triangles))
    return scene
