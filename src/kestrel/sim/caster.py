# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Casting rays into a world with moving actors.

Two scenes are built once per drive: the static world (with everything that rests), and the showroom of all
that moves.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import open3d as o3d

from kestrel.sim.compiled import compiled
from kestrel.sim.scene import World
from kestrel.sim.showroom import MovedRays, MovingActors, Pairs, Showroom
from kestrel.sim.surfaces import BoolArray, MeshStack, resting_states, stack_static, surface_table
from kestrel.types import Float32Array, Float64Array, Int64Array, UInt16Array, UInt32Array

NO_TRIANGLE = -1

ONE_THREAD = 1
"""Threads of one cast: the other cores make other samples."""


class Hits(NamedTuple):
    """The first surface on each ray; rays that were not cast yet have hit nothing, 0 metres away.

    Compiled loops read and fill the arrays in place.

    rays: (N, 6) float32 origin and unit direction in map.
    distance: (N,) float32 metres, inf where nothing is hit.
    triangle: (N,) int64 row of the SurfaceTable, or NO_TRIANGLE.
    normal: (N, 3) float32 unit vectors in map, to either side. instance: (N,) uint16 track id, 0 for none.
    moving: (N,) bool, on a moving actor. local_point, local_normal: (N, 3) float32 of these in the actor's
        frame; of no meaning elsewhere.
    """

    rays: Float32Array
    distance: Float32Array
    triangle: Int64Array
    normal: Float32Array
    instance: UInt16Array
    moving: BoolArray
    local_point: Float32Array
    local_normal: Float32Array

    @classmethod
    def of(cls, rays: Float32Array) -> Hits:
        """Return what is known of ``rays`` (N, 6) before they are cast."""
        count = len(rays)
        return cls(
            rays,
            distance=np.zeros(count, np.float32),
            triangle=np.full(count, NO_TRIANGLE, np.int64),
            normal=np.zeros((count, 3), np.float32),
            instance=np.zeros(count, np.uint16),
            moving=np.zeros(count, bool),
            local_point=np.empty((count, 3), np.float32),
            local_normal=np.empty((count, 3), np.float32),
        )


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
        self.table = surface_table(static, self._showroom.stack)
        self._static_count = sum(len(mesh.triangles) for mesh in static.meshes)

    def moving_actors(self, time_s: float, near: Float64Array, within_m: float) -> MovingActors:
        """Return the moving actors that reach within ``within_m`` of ``near`` (3,) at ``time_s``."""
        return self._showroom.actors(time_s, near, within_m)

    def cast_static(self, hits: Hits, rows: Int64Array) -> None:
        """Cast the rays ``rows`` (K,) into the static world and enter what they hit, in place."""
        rays = hits.rays.take(rows, axis=0)
        answer = self._static_scene.cast_rays(o3d.core.Tensor.from_numpy(rays), ONE_THREAD)
        distance, triangle = answer["t_hit"].numpy(), answer["primitive_ids"].numpy()
        normal = answer["primitive_normals"].numpy()
        _enter(rows, distance, triangle, normal, self.table.instance, hits)

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
        where = moved.pairs.ray, moved.pairs.actor, moved.rays, moved.entered
        bodies = actors.track, np.cos(actors.yaw), np.sin(actors.yaw), self._showroom.origin[actors.slot]
        _replace(where, past, triangle + self._static_count, normal, bodies, hits)

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


@compiled
def _enter(
    rows: Int64Array,
    distance: Float32Array,
    triangle: UInt32Array,
    normal: Float32Array,
    instance: UInt16Array,
    hits: Hits,
) -> None:
    """Enter what the rays ``rows`` (K,) found of the static world: (K,), (K,), (K, 3).

    instance: (T,) of all triangles. hits: of all rays, changed in place.
    """
    for k in range(len(rows)):
        row = rows[k]
        hit = np.isfinite(distance[k])
        hits.distance[row] = distance[k]
        hits.triangle[row] = triangle[k] if hit else NO_TRIANGLE
        hits.instance[row] = instance[triangle[k]] if hit else 0
        for axis in range(3):
            hits.normal[row, axis] = normal[k, axis]


@compiled
def _replace(
    where: tuple[Int64Array, Int64Array, Float32Array, Float32Array],
    past: Float32Array,
    triangle: Int64Array,
    normal: Float32Array,
    actors: tuple[UInt16Array, Float64Array, Float64Array, Float32Array],
    hits: Hits,
) -> None:
    """Enter hits on actors that are nearer than what is known of their rays.

    Args:
        where: Of pairs (Q,): ray, actor, moved ray (Q, 6) and the metres before it.
        past: (Q,) metres along the moved ray, inf without a hit.
        triangle: (Q,).
        normal: (Q, 3) in the actor's frame.
        actors: Tracks, cosine and sine of the yaws, and (A, 3) where the meshes stand.
        hits: Of all rays, changed in place.
    """
    ray, actor, moved, entered = where
    track, cosine, sine, origin = actors
    for k in range(len(ray)):
        row, who = ray[k], actor[k]
        distance = np.float32(past[k] + entered[k])
        if distance < hits.distance[row]:
            hits.distance[row] = distance
            hits.triangle[row] = triangle[k]
            hits.instance[row] = track[who]
            hits.moving[row] = True
            x, y = normal[k, 0], normal[k, 1]
            hits.normal[row, 0] = cosine[who] * x - sine[who] * y
            hits.normal[row, 1] = sine[who] * x + cosine[who] * y
            hits.normal[row, 2] = normal[k, 2]
            for axis in range(3):
                hits.local_point[row, axis] = (
                    moved[k, axis] + moved[k, 3 + axis] * past[k] - origin[who, axis]
                )
                hits.local_normal[row, axis] = normal[k, axis]
