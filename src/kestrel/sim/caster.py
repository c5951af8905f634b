# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Casting rays into a world with moving actors, without rebuilding any acceleration structure.

Two scenes are built once per drive: the static world (with everything that rests), and a showroom in which
every mesh of every moving actor stands at its own place. A ray meets a moving actor by being moved into the
actor's frame, at the ray's own time, and on into the showroom. So each LiDAR firing and each camera sees the
actors exactly where they are at its moment.

Large products of matrices are written with einsum: BLAS would start threads of its own for them, which cost
more than they compute here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import open3d as o3d

from kestrel.sim.scene import ActorState, World
from kestrel.sim.surfaces import (
    BoolArray,
    MeshStack,
    bounding_sphere,
    map_from_actor,
    resting_states,
    stack_static,
    surface_table,
)
from kestrel.types import Float32Array, Float64Array, Int64Array, UInt16Array, UInt32Array

SLOT_MARGIN_M = 2.0
"""Free space around each mesh of the showroom."""

NO_TRIANGLE = -1

ONE_THREAD = 1
"""Threads of one cast: several samples are made at a time already."""


@dataclass
class Hits:
    """First surface on each ray; arrays of vectors are (3, N), since channels are worked on one by one.

    rays: (N, 6) float32 origin and unit direction in map.
    distance: (N,) float32 metres, inf where nothing is hit.
    triangle: (N,) int64 row of the SurfaceTable, or NO_TRIANGLE.
    normal: (3, N) float32 unit vectors in map, to either side. instance: (N,) uint16 track id, 0 for none.
    on_actors: what moving actors were hit, farther ones first.
    """

    rays: Float32Array
    distance: Float32Array
    triangle: Int64Array
    normal: Float32Array
    instance: UInt16Array
    on_actors: list[ActorHits]

    def points(self) -> Float32Array:
        """Return (3, N) float32 places in map; the origin of rays that hit nothing."""
        along = np.where(np.isfinite(self.distance), self.distance, np.float32(0))
        points = np.empty((3, len(along)), np.float32)
        for axis in range(3):
            np.multiply(self.rays[:, 3 + axis], along, out=points[axis])
            points[axis] += self.rays[:, axis]
        return points


@dataclass(frozen=True)
class ActorHits:
    """Hits on one moving actor: rows (K,) of the rays, and point and normal (3, K) in the actor's frame."""

    rows: Int64Array
    point: Float32Array
    normal: Float32Array


@dataclass(frozen=True)
class MovingActor:
    """An actor on its way: where it is at one moment, how it moves, and its ball.

    map_from_actor: (4, 4) at the moment. velocity: (3,) m/s in map. yaw_rate: rad/s.
    centre: (3,) of the ball, in map at the moment. radius: metres.
    slot: row of the showroom where its mesh of that moment stands.
    """

    track_id: int
    map_from_actor: Float64Array
    velocity: Float64Array
    yaw_rate: float
    centre: Float64Array
    radius: float
    slot: int


