# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Worlds that several tests look at; building one takes about a second."""

from __future__ import annotations

import pytest

from kestrel.sim.world import TownWorld, build_world

DRIVES = (
    ("urban", "alder", 3),
    ("suburban", "cedar", 1),
    ("highway", "birch", 1),
    ("urban", "elm", 10),
    ("suburban", "fir", 2),
    ("urban", "dogwood", 11),
    ("suburban", "alder", 20),
    ("urban", "cedar", 23),
    ("suburban", "birch", 31),
    ("urban", "fir", 49),
)
"""Scene, town and seed of the drives under test."""

SECONDS = 12.0


@pytest.fixture(scope="session")
def worlds() -> list[TownWorld]:
    return [build_world(scene, town, seed, SECONDS) for scene, town, seed in DRIVES]


@pytest.fixture(scope="session")
def street(worlds: list[TownWorld]) -> TownWorld:
    """An urban drive."""
    return worlds[0]
