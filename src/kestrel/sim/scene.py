# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The seam between the simulated world and its sensors: meshes, actors and their motion.

The world frame is ``map``: metres, z up, the road surface near z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kestrel.sim.semantics import Semantic
from kestrel.types import BevMap, Float32Array, Float64Array, UInt8Array, UInt16Array, UInt32Array


@dataclass(frozen=True)
class Mesh:
    """Triangles with a class, a colour and a texture each.

    vertices: (V, 3) float32, metres. triangles: (T, 3) uint32.
    semantic: (T,) uint8 Semantic. colour: (T, 3) uint8 base colour (sRGB).
    texture: (T,) uint8 Texture. reflectivity: (T,) float32, 0..1, of the LiDAR's wavelength.
    lamp: (T,) uint16 lamps.Lamp that it is a piece of, 0 for none; of a traffic signal with its group.
    """

    vertices: Float32Array
    triangles: UInt32Array
    semantic: UInt8Array
    colour: UInt8Array
    texture: UInt8Array
    reflectivity: Float32Array
    lamp: UInt16Array


class Texture:
    """How the renderer varies the base colour of a surface over its (x, y, z)."""

    PLAIN = 0
    ASPHALT = 1
    PAVING = 2
    GRASS = 3
    BRICK = 4
    WINDOWS = 5
    FOLIAGE = 6
    BARK = 7
    CONCRETE = 8
    EMISSIVE = 9
    GLASS = 10
    STRIPES = 11


@dataclass(frozen=True)
class Actor:
    """Something that has a box in the truth.

    track_id: unique in the drive, >= 1. semantic: kind, with an entry in semantics.DETECTION_CLASS.
    size: length, width, height in metres; the box stands on the local origin: x forward, z = 0 at its foot,
        centred in x and y. meshes: one per animation phase (one for rigid things), in that local frame.
    """

    track_id: int
    semantic: Semantic
    size: tuple[float, float, float]
    meshes: tuple[Mesh, ...]


@dataclass(frozen=True)
class ActorState:
    """Where one actor is at one moment, in ``map``.

    position: foot of the box (x, y, z). yaw: about z. velocity: (vx, vy) m/s. phase: index into Actor.meshes.
    lights: lamps.Lights that are on. parked: it stands with nobody at the wheel.
    """

    track_id: int
    position: tuple[float, float, float]
    yaw: float
    velocity: tuple[float, float]
    phase: int = 0
    lights: int = 0
    parked: bool = False


@dataclass(frozen=True)
class EgoState:
    """Motion of the vehicle that carries the sensors.

    map_from_base: (4, 4) float64. velocity: (3,) m/s in base_link. angular_velocity: (3,) rad/s in base_link.
    acceleration: (3,) m/s^2 in base_link, without gravity.
    """

    map_from_base: Float64Array
    velocity: Float64Array
    angular_velocity: Float64Array
    acceleration: Float64Array


@dataclass(frozen=True)
class Weather:
    """Light and air.

    sun_direction: (3,) unit vector from the ground to the sun.
    sun, ambient: strength of direct and sky light, 0..2.
    fog_per_m: extinction coefficient of the air. rain: 0..1. sky: (3,) float32 0..1 colour near the horizon.
    zenith: (3,) float32 0..1 colour straight above. name: day, dusk, fog or rain.
    """

    name: str
    sun_direction: Float32Array
    sun: float
    ambient: float
    fog_per_m: float
    rain: float
    sky: Float32Array
    zenith: Float32Array


class World(Protocol):
    """A town with its traffic over a stretch of time; everything is a function of time in seconds from 0."""

    @property
    def static(self) -> Mesh:
        """Everything that never moves and has no box, in ``map``."""

    @property
    def actors(self) -> dict[int, Actor]:
        """All actors by track id, parked vehicles, cones and barriers included."""

    @property
    def weather(self) -> Weather:
        """Light and air of the drive."""

    def actor_states(self, time_s: float) -> list[ActorState]:
        """Where every actor that exists at ``time_s`` is."""

    def signals(self, time_s: float) -> UInt8Array:
        """(G,) uint8 lamps.Lights that are on in every group of traffic signals of the static mesh."""

    def ego(self, time_s: float) -> EgoState:
        """Motion of the sensor vehicle."""

    def bev_map(self, map_from_base: Float64Array, *, lower: float, resolution: float, cells: int) -> BevMap:
        """Truth map layers (0 or 1) on a square grid of base_link; stamp_ns 0."""

    def event(self, time_s: float) -> str:
        """What goes on in front of the vehicle: one of classes.EVENTS."""
