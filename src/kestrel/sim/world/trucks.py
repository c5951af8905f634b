# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Large vehicles: trucks, buses, trailers and construction machines."""

from __future__ import annotations

import numpy as np

from kestrel.sim.lamps import Lamp
from kestrel.sim.scene import Texture
from kestrel.sim.semantics import Semantic
from kestrel.sim.world.cars import Model
from kestrel.sim.world.mesh import Colour, Finish, MeshBuilder, box, fitted, loft, tube, wheel
from kestrel.sim.world.vehicle_lamps import add_pair
from kestrel.types import Float64Array


def _finishes(semantic: Semantic, paint: Colour) -> tuple[Finish, Finish, Finish, Finish]:
    """Paint, glass, tyre and dark frame of one vehicle."""
    return (
        Finish(semantic, paint, Texture.PLAIN, 0.2 + sum(paint) / 1800),
        Finish(semantic, (30, 36, 42), Texture.GLASS, 0.05),
        Finish(semantic, (24, 24, 26), Texture.PLAIN, 0.06),
        Finish(semantic, (54, 56, 58), Texture.PLAIN, 0.2),
    )


def _axles(
    builder: MeshBuilder, tyre: Finish, places: tuple[float, ...], width: float, radius: float
) -> None:
    for x in places:
        for side in (-1, 1):
            builder.add(wheel((x, side * (width / 2 - 0.17), radius), radius, 0.32, sides=11), tyre)


def _cab(rng: np.random.Generator, front: float, width: float, height: float, length: float) -> Float64Array:
    """Rings of a truck cab from its nose at x = ``front`` backwards, the screen leaning back."""
    lean, low = float(rng.uniform(0.1, 0.45)), 0.45
    outline = [
        (0.0, 0.92, 0.55),
        (0.06, 1.0, 0.62),
        (lean + 0.1, 1.0, 0.97),
        (lean + 0.4, 1.0, 1.0),
        (length, 1.0, 0.98),
    ]
    rings = []
    for back, wide, top in outline:
        y = wide * width / 2
        z = top * height
        ring = [
            (-y, low),
            (-y, 0.6 * z),
            (-y * 0.97, z - 0.12),
            (-y * 0.85, z),
            (y * 0.85, z),
            (y * 0.97, z - 0.12),
            (y, 0.6 * z),
            (y, low),
        ]
        rings.append([(front - back, across, up) for across, up in ring])
    return np.array(rings)


def _add_cab(
    builder: MeshBuilder, rng: np.random.Generator, paint: Finish, glass: Finish, front: float, width: float
) -> float:
    """Cab with screens, lights and mirrors; returns its length."""
    height, length = float(rng.uniform(2.3, 3.0)), float(rng.uniform(1.7, 2.4))
    builder.add(loft(_cab(rng, front, width, height, length)), paint)
    lean = box((0.06, width * 0.86, height * 0.3), (front - 0.12, 0, height * 0.74), pitch=0.12)
    builder.add(lean, glass)
    for side in (-1, 1):
        builder.add(box((0.9, 0.05, 0.65), (front - 0.95, side * (width / 2), height * 0.72)), glass)
        builder.add(box((0.12, 0.2, 0.5), (front - 0.25, side * (width / 2 + 0.06), height * 0.72)), glass)
    semantic = paint.semantic
    add_pair(builder, semantic, Lamp.HEAD, (0.06, 0.4, 0.18), (front - 0.02, width * 0.35, 0.75))
    add_pair(builder, semantic, Lamp.LEFT, (0.06, 0.4, 0.09), (front - 0.02, width * 0.35, 0.9))
    return length


