# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""One table of all triangles of a drive, whatever body they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from kestrel.sim.scene import ActorState, Mesh, World
from kestrel.types import Float32Array, Float64Array, UInt8Array, UInt16Array, UInt32Array

BoolArray: TypeAlias = NDArray[np.bool_]

SAMPLING_S = 0.5
"""How often actors are looked at to find those that never move."""


@dataclass(frozen=True)
class SurfaceTable:
    """Properties of every triangle; fields as in scene.Mesh.

    instance: (T,) uint16 track id, 0 for the static world.
    """

    semantic: UInt8Array
    colour: UInt8Array
    texture: UInt8Array
    reflectivity: Float32Array
    lamp: UInt16Array
    instance: UInt16Array


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


def surface_table(stacks: Sequence[MeshStack]) -> SurfaceTable:
    """Return the properties of all triangles of the stacks, in their order."""
    pairs = [pair for stack in stacks for pair in zip(stack.meshes, stack.owners, strict=True)]
    owners = [np.full(len(mesh.triangles), owner, np.uint16) for mesh, owner in pairs]
    return SurfaceTable(
        semantic=np.concatenate([mesh.semantic for mesh, _ in pairs]),
        colour=np.concatenate([mesh.colour for mesh, _ in pairs]),
        texture=np.concatenate([mesh.texture for mesh, _ in pairs]),
        reflectivity=np.concatenate([mesh.reflectivity for mesh, _ in pairs]).astype(np.float32),
        lamp=np.concatenate([mesh.lamp for mesh, _ in pairs]),
        instance=np.concatenate(owners),
    )


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
