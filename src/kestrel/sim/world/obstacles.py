# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Traffic cones and barriers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from kestrel.sim.scene import Texture
from kestrel.sim.semantics import Semantic
from kestrel.sim.world.cars import Model
from kestrel.sim.world.mesh import Colour, Finish, MeshBuilder, box, fitted, loft, tube


def build_cone(rng: np.random.Generator) -> Model:
    """A cone with white bands, or a slim delineator post."""
    orange = Finish(Semantic.TRAFFIC_CONE, (232, 92, 30), Texture.PLAIN, 0.5)
    white = Finish(Semantic.TRAFFIC_CONE, (236, 234, 228), Texture.PLAIN, 0.95)
    builder = MeshBuilder()
    height = float(rng.uniform(0.6, 1.15))
    foot, top = (0.10, 0.08) if rng.random() < 0.25 else (0.17 + 0.05 * height, 0.035)
    builder.add(box((2.2 * foot + 0.05, 2.2 * foot + 0.05, 0.05), (0, 0, 0.025)), orange)
    levels = (0.03, 0.35, 0.55, 0.65, 0.85, 1.0)
    for index, (low, high) in enumerate(pairwise(levels)):
        radii = [foot + (top - foot) * level for level in (low, high)]
        band = white if index in (1, 3) else orange
        builder.add(tube((0, 0, low * height), (0, 0, high * height), radii[0], radii[1], sides=9), band)
    return fitted([builder.build()])


def build_barrier(rng: np.random.Generator, kind: int) -> Model:
    """About two metres of barrier across x.

    kind: 0 concrete block, 1 plastic block, 2 crowd fence, 3 board.
    """
    width = float(rng.uniform(1.8, 2.6))
    builder = MeshBuilder()
    if kind in (0, 1):
        colour: Colour = (
            (168, 164, 156) if kind == 0 else ((214, 70, 40) if rng.random() < 0.5 else (232, 228, 220))
        )
        finish = Finish(Semantic.BARRIER, colour, Texture.CONCRETE if kind == 0 else Texture.PLAIN, 0.4)
        profile = np.array(
            [
                (-0.3, 0.0),
                (-0.3, 0.12),
                (-0.14, 0.38),
                (-0.09, 0.9),
                (0.09, 0.9),
                (0.14, 0.38),
                (0.3, 0.12),
                (0.3, 0.0),
            ]
        )
        profile = profile * (rng.uniform(0.85, 1.1), rng.uniform(0.9, 1.15))
        ends = [
            np.column_stack([profile[:, 0], np.full(8, y), profile[:, 1]]) for y in (-width / 2, width / 2)
        ]
        builder.add(loft(np.stack(ends)), finish)
        return fitted([builder.build()])
    if kind == 2:
        steel = Finish(Semantic.BARRIER, (150, 154, 158), Texture.PLAIN, 0.5)
        for z in (0.2, 1.05):
            builder.add(tube((0, -width / 2, z), (0, width / 2, z), 0.025, sides=5), steel)
        for y in np.linspace(-width / 2, width / 2, 14).tolist():
            builder.add(tube((0, y, 0.2), (0, y, 1.05), 0.014, sides=4), steel)
        for y in (-width / 2 + 0.3, width / 2 - 0.3):
            builder.add(box((0.55, 0.06, 0.04), (0, y, 0.02)), steel)
            builder.add(tube((0, y, 0.02), (0, y, 0.2), 0.02, sides=4), steel)
        return fitted([builder.build()])
    for z in (0.55, 0.92):
        for index in range(6):
            y = -width / 2 + (index + 0.5) * width / 6
            colour = (206, 44, 36) if index % 2 else (236, 234, 228)
            builder.add(
                box((0.04, width / 6, 0.22), (0, y, z)), Finish(Semantic.BARRIER, colour, Texture.PLAIN, 0.85)
            )
    frame = Finish(Semantic.BARRIER, (90, 90, 92), Texture.PLAIN, 0.3)
    for y in (-width / 2 + 0.2, width / 2 - 0.2):
        builder.add(box((0.05, 0.05, 1.05), (0.03, y, 0.52)), frame)
        builder.add(box((0.6, 0.08, 0.05), (0, y, 0.025)), frame)
    return fitted([builder.build()])