def _add_load(
    builder: MeshBuilder,
    rng: np.random.Generator,
    semantic: Semantic,
    front: float,
    rear: float,
    width: float,
) -> None:
    """Box, tarpaulin, tank, open bed or container between two places along the vehicle."""
    length, middle = front - rear, (front + rear) / 2
    kind = int(rng.choice(5, p=(0.4, 0.25, 0.1, 0.15, 0.1)))
    tints: tuple[Colour, ...] = (
        (228, 228, 224),
        (190, 196, 200),
        (40, 84, 140),
        (170, 48, 40),
        (200, 170, 90),
        (70, 110, 80),
    )
    colour = tints[int(rng.integers(len(tints)))]
    height = float(rng.uniform(2.0, 2.7))
    side = Finish(
        semantic, colour, Texture.STRIPES if kind == 1 else Texture.PLAIN, 0.25 + sum(colour) / 1800
    )
    if kind in (0, 1):
        builder.add(box((length, width, height), (middle, 0, 1.1 + height / 2)), side)
    elif kind == 2:
        builder.add(tube((front, 0, 2.15), (rear, 0, 2.15), 1.05, sides=12), side)
    elif kind == 3:
        builder.add(box((length, width, 0.25), (middle, 0, 1.15)), side)
        for y in (-width / 2 + 0.05, width / 2 - 0.05):
            builder.add(box((length, 0.08, 0.9), (middle, y, 1.6)), side)
        builder.add(box((0.08, width, 1.3), (front - 0.05, 0, 1.8)), side)
        heap = Finish(semantic, (128, 108, 84), Texture.CONCRETE, 0.35)
        builder.add(box((length * 0.9, width * 0.85, 0.7), (middle, 0, 1.6), taper=0.6), heap)
    else:
        builder.add(box((length, width, 2.45), (middle, 0, 1.2 + 1.22)), side)
        rib = Finish(semantic, colour, Texture.PLAIN, 0.3)
        for x in np.linspace(rear + 0.3, front - 0.3, 9):
            builder.add(box((0.08, width + 0.08, 2.4), (x, 0, 1.2 + 1.22)), rib)
    _add_rear_lamps(builder, semantic, rear + 0.02, width, 0.95)


def _add_rear_lamps(builder: MeshBuilder, semantic: Semantic, x: float, width: float, z: float) -> None:
    """Red lamps with an indicator at their outer side."""
    add_pair(builder, semantic, Lamp.REAR, (0.05, 0.36, 0.16), (x, width * 0.37, z))
    add_pair(builder, semantic, Lamp.LEFT, (0.05, 0.12, 0.16), (x, width * 0.37 + 0.24, z))


def build_truck(rng: np.random.Generator, paint: Colour) -> Model:
    """Rigid truck: cab, frame and load, two or three axles."""
    body, glass, tyre, frame = _finishes(Semantic.TRUCK, paint)
    length, width = float(np.clip(rng.normal(7.2, 1.2), 5.2, 10.5)), float(rng.uniform(2.2, 2.55))
    builder = MeshBuilder()
    cab = _add_cab(builder, rng, body, glass, length / 2, width * 0.97)
    _add_load(builder, rng, Semantic.TRUCK, length / 2 - cab - 0.2, -length / 2, width)
    builder.add(box((length - 0.5, 0.9, 0.3), (-0.1, 0, 0.85)), frame)
    builder.add(box((0.08, width * 0.9, 0.2), (-length / 2 + 0.1, 0, 0.5)), frame)
    axles = (length / 2 - 1.2, -length / 2 + 1.6) + ((-length / 2 + 2.7,) if length > 7.8 else ())
    _axles(builder, tyre, axles, width, 0.48)
    return fitted([builder.build()])


def build_tractor(rng: np.random.Generator, paint: Colour) -> Model:
    """Road tractor without its trailer."""
    body, glass, tyre, frame = _finishes(Semantic.TRUCK, paint)
    length, width = float(rng.uniform(5.8, 6.6)), 2.5
    builder = MeshBuilder()
    cab = _add_cab(builder, rng, body, glass, length / 2, width * 0.98)
    builder.add(box((1.2, width * 0.9, 3.0), (length / 2 - cab - 0.4, 0, 1.9)), body)
    builder.add(box((length - 0.6, 0.9, 0.3), (-0.1, 0, 0.9)), frame)
    builder.add(box((1.1, 0.9, 0.15), (-length / 2 + 1.2, 0, 1.12)), frame)
    _add_rear_lamps(builder, Semantic.TRUCK, -length / 2 + 0.2, width, 0.9)
    _axles(builder, tyre, (length / 2 - 1.3, -length / 2 + 0.9, -length / 2 + 2.1), width, 0.5)
    return fitted([builder.build()])


