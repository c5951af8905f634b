# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The lamps that vehicles carry: lenses in the colours of their light, with the switch they hang on."""

from __future__ import annotations

from kestrel.sim.lamps import Lamp
from kestrel.sim.scene import Texture
from kestrel.sim.semantics import Semantic
from kestrel.sim.world.mesh import Finish, MeshBuilder, box

Vector = tuple[float, float, float]


def add_lamp(builder: MeshBuilder, semantic: Semantic, lamp: Lamp, size: Vector, centre: Vector) -> None:
    """Add a lens of ``size`` about ``centre``."""
    builder.add(box(size, centre), _lens(semantic, lamp))


def add_pair(builder: MeshBuilder, semantic: Semantic, lamp: Lamp, size: Vector, centre: Vector) -> None:
    """Add the same lens on both sides; ``centre`` is that of the left one.

    A pair of indicators (Lamp.LEFT) has the right one on its own switch.
    """
    x, y, z = centre
    add_lamp(builder, semantic, lamp, size, centre)
    add_lamp(builder, semantic, Lamp.RIGHT if lamp is Lamp.LEFT else lamp, size, (x, -y, z))


def _lens(semantic: Semantic, lamp: Lamp) -> Finish:
    if lamp is Lamp.HEAD:
        return Finish(semantic, (236, 238, 232), Texture.PLAIN, 0.7, lamp)
    if lamp in (Lamp.LEFT, Lamp.RIGHT):
        return Finish(semantic, (176, 104, 40), Texture.PLAIN, 0.6, lamp)
    return Finish(semantic, (150, 18, 18), Texture.PLAIN, 0.85, lamp)
