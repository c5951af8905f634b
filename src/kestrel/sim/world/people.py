# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Pedestrians, and the people who ride cycles."""

from __future__ import annotations

from typing import Final

import numpy as np

from kestrel.sim.scene import Mesh, Texture
from kestrel.sim.semantics import Semantic
from kestrel.sim.world.cars import Model
from kestrel.sim.world.mesh import Colour, Finish, MeshBuilder, box, ellipsoid, fitted, loft, tube
from kestrel.types import Float64Array

PHASES: Final = 8
"""Poses of one walking cycle (two steps); one more pose after them stands still."""

_SKINS: tuple[Colour, ...] = ((232, 190, 160), (198, 150, 116), (140, 96, 68), (92, 62, 46))
_CLOTHES: tuple[Colour, ...] = (
    (34, 38, 52), (120, 34, 38), (214, 210, 202), (60, 86, 120), (92, 100, 76), (196, 150, 60), (28, 28, 30),
    (150, 120, 140), (70, 52, 40), (210, 90, 40),
)  # fmt: skip


class Outfit:
    """Build and clothes of one person. height: metres."""

    def __init__(self, rng: np.random.Generator, semantic: Semantic = Semantic.PEDESTRIAN) -> None:
        child = semantic is Semantic.PEDESTRIAN and rng.random() < 0.08
        self.height = float(rng.uniform(1.1, 1.45) if child else np.clip(rng.normal(1.74, 0.09), 1.5, 2.0))
        self.girth = float(np.clip(rng.normal(1.0, 0.12), 0.8, 1.35))
        self.skirt = semantic is Semantic.PEDESTRIAN and rng.random() < 0.18
        self.bag = int(rng.choice(3, p=(0.6, 0.2, 0.2)))

        def finish(colours: tuple[Colour, ...], reflectivity: float) -> Finish:
            return Finish(semantic, colours[int(rng.integers(len(colours)))], Texture.PLAIN, reflectivity)

        self.top = finish(_CLOTHES, float(rng.uniform(0.15, 0.6)))
        self.trousers = finish(_CLOTHES, float(rng.uniform(0.1, 0.5)))
        self.skin = finish(_SKINS, 0.45)
        self.hair = finish(((40, 30, 24), (90, 64, 40), (20, 18, 18), (170, 150, 120)), 0.2)
        self.shoe = finish(((30, 28, 28), (200, 200, 200), (90, 60, 40)), 0.2)


def _torso(outfit: Outfit, hip: Float64Array, neck: Float64Array) -> Float64Array:
    """Rings of a trunk from the hip to the neck."""
    unit = outfit.height / 1.75 * outfit.girth
    angle = np.arange(9) * (2 * np.pi / 9)
    rings = []
    for share, deep, wide in (
        (0.0, 0.11, 0.16),
        (0.35, 0.11, 0.15),
        (0.75, 0.13, 0.20),
        (0.95, 0.09, 0.17),
        (1.0, 0.05, 0.06),
    ):
        centre = hip + (neck - hip) * share
        rings.append(centre + np.column_stack([deep * np.cos(angle), wide * np.sin(angle), 0 * angle]) * unit)
    return np.stack(rings)


def add_person(
    builder: MeshBuilder,
    outfit: Outfit,
    hip: Float64Array,
    neck: Float64Array,
    feet: tuple[Float64Array, Float64Array],
    knees: tuple[Float64Array, Float64Array],
    hands: tuple[Float64Array, Float64Array],
) -> None:
    """A body in a pose; all joints (3,) in metres, left one first."""
    unit = outfit.height / 1.75
    builder.add(loft(_torso(outfit, hip, neck)), outfit.top)
    head = neck + np.array([0.02, 0.0, 0.17]) * unit
    builder.add(ellipsoid(head, np.array([0.10, 0.08, 0.13]) * unit, rows=5, sides=8), outfit.skin)
    builder.add(
        ellipsoid(
            np.add(head, (-0.02, 0, 0.05 * unit)), np.array([0.10, 0.09, 0.10]) * unit, rows=4, sides=7
        ),
        outfit.hair,
    )
    for side, foot, knee, hand in zip((1, -1), feet, knees, hands, strict=True):
        joint = hip + np.array([0.0, side * 0.09, 0.0]) * unit
        girth = unit * outfit.girth
        builder.add(tube(joint, knee, 0.085 * girth, 0.06 * girth), outfit.trousers)
        builder.add(tube(knee, np.add(foot, (0, 0, 0.06)), 0.06 * girth, 0.045 * girth), outfit.trousers)
        builder.add(
            box(np.array([0.26, 0.10, 0.09]) * unit, np.add(foot, (0.05 * unit, 0, 0.045 * unit))),
            outfit.shoe,
        )
        shoulder = neck + np.array([0.0, side * 0.19, -0.08]) * unit * (1.0, outfit.girth, 1.0)
        elbow = (shoulder + hand) / 2 + np.array([-0.05, side * 0.04, -0.02]) * unit
        builder.add(tube(shoulder, elbow, 0.055 * girth, 0.045 * girth, sides=5), outfit.top)
        builder.add(tube(elbow, hand, 0.045 * girth, 0.035 * girth, sides=5), outfit.skin)


def _walking(outfit: Outfit, swing: float, lift: tuple[float, float]) -> Mesh:
    """One pose; ``swing`` -1..1 puts the left leg forward, ``lift`` 0..1 raises a foot."""
    unit = outfit.height / 1.75
    hip, neck = np.array([0.0, 0.0, 0.90]) * unit, np.array([0.03, 0.0, 1.46]) * unit
    stride = 0.30 * swing
    feet, knees, hands = [], [], []
    for side, sign, up in ((1, 1.0, lift[0]), (-1, -1.0, lift[1])):
        foot = np.array([sign * stride, side * 0.09, 0.10 * up]) * unit
        feet.append(foot)
        knees.append((foot + hip) / 2 + np.array([0.05 + 0.12 * up, side * 0.05, 0.03 + 0.04 * up]) * unit)
        hands.append(np.array([0.05 - sign * 0.9 * stride, side * 0.27, 0.82 + 0.05 * abs(swing)]) * unit)
    builder = MeshBuilder()
    add_person(builder, outfit, hip, neck, (feet[0], feet[1]), (knees[0], knees[1]), (hands[0], hands[1]))
    if outfit.skirt:
        builder.add(
            tube((0, 0, 0.45 * unit), np.add(hip, (0, 0, 0.05)), 0.28 * unit, 0.16 * unit, sides=8),
            outfit.trousers,
        )
    if outfit.bag == 1:
        builder.add(box(np.array([0.18, 0.30, 0.42]) * unit, np.array([-0.19, 0, 1.2]) * unit), outfit.shoe)
    elif outfit.bag == 2:
        builder.add(
            box(np.array([0.32, 0.12, 0.30]) * unit, np.array([0.0, -0.34, 0.70]) * unit), outfit.shoe
        )
    return builder.build()


def build_pedestrian(rng: np.random.Generator) -> Model:
    """A person with PHASES walking poses and one that stands."""
    outfit = Outfit(rng)
    poses = []
    for phase in range(PHASES):
        angle = 2 * np.pi * phase / PHASES
        lift = (max(np.cos(angle), 0.0), max(-np.cos(angle), 0.0))
        poses.append(_walking(outfit, float(np.sin(angle)), lift))
    poses.append(_walking(outfit, 0.1, (0.0, 0.0)))
    return fitted(poses)