def build_trailer(rng: np.random.Generator) -> Model:
    """Semi-trailer on its own wheels, legs in front."""
    _, _, tyre, frame = _finishes(Semantic.TRAILER, (90, 90, 90))
    length, width = float(np.clip(rng.normal(11.5, 1.6), 7.5, 14.0)), float(rng.uniform(2.45, 2.6))
    builder = MeshBuilder()
    _add_load(builder, rng, Semantic.TRAILER, length / 2, -length / 2, width)
    builder.add(box((length, 1.0, 0.25), (0, 0, 1.0)), frame)
    for x in (-length / 2 + 0.1,):
        builder.add(box((0.08, width * 0.9, 0.2), (x, 0, 0.55)), frame)
    for y in (-0.8, 0.8):
        builder.add(box((0.15, 0.15, 0.9), (length / 2 - 2.6, y, 0.5)), frame)
    axles = tuple(-length / 2 + 1.0 + 1.3 * i for i in range(2 + int(length > 10.0)))
    _axles(builder, tyre, axles, width, 0.48)
    return fitted([builder.build()])


def build_bus(rng: np.random.Generator, paint: Colour) -> Model:
    """City bus or coach: long windows, doors on the right, two or three axles."""
    body, glass, tyre, frame = _finishes(Semantic.BUS, paint)
    length = float(np.clip(rng.normal(11.2, 1.2), 7.5, 13.5))
    width, height = float(rng.uniform(2.5, 2.6)), float(rng.uniform(2.95, 3.6))
    builder = MeshBuilder()
    outline = [
        (0.0, 0.94, 0.9),
        (0.12, 1.0, 0.97),
        (0.5, 1.0, 1.0),
        (length - 0.4, 1.0, 1.0),
        (length - 0.05, 0.99, 0.97),
        (length, 0.95, 0.92),
    ]
    rings = []
    for back, wide, top in outline:
        y, z = wide * width / 2, top * height
        ring = [
            (-y, 0.32),
            (-y, z - 0.3),
            (-y * 0.94, z - 0.07),
            (-y * 0.8, z),
            (y * 0.8, z),
            (y * 0.94, z - 0.07),
            (y, z - 0.3),
            (y, 0.32),
        ]
        rings.append([(length / 2 - back, across, up) for across, up in ring])
    builder.add(loft(np.array(rings)), body)
    low, tall = 1.25, height * 0.34
    for side in (-1, 1):
        for x in np.arange(-length / 2 + 1.0, length / 2 - 1.0, 1.5):
            builder.add(box((1.38, 0.04, tall), (x + 0.1, side * width / 2, low + tall / 2)), glass)
    for x in (length / 2 - 1.3, -0.4):
        builder.add(box((1.1, 0.05, 2.1), (x, -width / 2 - 0.005, 1.45)), glass)
    builder.add(box((0.05, width * 0.88, height * 0.5), (length / 2 - 0.05, 0, height * 0.6)), glass)
    builder.add(box((0.05, width * 0.7, height * 0.28), (-length / 2 + 0.02, 0, height * 0.7)), glass)
    board = Finish(Semantic.BUS, (240, 170, 40), Texture.EMISSIVE, 0.4)
    builder.add(box((0.05, width * 0.6, 0.26), (length / 2 - 0.05, 0, height * 0.93)), board)
    for side in (-1, 1):
        builder.add(box((0.25, 0.1, 0.4), (length / 2 - 0.05, side * (width / 2 + 0.12), 2.1)), frame)
    front, rear, y = length / 2, -length / 2 + 0.01, width * 0.4
    add_pair(builder, Semantic.BUS, Lamp.HEAD, (0.05, 0.35, 0.2), (front, width * 0.34, 0.7))
    add_pair(builder, Semantic.BUS, Lamp.LEFT, (0.05, 0.35, 0.1), (front, width * 0.34, 0.87))
    add_pair(builder, Semantic.BUS, Lamp.REAR, (0.05, 0.24, 0.5), (rear, y, 1.0))
    add_pair(builder, Semantic.BUS, Lamp.LEFT, (0.05, 0.24, 0.2), (rear, y, 1.37))
    add_pair(builder, Semantic.BUS, Lamp.STOP, (0.05, 0.3, 0.1), (rear, 0.5, 0.87 * height))
    _axles(builder, tyre, (length / 2 - 2.4, -length / 2 + 2.8), width + 0.02, 0.48)
    return fitted([builder.build()])


