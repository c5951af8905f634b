# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The procedural world of the simulator: towns, their ground, their scenery and their traffic."""

from kestrel.sim.world.build import TownWorld, build_world

__all__ = ["TownWorld", "build_world"]
