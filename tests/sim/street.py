# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A tiny world with known geometry: flat ground, one wall, one car that drives by, one that is parked."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kestrel.classes import MAP_LAYERS
from kestrel.sim.scene import Actor, ActorState, EgoState, Mesh, Texture, Weather
from kestrel.sim.semantics import Semantic
from kestrel.types import BevMap

WALL_X = 30.0
MOVING, PARKED = 1, 2

_CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (0.0, 1.0)], np.float32)
_FACES = np.array(
    [
        (0, 1, 3),
        (0, 3, 2),
        (4, 6, 7),
        (4, 7, 5),
        (0, 4, 5),
        (0, 5, 1),
        (2, 3, 7),
        (2, 7, 6),
        (0, 2, 6),
        (0, 6, 4),
        (1, 5, 7),
        (1, 7, 3),
    ],
    np.uint32,
)


def box_mesh(
    size, centre=(0.0, 0.0, 0.0), semantic=Semantic.CAR, colour=(200, 30, 30), texture=Texture.PLAIN
):
    """Return a box that stands on ``centre``."""
    return coloured(_CORNERS * np.float32(size) + np.float32(centre), _FACES, semantic, colour, texture)


def coloured(vertices, triangles, semantic, colour, texture=Texture.PLAIN, lamp=0):
    count = len(triangles)
    return Mesh(
        vertices=np.asarray(vertices, np.float32),
        triangles=np.asarray(triangles, np.uint32),
        semantic=np.full(count, semantic, np.uint8),
        colour=np.tile(np.array(colour, np.uint8), (count, 1)),
        texture=np.full(count, texture, np.uint8),
        reflectivity=np.full(count, 0.5, np.float32),
        lamp=np.full(count, lamp, np.uint16),
    )


def joined(*meshes):
    offsets = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])])
    return Mesh(
        vertices=np.concatenate([mesh.vertices for mesh in meshes]),
        triangles=np.concatenate(
            [mesh.triangles + np.uint32(offset) for mesh, offset in zip(meshes, offsets, strict=True)]
        ),
        semantic=np.concatenate([mesh.semantic for mesh in meshes]),
        colour=np.concatenate([mesh.colour for mesh in meshes]),
        texture=np.concatenate([mesh.texture for mesh in meshes]),
        reflectivity=np.concatenate([mesh.reflectivity for mesh in meshes]),
        lamp=np.concatenate([mesh.lamp for mesh in meshes]),
    )


def _ground():
    corners = [(-200, -200, 0), (200, -200, 0), (200, 200, 0), (-200, 200, 0)]
    return coloured(corners, [(0, 1, 2), (0, 2, 3)], Semantic.ROAD, (90, 90, 95), Texture.ASPHALT)


def daylight(**changes):
    sun = np.array([-0.5, 0.3, 0.8])
    values = {
        "name": "day",
        "sun_direction": (sun / np.linalg.norm(sun)).astype(np.float32),
        "sun": 1.0,
        "ambient": 0.6,
        "fog_per_m": 0.0,
        "rain": 0.0,
        "sky": np.array([0.7, 0.8, 0.9], np.float32),
        "zenith": np.array([0.3, 0.5, 0.9], np.float32),
    }
    return Weather(**{**values, **changes})


@dataclass
class Street:
    """Ego drives along x at ``ego_speed`` from the origin; a car starts at ``car`` with ``car_velocity``."""

    ego_speed: float = 0.0
    car: tuple[float, float] = (12.0, 4.0)
    car_velocity: tuple[float, float] = (0.0, -2.0)
    weather: Weather = field(default_factory=daylight)

    def __post_init__(self):
        wall = box_mesh(
            (0.5, 60.0, 12.0), (WALL_X + 0.25, 0, 0), Semantic.BUILDING, (160, 120, 90), Texture.BRICK
        )
        self.static = joined(_ground(), wall)
        size = (4.0, 1.8, 1.5)
        self.actors = {
            track: Actor(track, Semantic.CAR, size, (box_mesh(size),)) for track in (MOVING, PARKED)
        }

    def actor_states(self, time_s):
        heading = float(np.arctan2(self.car_velocity[1], self.car_velocity[0]))
        x = self.car[0] + time_s * self.car_velocity[0]
        y = self.car[1] + time_s * self.car_velocity[1]
        return [
            ActorState(MOVING, (x, y, 0.0), heading, self.car_velocity),
            ActorState(PARKED, (15.0, -6.0, 0.0), 0.3, (0.0, 0.0)),
        ]

    def ego(self, time_s):
        pose = np.eye(4)
        pose[0, 3] = self.ego_speed * time_s
        return EgoState(pose, np.array([self.ego_speed, 0, 0]), np.zeros(3), np.zeros(3))

    def bev_map(self, map_from_base, *, lower, resolution, cells):
        layers = np.ones((len(MAP_LAYERS), cells, cells), np.float32)
        return BevMap(layers, MAP_LAYERS, (lower, lower), resolution, "base_link", 0)

    def signals(self, time_s):
        return np.zeros(0, np.uint8)

    def event(self, time_s):
        return "clear"
