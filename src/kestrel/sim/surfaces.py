# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""One table of all triangles of a drive, whatever body they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kestrel.sim.scene import ActorState, Mesh, World
from kestrel.sim.semantics import Semantic
from kestrel.types import (
    Float32Array,
    Float64Array,
    Int64Array,
    UInt8Array,
    UInt16Array,
    UInt32Array,
)

BoolArray: TypeAlias = NDArray[np.bool_]

NO_PLANE: Final = 0
SKY_PLANE: Final = 1
"""Of rays that hit nothing."""

_PLANE_STEP: Final = 0.005
"""Of the parts of a normal, and metres: triangles within it lie in one plane."""

_SLENDER: Final = (Semantic.POLE, Semantic.TRAFFIC_SIGN, Semantic.TRAFFIC_LIGHT, Semantic.TRUNK)
"""What has details smaller than the distance of two pixels even where all around it looks the same."""

SAMPLING_S = 0.5
"""How often actors are looked at to find those that never move."""


@dataclass(frozen=True)
class SurfaceTable:
    """Properties of every triangle; fields as in scene.Mesh.

    instance: (T,) uint16 track id, 0 for the static world.
    plane: (T,) int64, equal where triangles of one body lie in one plane and look the same; NO_PLANE where
        they are too narrow for a plane of their own, such as poles.
    """

    semantic: UInt8Array
    colour: UInt8Array
    texture: UInt8Array
    reflectivity: Float32Array
    lamp: UInt16Array
    instance: UInt16Array
    plane: Int64Array


@dataclass
class MeshStack:
    """Meshes put one behind the other, each with the track id that its triangles belong to."""

    vertices: list[Float32Array] = field(default_factory=list)
    triangles: list[UInt32Array] = field(default_factory=list)
    meshes: list[Mesh] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    _vertex_count: int = 0

    def add(self, mesh: Mesh, vertices: Float32Array, owner: int) -> None:
        """Add ``mesh`` with its corners moved to ``vertices``."""
        self.vertices.append(vertices.astype(np.float32))
        self.triangles.append(mesh.triangles + np.uint32(self._vertex_count))
        self.meshes.append(mesh)
        self.owners.append(owner)
        self._vertex_count += len(vertices)

    def geometry(self) -> tuple[Float32Array, UInt32Array]:
        """Return all vertices (V, 3) and triangles (T, 3)."""
        if not self.meshes:
            return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint32)
        return np.concatenate(self.vertices), np.concatenate(self.triangles)


def surface_table(static: MeshStack, moving: MeshStack) -> SurfaceTable:
    """Return the properties of all triangles: of what never moves, then of what does."""
    pairs = [pair for stack in (static, moving) for pair in zip(stack.meshes, stack.owners, strict=True)]
    owners = [np.full(len(mesh.triangles), owner, np.uint16) for mesh, owner in pairs]
    semantic, colour, texture, lamp = (
        np.concatenate([getattr(mesh, name) for mesh, _ in pairs])
        for name in ("semantic", "colour", "texture", "lamp")
    )
    instance = np.concatenate(owners)
    planes = np.concatenate([_planes(*stack.geometry()) for stack in (static, moving)])
    look = (semantic, *colour.T, texture, lamp, instance)
    table = SurfaceTable(
        semantic=semantic,
        colour=colour,
        texture=texture,
        reflectivity=np.concatenate([mesh.reflectivity for mesh, _ in pairs]).astype(np.float32),
        lamp=lamp,
        instance=instance,
        plane=_hashed([*planes.T, *(each.astype(np.int64) for each in look)]),
    )
    table.plane[np.isin(table.semantic, _SLENDER)] = NO_PLANE
    return table


def _planes(vertices: Float32Array, triangles: UInt32Array) -> Int64Array:
    """Return (T, 4) normal and distance from the origin of each triangle, in steps of _PLANE_STEP."""
    corners = vertices.astype(np.float64)[triangles]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    away = (normal * corners[:, 0]).sum(axis=1, keepdims=True)
    steps: Int64Array = np.round(np.concatenate((normal, away), axis=1) / _PLANE_STEP).astype(np.int64)
    return steps


def _hashed(columns: Sequence[Int64Array]) -> Int64Array:
    """Return (T,) one number for each row of the columns, different where these are (but for chance)."""
    total = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        total ^= column.view(np.uint64)
        total *= np.uint64(0x9E3779B97F4A7C15)  # odd, and its bits are well mixed (2^64 / golden ratio)
        total ^= total >> np.uint64(29)
    return total.view(np.int64)


def map_from_actor(state: ActorState) -> Float64Array:
    """Return the (4, 4) pose of an actor's local frame in ``map``."""
    cosine, sine = np.cos(state.yaw), np.sin(state.yaw)
    x, y, z = state.position
    return np.array([[cosine, -sine, 0, x], [sine, cosine, 0, y], [0, 0, 1, z], [0, 0, 0, 1.0]])


def resting_states(world: World, seconds: float) -> dict[int, ActorState]:
    """Return the state, by track id, of every actor that is there, unmoved, all the time."""
    times = np.linspace(0.0, seconds, max(2, int(np.ceil(seconds / SAMPLING_S)) + 1))
    resting = {state.track_id: state for state in world.actor_states(0.0) if state.velocity == (0.0, 0.0)}
    for time_s in times[1:]:
        now = {state.track_id: _place(state) for state in world.actor_states(float(time_s))}
        resting = {track: state for track, state in resting.items() if now.get(track) == _place(state)}
    return resting


def _place(state: ActorState) -> tuple[object, ...]:
    return state.position, state.yaw, state.velocity, state.phase


def stack_static(world: World, resting: dict[int, ActorState]) -> MeshStack:
    """Return the static world with the resting actors in their places."""
    stack = MeshStack()
    stack.add(world.static, world.static.vertices, 0)
    for track, state in sorted(resting.items()):
        mesh = world.actors[track].meshes[state.phase]
        pose = map_from_actor(state)
        stack.add(
            mesh, mesh.vertices @ pose[:3, :3].T.astype(np.float32) + pose[:3, 3].astype(np.float32), track
        )
    return stack