class WorldCaster:
    """All triangles of one drive, ready for rays.

    Args:
        world: The town and its traffic.
        seconds: How long the drive is; actors that do not move in it become part of the static scene.
    """

    def __init__(self, world: World, seconds: float) -> None:
        self._world = world
        self._resting = resting_states(world, seconds)
        static = stack_static(world, self._resting)
        self._moving = sorted(set(world.actors) - set(self._resting))
        self._balls = {track: bounding_sphere(world.actors[track]) for track in self._moving}
        showroom, self._slots, self._slot_origin = self._build_showroom()
        self._static_scene = _scene(static)
        self._showroom_scene = _scene(showroom)
        self.table = surface_table((static, showroom))
        self._static_count = sum(len(mesh.triangles) for mesh in static.meshes)
        counts = [len(mesh.triangles) for mesh in showroom.meshes]
        self._slot_of_triangle = np.repeat(np.arange(len(counts)), counts)

    def _build_showroom(self) -> tuple[MeshStack, dict[tuple[int, int], int], Float32Array]:
        stack = MeshStack()
        places: dict[int, int] = {}
        slots: dict[tuple[int, int], int] = {}
        spacing = 2 * max((radius for _, radius in self._balls.values()), default=0.0) + SLOT_MARGIN_M
        meshes = [
            (track, phase, mesh)
            for track in self._moving
            for phase, mesh in enumerate(self._world.actors[track].meshes)
        ]
        side = int(np.ceil(np.sqrt(max(1, len(meshes)))))
        origins: list[Float32Array] = []
        for track, phase, mesh in meshes:
            if id(mesh) not in places:
                places[id(mesh)] = row = len(origins)
                origins.append(np.array([row % side, row // side, 0.0], np.float32) * np.float32(spacing))
                stack.add(mesh, mesh.vertices + origins[row], track)
            slots[track, phase] = places[id(mesh)]
        return stack, slots, np.array(origins, np.float32).reshape(-1, 3)

    def moving_actors(self, time_s: float, near: Float64Array, within_m: float) -> list[MovingActor]:
        """Return the moving actors whose balls are within ``within_m`` of ``near`` (3,) at ``time_s``."""
        step = 0.02
        later = {state.track_id: state for state in self._world.actor_states(time_s + step)}
        found = []
        for state in self._world.actor_states(time_s):
            if state.track_id in self._resting:
                continue
            actor = self._moving_actor(state, later.get(state.track_id, state), step)
            if np.linalg.norm(actor.centre - near) < within_m + actor.radius:
                found.append(actor)
        return found

    def _moving_actor(self, state: ActorState, later: ActorState, step: float) -> MovingActor:
        pose = map_from_actor(state)
        local_centre, radius = self._balls[state.track_id]
        turn = (later.yaw - state.yaw + np.pi) % (2 * np.pi) - np.pi
        return MovingActor(
            track_id=state.track_id,
            map_from_actor=pose,
            velocity=(np.array(later.position) - np.array(state.position)) / step,
            yaw_rate=turn / step,
            centre=pose[:3, :3] @ local_centre + pose[:3, 3],
            radius=radius,
            slot=self._slots[state.track_id, state.phase],
        )

    def cast_static(self, rays: Float32Array) -> Hits:
        """Return what the rays (N, 6) float32, origin and unit direction in map, hit of the static world."""
        answer = self._static_scene.cast_rays(o3d.core.Tensor.from_numpy(rays), ONE_THREAD)
        distance = answer["t_hit"].numpy()
        miss = np.isinf(distance)
        triangle = answer["primitive_ids"].numpy().astype(np.int64)
        triangle[miss] = NO_TRIANGLE
        instance = self.table.instance[triangle]
        instance[miss] = 0
        normal = np.ascontiguousarray(answer["primitive_normals"].numpy().T)
        return Hits(rays, distance, triangle, normal, instance, [])

    def add_actors(
        self,
        hits: Hits,
        candidates: list[tuple[MovingActor, Int64Array]],
        delay_s: Float32Array | None = None,
    ) -> None:
        """Replace the hits on rays that meet a moving actor before the static world.

        Args:
            hits: Of all rays, changed in place.
            candidates: Per actor, the (K,) rows of the rays that may meet its ball.
            delay_s: (N,) seconds of each ray after the moment of the actors, or None for 0.
        """
        batches = self._batches(hits.rays, candidates, delay_s)
        if not batches:
            return
        answer = self._showroom_scene.cast_rays(_joined(batches), ONE_THREAD)
        past, ids, normal = (answer[name].numpy() for name in ("t_hit", "primitive_ids", "primitive_normals"))
        start = 0
        for batch in batches:
            part = slice(start, start + len(batch.rows))
            self._merge(hits, batch, past[part], ids[part], normal[part])
            start = part.stop

    def _batches(
        self,
        rays: Float32Array,
        candidates: list[tuple[MovingActor, Int64Array]],
        delay_s: Float32Array | None,
    ) -> list[_ShowroomRays]:
        entered = (
            _ShowroomRays.enter(actor, rows, rays, delay_s, self._slot_origin[actor.slot])
            for actor, rows in candidates
            if len(rows)
        )
        return [batch for batch in entered if len(batch.rows)]

    def _merge(
        self, hits: Hits, batch: _ShowroomRays, past: Float32Array, ids: UInt32Array, normal: Float32Array
    ) -> None:
        distance = past + batch.entered
        finite = np.isfinite(distance)
        own = finite & (self._slot_of_triangle[np.where(finite, ids, 0)] == batch.actor.slot)
        nearer = np.flatnonzero(own & (distance < hits.distance[batch.rows]))
        rows = batch.rows[nearer]
        hits.distance[rows] = distance[nearer]
        hits.triangle[rows] = ids[nearer].astype(np.int64) + self._static_count
        hits.instance[rows] = batch.actor.track_id
        local_normal = normal[nearer].T
        hits.normal[:, rows] = np.einsum("ij,jn->in", batch.actor.map_from_actor[:3, :3], local_normal)
        ray = batch.rays[nearer]
        point = ray[:, :3] + ray[:, 3:] * past[nearer, None] - self._slot_origin[batch.actor.slot]
        hits.on_actors.append(ActorHits(rows, point.T, local_normal))

    def shaded(self, rays: Float32Array, actors: list[tuple[MovingActor, Int64Array]]) -> BoolArray:
        """Return (N,) bool: something is in the way of the rays (N, 6), which lead to the sun.

        Args:
            rays: (N, 6) float32 in map.
            actors: Per moving actor, the (K,) rows of the rays that may meet its ball.
        """
        dark: BoolArray = self._static_scene.test_occlusions(
            o3d.core.Tensor.from_numpy(rays), nthreads=ONE_THREAD
        ).numpy()
        batches = self._batches(rays, [(actor, rows[~dark[rows]]) for actor, rows in actors], None)
        if batches:
            answer = self._showroom_scene.cast_rays(_joined(batches), ONE_THREAD)
            finite = np.isfinite(answer["t_hit"].numpy())
            slot = self._slot_of_triangle[np.where(finite, answer["primitive_ids"].numpy(), 0)]
            expected = np.concatenate([np.full(len(b.rows), b.actor.slot) for b in batches])
            dark[np.concatenate([b.rows for b in batches])[finite & (slot == expected)]] = True
        return dark


@dataclass
class _ShowroomRays:
    """Rays that meet one actor's ball, moved to where the ball stands in the showroom.

    rows: which rays. rays: (K, 6). entered: (K,) metres from the true origin to the ball, 0 inside it.
    """

    actor: MovingActor
    rows: Int64Array
    rays: Float32Array
    entered: Float32Array

    @classmethod
    def enter(
        cls,
        actor: MovingActor,
        rows: Int64Array,
        rays: Float32Array,
        delay_s: Float32Array | None,
        slot_origin: Float32Array,
    ) -> _ShowroomRays:
        chosen = rays[rows]
        to_centre = actor.centre.astype(np.float32) - chosen[:, :3]
        if delay_s is not None:
            to_centre += delay_s[rows, None] * actor.velocity.astype(np.float32)
        closest = np.einsum("nk,nk->n", to_centre, chosen[:, 3:])
        gap = np.einsum("nk,nk->n", to_centre, to_centre) - closest * closest
        radius = np.float32(actor.radius * 1.01 + 0.01)
        meets = np.flatnonzero((gap < radius**2) & (closest > -radius))
        half = np.sqrt(np.maximum(radius**2 - gap[meets], 0))
        entered = np.maximum(closest[meets] - half, np.float32(0))
        direction = chosen[meets, 3:]
        from_centre = entered[:, None] * direction - to_centre[meets]
        rotation = actor.map_from_actor[:3, :3].astype(np.float32)
        middle = (actor.centre - actor.map_from_actor[:3, 3]) @ actor.map_from_actor[:3, :3]
        moved = np.empty((len(meets), 6), np.float32)
        moved[:, :3] = np.einsum("nk,kj->nj", from_centre, rotation) + middle.astype(np.float32)
        moved[:, 3:] = np.einsum("nk,kj->nj", direction, rotation)
        if delay_s is not None and abs(actor.yaw_rate) > 1e-6:
            angle = -np.float32(actor.yaw_rate) * delay_s[rows[meets]]
            moved[:, :3], moved[:, 3:] = _turn(moved[:, :3], angle), _turn(moved[:, 3:], angle)
        moved[:, :3] += slot_origin
        return cls(actor, rows[meets], moved, entered)


def _turn(vectors: Float32Array, angle: Float32Array) -> Float32Array:
    cosine, sine = np.cos(angle), np.sin(angle)
    x, y, z = vectors.T
    return np.stack([cosine * x - sine * y, sine * x + cosine * y, z], axis=1).astype(np.float32)


def _joined(batches: list[_ShowroomRays]) -> o3d.core.Tensor:
    return o3d.core.Tensor.from_numpy(np.concatenate([batch.rays for batch in batches]))


def _scene(stack: MeshStack) -> o3d.t.geometry.RaycastingScene:
    scene = o3d.t.geometry.RaycastingScene()
    vertices, triangles = stack.geometry()
    if len(triangles):
        scene.add_triangles(o3d.core.Tensor.from_numpy(vertices), o3d.core.Tensor.from_numpy(triangles))
    return scene
