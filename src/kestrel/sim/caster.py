# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Casting rays into a world with moving actors, without rebuilding any acceleration structure.

Two scenes are built once per drive: the static world (with everything that rests), and a showroom in which
every mesh of every moving actor stands at its own place. A ray meets a moving actor by being moved into the
actor's frame, at the ray's own time, and on into the showroom. So each LiDAR firing and each camera sees the
actors exactly where they are at its moment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import open3d as o3d

from kestrel.sim.scene import ActorState, World
from kestrel.sim.surfaces import (
    MeshStack,
    bounding_sphere,
    map_from_actor,
    resting_states,
    stack_static,
    surface_table,
)
from kestrel.types import Float32Array, Float64Array, Int64Array, UInt16Array

SLOT_MARGIN_M = 2.0
"""Free space around each mesh of the showroom."""

NO_TRIANGLE = -1


@dataclass
class Hits:
    """First surface on each ray.

    distance: (N,) float32 metres, inf where nothing is hit. triangle: (N,) int64 row of the SurfaceTable or
    NO_TRIANGLE. normal: (N,) of (3,) float32 in map, towards the ray's origin. instance: (N,) uint16 track id.
    local_point, local_normal: (N, 3) float32 where textures are anchored: map, or the frame of the actor.
    """

    distance: Float32Array
    triangle: Int64Array
    normal: Float32Array
    instance: UInt16Array
    local_point: Float32Array
    local_normal: Float32Array


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
        meshes = [(track, phase, mesh) for track in self._moving for phase, mesh in enumerate(self._world.actors[track].meshes)]
        side = int(np.ceil(np.sqrt(max(1, len(meshes)))))
        origins = []
        for track, phase, mesh in meshes:
            if id(mesh) not in places:
                places[id(mesh)] = row = len(origins)
                origins.append(np.array([row % side, row // side, 0.0], np.float32) * np.float32(spacing))
                stack.add(mesh, mesh.vertices + origins[row], track)
            slots[track, phase] = places[id(mesh)]
        return stack, slots, np.array(origins, np.float32).reshape(-1, 3)

    def moving_actors(self, time_s: float, near: Float64Array, within_m: float) -> list[MovingActor]:
        """Return the moving actors whose balls come within ``within_m`` of the point ``near`` at ``time_s``."""
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

    def cast_static(self, origins: Float32Array, directions: Float32Array) -> Hits:
        """Return what the rays hit of the static world; origins and unit directions (N, 3) float32 in map."""
        answer = self._static_scene.cast_rays(_rays(origins, directions))
        distance = answer["t_hit"].numpy()
        hit = np.isfinite(distance)
        triangle = np.where(hit, answer["primitive_ids"].numpy().astype(np.int64), NO_TRIANGLE)
        normal = answer["primitive_normals"].numpy()
        point = origins + directions * np.where(hit, distance, 0.0).astype(np.float32)[:, None]
        instance = self.table.instance[triangle]
        instance[~hit] = 0
        return Hits(distance, triangle, normal, instance, point, normal.copy())

    def add_actors(
        self,
        hits: Hits,
        origins: Float32Array,
        directions: Float32Array,
        candidates: list[tuple[MovingActor, Int64Array]],
        delay_s: Float32Array | None = None,
    ) -> None:
        """Replace the hits on rays that meet a moving actor before the static world.

        Args:
            hits: Of all rays, changed in place.
            origins: (N, 3) float32 in map.
            directions: (N, 3) float32 unit vectors in map.
            candidates: Per actor, the (K,) rows of the rays that may meet its ball.
            delay_s: (N,) seconds of each ray after the moment of the actors, or None for 0.
        """
        batches = [
            _ShowroomRays.enter(actor, rows, origins, directions, delay_s, self._slot_origin[actor.slot])
            for actor, rows in candidates
        ]
        batches = [batch for batch in batches if len(batch.rows)]
        if not batches:
            return
        answer = self._showroom_scene.cast_rays(
            _rays(np.concatenate([b.origins for b in batches]), np.concatenate([b.directions for b in batches]))
        )
        fields = [answer[name].numpy() for name in ("t_hit", "primitive_ids", "primitive_normals")]
        start = 0
        for batch in batches:
            part = slice(start, start + len(batch.rows))
            self._merge(hits, batch, fields[0][part], fields[1][part], fields[2][part])
            start = part.stop

    def _merge(self, hits: Hits, batch: _ShowroomRays, past: Float32Array, ids: UInt16Array, normal: Float32Array) -> None:
        distance = past + batch.entered
        finite = np.isfinite(distance)
        own = np.zeros(len(ids), bool)
        own[finite] = self._slot_of_triangle[ids[finite]] == batch.actor.slot
        nearer = own & (distance < hits.distance[batch.rows])
        rows = batch.rows[nearer]
        hits.distance[rows] = distance[nearer]
        hits.triangle[rows] = ids[nearer].astype(np.int64) + self._static_count
        hits.instance[rows] = batch.actor.track_id
        hits.local_normal[rows] = normal[nearer]
        hits.normal[rows] = normal[nearer] @ batch.actor.map_from_actor[:3, :3].T.astype(np.float32)
        along = batch.directions[nearer] * past[nearer, None]
        hits.local_point[rows] = batch.origins[nearer] + along - self._slot_origin[batch.actor.slot]

    def shaded(
        self,
        points: Float32Array,
        sun: Float32Array,
        actors: list[tuple[MovingActor, Int64Array]],
    ) -> Float32Array:
        """Return (N,) bool: something stands between each point (N, 3) in map and the ``sun`` (3,)."""
        directions = np.broadcast_to(sun.astype(np.float32), points.shape)
        dark = self._static_scene.test_occlusions(_rays(points, directions)).numpy()
        batches = [
            _ShowroomRays.enter(actor, rows, points, directions, None, self._slot_origin[actor.slot])
            for actor, rows in actors
        ]
        batches = [batch for batch in batches if len(batch.rows)]
        if batches:
            answer = self._showroom_scene.cast_rays(
                _rays(np.concatenate([b.origins for b in batches]), np.concatenate([b.directions for b in batches]))
            )
            finite = np.isfinite(answer["t_hit"].numpy())
            owner = self._slot_of_triangle[np.where(finite, answer["primitive_ids"].numpy(), 0)]
            expected = np.concatenate([np.full(len(b.rows), b.actor.slot) for b in batches])
            dark[np.concatenate([b.rows for b in batches])[finite & (owner == expected)]] = True
        return dark


@dataclass
class _ShowroomRays:
    """Rays that meet one actor's ball, moved to where the ball stands in the showroom.

    rows: which rays. entered: (K,) metres from the true origin to where the ray enters the ball (0 inside it).
    """

    actor: MovingActor
    rows: Int64Array
    origins: Float32Array
    directions: Float32Array
    entered: Float32Array

    @classmethod
    def enter(
        cls,
        actor: MovingActor,
        rows: Int64Array,
        origins: Float32Array,
        directions: Float32Array,
        delay_s: Float32Array | None,
        slot_origin: Float32Array,
    ) -> _ShowroomRays:
        start, direction = origins[rows], directions[rows]
        moved = np.zeros_like(start)
        if delay_s is not None:
            moved = delay_s[rows, None] * actor.velocity.astype(np.float32)
        towards = actor.centre.astype(np.float32) + moved - start
        closest = np.einsum("nk,nk->n", towards, direction)
        gap = np.einsum("nk,nk->n", towards, towards) - closest**2
        radius = np.float32(actor.radius * 1.01 + 0.01)
        meets = (gap < radius**2) & (closest > -radius)
        rows, start, direction, closest, gap = (a[meets] for a in (rows, start, direction, closest, gap))
        entered = np.maximum(closest - np.sqrt(np.maximum(radius**2 - gap, 0.0)), 0.0).astype(np.float32)
        start = start + entered[:, None] * direction - moved[meets]
        rotation = actor.map_from_actor[:3, :3].astype(np.float32)
        local = (start - actor.map_from_actor[:3, 3].astype(np.float32)) @ rotation
        direction = direction @ rotation
        if delay_s is not None and abs(actor.yaw_rate) > 1e-6:
            angle = -np.float32(actor.yaw_rate) * delay_s[rows]
            local, direction = _turn(local, angle), _turn(direction, angle)
        return cls(actor, rows, local + slot_origin, direction, entered)


def _turn(vectors: Float32Array, angle: Float32Array) -> Float32Array:
    cosine, sine = np.cos(angle), np.sin(angle)
    x, y, z = vectors.T
    return np.stack([cosine * x - sine * y, sine * x + cosine * y, z], axis=1).astype(np.float32)


def _rays(origins: Float32Array, directions: Float32Array) -> o3d.core.Tensor:
    rays = np.empty((len(origins), 6), np.float32)
    rays[:, :3] = origins
    rays[:, 3:] = directions
    return o3d.core.Tensor.from_numpy(rays)


def _scene(stack: MeshStack) -> o3d.t.geometry.RaycastingScene:
    scene = o3d.t.geometry.RaycastingScene()
    vertices, triangles = stack.geometry()
    if len(triangles):
        scene.add_triangles(o3d.core.Tensor.from_numpy(vertices), o3d.core.Tensor.from_numpy(triangles))
    return scene