def build_machine(rng: np.random.Generator) -> Model:
    """Construction vehicle: excavator, wheel loader or roller, working parts in a random pose."""
    hues: tuple[Colour, ...] = ((226, 166, 32), (220, 120, 30), (200, 190, 60))
    paint, glass, tyre, frame = _finishes(Semantic.CONSTRUCTION_VEHICLE, hues[int(rng.integers(3))])
    builder = MeshBuilder()
    kind = int(rng.choice(3, p=(0.5, 0.35, 0.15)))
    if kind == 0:
        _add_excavator(builder, rng, paint, glass, frame)
    elif kind == 1:
        _add_loader(builder, rng, paint, glass, tyre, frame)
    else:
        for x in (-1.5, 1.5):
            builder.add(wheel((x, 0, 0.65), 0.65, 1.9, sides=14), frame)
        builder.add(box((2.9, 1.5, 0.9), (0, 0, 1.2)), paint)
        builder.add(box((1.2, 1.4, 1.2), (-0.3, 0, 2.2)), glass)
        builder.add(box((1.6, 1.7, 0.12), (-0.3, 0, 2.9)), paint)
        _add_machine_lamps(builder, -1.45, 0.6, 1.45)
    return fitted([builder.build()])


def _add_machine_lamps(builder: MeshBuilder, x: float, y: float, z: float) -> None:
    add_pair(builder, Semantic.CONSTRUCTION_VEHICLE, Lamp.REAR, (0.02, 0.2, 0.14), (x, y, z))
    add_pair(builder, Semantic.CONSTRUCTION_VEHICLE, Lamp.LEFT, (0.02, 0.2, 0.07), (x, y, z - 0.12))


def _add_excavator(
    builder: MeshBuilder, rng: np.random.Generator, paint: Finish, glass: Finish, frame: Finish
) -> None:
    for y in (-1.05, 1.05):
        builder.add(box((3.4, 0.55, 0.5), (0, y, 0.5)), frame)
        for x in (-1.7, 1.7):
            builder.add(wheel((x, y, 0.45), 0.45, 0.55, sides=10), frame)
    turn = float(rng.uniform(-0.5, 0.5))
    upper = MeshBuilder()
    upper.add(box((3.0, 2.5, 0.9), (-0.5, 0, 1.5)), paint)
    upper.add(box((1.0, 2.3, 0.6), (-1.5, 0, 2.1)), paint)
    upper.add(box((1.5, 0.95, 1.4), (0.5, 0.75, 2.5), taper=0.9), glass)
    upper.add(box((1.45, 0.95, 0.1), (0.5, 0.75, 3.2), taper=0.95), paint)
    elbow = np.array([rng.uniform(2.4, 3.2), 0.0, rng.uniform(2.9, 3.6)])
    wrist = np.array([elbow[0] + rng.uniform(0.3, 1.2), 0.0, rng.uniform(0.8, 1.6)])
    upper.add(tube((0.6, 0, 1.7), elbow, 0.26, 0.2, sides=6), paint)
    upper.add(tube(elbow, wrist, 0.2, 0.14, sides=6), paint)
    upper.add(tube((1.2, 0, 1.6), (0.6, 0, 1.7) + (elbow - (0.6, 0, 1.7)) * 0.6, 0.07, sides=6), frame)
    _add_machine_lamps(upper, -2.0, 1.0, 1.75)
    upper.add(box((0.7, 1.1, 0.75), wrist - (0.25, 0, 0.35), taper=0.8), frame)
    builder.add_mesh(upper.build(), yaw=turn)


def _add_loader(
    builder: MeshBuilder, rng: np.random.Generator, paint: Finish, glass: Finish, tyre: Finish, frame: Finish
) -> None:
    _axles(builder, tyre, (1.5, -1.5), 2.5, 0.75)
    builder.add(box((2.4, 1.5, 1.0), (-1.6, 0, 1.5)), paint)
    builder.add(box((2.0, 1.1, 0.7), (0.9, 0, 1.2)), frame)
    builder.add(box((1.3, 1.4, 1.3), (-0.1, 0, 2.4), taper=0.92), glass)
    builder.add(box((1.4, 1.5, 0.1), (-0.1, 0, 3.08)), paint)
    _add_machine_lamps(builder, -2.8, 0.6, 1.75)
    lift = float(rng.uniform(0.5, 1.8))
    for y in (-0.6, 0.6):
        builder.add(tube((0.6, y, 1.7), (2.9, y, lift), 0.14, sides=6), paint)
    builder.add(box((1.0, 2.6, 0.9), (3.3, 0, lift), taper=0.85), frame)
