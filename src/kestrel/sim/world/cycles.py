# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Bicycles and motorcycles, with and without riders."""

from __future__ import annotations

import numpy as np

from kestrel.sim.lamps import Lamp
from kestrel.sim.scene import Texture
from kestrel.sim.semantics import Semantic
from kestrel.sim.world.cars import Model
from kestrel.sim.world.mesh import Colour, Finish, MeshBuilder, Shape, box, ellipsoid, fitted, tube, wheel
from kestrel.sim.world.people import Outfit, add_person
from kestrel.sim.world.vehicle_lamps import add_lamp, add_pair

_PAINTS: tuple[Colour, ...] = (
    (28, 30, 32),
    (170, 36, 32),
    (40, 84, 140),
    (60, 110, 70),
    (210, 206, 198),
    (220, 140, 40),
)


def _hoop(x: float, radius: float, tyre: float, sides: int = 12) -> Shape:
    """Upright ring of a wheel, its tyre ``tyre`` thick."""
    angle = np.arange(sides) * (2 * np.pi / sides)
    rings = []
    for r, y in (
        (radius, -tyre / 2),
        (radius, tyre / 2),
        (radius - 1.6 * tyre, tyre / 2),
        (radius - 1.6 * tyre, -tyre / 2),
    ):
        rings.append(np.column_stack([x + r * np.cos(angle), np.full(sides, y), radius + r * np.sin(angle)]))
    vertices = np.concatenate(rings)
    triangles = []
    for level in range(4):
        for k in range(sides):
            a, b = level * sides + k, level * sides + (k + 1) % sides
            c, d = (a + sides) % (4 * sides), (b + sides) % (4 * sides)
            triangles += [(a, b, d), (a, d, c)]
    return vertices, np.array(triangles)


def build_bicycle(rng: np.random.Generator, *, rider: bool) -> Model:
    """A bicycle about 1.7 m long; the rider sits upright or leans forward."""
    semantic = Semantic.BICYCLIST if rider else Semantic.BICYCLE
    paint = Finish(semantic, _PAINTS[int(rng.integers(len(_PAINTS)))], Texture.PLAIN, 0.4)
    dark = Finish(semantic, (30, 30, 32), Texture.PLAIN, 0.12)
    radius, half = float(rng.uniform(0.31, 0.35)), float(rng.uniform(0.48, 0.55))
    builder = MeshBuilder()
    for x in (-half, half):
        builder.add(_hoop(x, radius, 0.045), dark)
        for k in range(4):
            spoke = radius * 0.95 * np.array([np.cos(k * np.pi / 4), 0.0, np.sin(k * np.pi / 4)])
            hub = np.array([x, 0.0, radius])
            builder.add(tube(hub - spoke, hub + spoke, 0.008, sides=3), dark)
    crank, saddle = np.array([-0.06, 0.0, 0.30]), np.array([-0.22, 0.0, 0.92])
    head, bar = np.array([half - 0.16, 0.0, 0.82]), np.array([half - 0.18, 0.0, 1.02])
    axle, fork = np.array([-half, 0, radius]), np.array([half, 0, radius])
    joints = [
        (crank, saddle),
        (crank, head),
        (saddle - (0, 0, 0.1), head),
        (saddle - (0, 0, 0.15), axle),
        (crank, axle),
        (bar, fork),
    ]
    for a, b in joints:
        builder.add(tube(a, b, 0.026, sides=5), paint)
    builder.add(box((0.26, 0.14, 0.07), saddle), dark)
    builder.add(tube(bar - (0, 0.29, 0), np.add(bar, (0, 0.29, 0)), 0.02, sides=4), dark)
    if rng.random() < 0.3:
        builder.add(box((0.35, 0.3, 0.25), (-half - 0.02, 0, 2 * radius + 0.18)), dark)
    if rider:
        outfit = Outfit(rng, semantic)
        lean = float(rng.uniform(0.08, 0.48))
        hip = np.add(saddle, (0.0, 0.0, 0.06))
        neck = hip + np.array([lean, 0.0, np.sqrt(0.56**2 - lean**2)]) * outfit.height / 1.75
        feet = (np.add(crank, (0.12, 0.13, -0.12)), np.add(crank, (-0.12, -0.13, 0.06)))
        knees = (np.add(hip, (0.36, 0.11, -0.22)), np.add(hip, (0.32, -0.11, -0.06)))
        hands = (np.add(bar, (-0.03, 0.26, 0.02)), np.add(bar, (-0.03, -0.26, 0.02)))
        add_person(builder, outfit, hip, neck, feet, knees, hands)
    return fitted([builder.build()])


def build_motorcycle(rng: np.random.Generator, *, rider: bool) -> Model:
    """A scooter or motorcycle about 2.1 m long."""
    semantic = Semantic.MOTORCYCLIST if rider else Semantic.MOTORCYCLE
    paint = Finish(semantic, _PAINTS[int(rng.integers(len(_PAINTS)))], Texture.PLAIN, 0.4)
    dark = Finish(semantic, (30, 30, 32), Texture.PLAIN, 0.12)
    steel = Finish(semantic, (150, 152, 156), Texture.PLAIN, 0.5)
    builder = MeshBuilder()
    scooter = rng.random() < 0.4
    radius = 0.25 if scooter else 0.31
    half = float(rng.uniform(0.62, 0.70) if scooter else rng.uniform(0.68, 0.78))
    for x in (-half, half):
        builder.add(wheel((x, 0, radius), radius, 0.13, sides=12), dark)
    seat = np.array([-0.25, 0.0, 0.78])
    bar = np.array([half - 0.28, 0.0, 1.06])
    builder.add(tube(bar, (half, 0, radius), 0.05, sides=6), steel)
    builder.add(tube(bar - (0, 0.36, 0), np.add(bar, (0, 0.36, 0)), 0.025, sides=5), dark)
    builder.add(box((0.7, 0.3, 0.13), seat, taper=0.9), dark)
    if scooter:
        builder.add(box((0.75, 0.38, 0.42), (-0.4, 0, 0.5), taper=0.85), paint)
        builder.add(box((0.5, 0.36, 0.1), (0.1, 0, 0.3)), paint)
        builder.add(box((0.12, 0.42, 0.7), (half - 0.3, 0, 0.65), pitch=0.3), paint)
    else:
        builder.add(box((0.55, 0.34, 0.4), (0.0, 0, 0.45)), steel)
        builder.add(ellipsoid((0.18, 0, 0.82), (0.33, 0.18, 0.17)), paint)
        builder.add(box((0.5, 0.22, 0.14), (-half + 0.05, 0, 0.78), pitch=0.15), paint)
        builder.add(tube((0.1, -0.17, 0.3), (-half, -0.2, 0.38), 0.06, sides=6), steel)
    x, _, z = (float(value) for value in bar)
    add_lamp(builder, semantic, Lamp.HEAD, (0.14, 0.18, 0.18), (x + 0.1, 0.0, z - 0.1))
    add_pair(builder, semantic, Lamp.LEFT, (0.06, 0.07, 0.07), (x + 0.08, 0.2, z - 0.1))
    rear = (-0.79, 0.6) if scooter else (-half - 0.2, 0.74)
    add_lamp(builder, semantic, Lamp.REAR, (0.08, 0.18, 0.11), (rear[0], 0.0, rear[1]))
    add_pair(builder, semantic, Lamp.LEFT, (0.06, 0.07, 0.07), (rear[0], 0.16, rear[1]))
    for side in (-1, 1):
        builder.add(
            tube(np.add(bar, (0, side * 0.28, 0)), np.add(bar, (0, side * 0.36, 0.18)), 0.02, sides=4), dark
        )
    if rider:
        outfit = Outfit(rng, semantic)
        outfit.hair = Finish(semantic, _PAINTS[int(rng.integers(len(_PAINTS)))], Texture.PLAIN, 0.5)
        outfit.skin = outfit.hair
        hip = np.add(seat, (0.0, 0.0, 0.08))
        neck = hip + np.array([0.2, 0.0, 0.5]) * outfit.height / 1.75
        feet = (np.array([0.08, 0.2, 0.25]), np.array([0.08, -0.2, 0.25]))
        knees = (np.add(hip, (0.40, 0.2, -0.12)), np.add(hip, (0.40, -0.2, -0.12)))
        hands = (np.add(bar, (-0.03, 0.30, 0.02)), np.add(bar, (-0.03, -0.30, 0.02)))
        add_person(builder, outfit, hip, neck, feet, knees, hands)
    return fitted([builder.build()])
