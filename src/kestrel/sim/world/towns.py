# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Towns: families of style parameters. Some are for training, others are kept for validation and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kestrel.errors import ConfigError, describe
from kestrel.sim.world.mesh import Colour

SCENES: Final = ("urban", "suburban", "highway")


@dataclass(frozen=True)
class Town:
    """How a town is built. Lengths in metres; a pair is a range; *_rate is a chance 0..1 or a density.

    storeys: of urban buildings. gable_rate: pitched roofs. vehicle_mix: weights of sedan, hatch, estate,
    suv, van, pickup, truck, bus.
    """

    lane_width: tuple[float, float]
    sidewalk: tuple[float, float]
    corner_radius: tuple[float, float]
    parking_rate: float
    median_rate: float
    yellow_divider: bool
    storeys: tuple[int, int]
    gable_rate: float
    setback: tuple[float, float]
    tree_spacing: tuple[float, float]
    people: float
    parked_rate: float
    works_rate: float
    facades: tuple[Colour, ...]
    roofs: tuple[Colour, ...]
    paints: tuple[Colour, ...]
    foliage: tuple[Colour, ...]
    grass: Colour
    asphalt: Colour
    paving: Colour
    vehicle_mix: tuple[float, ...]


_GREYS: Final = ((235, 235, 235), (190, 192, 195), (120, 122, 126), (60, 62, 66), (25, 25, 28))

TOWNS: Final[dict[str, Town]] = {
    "alder": Town(
        lane_width=(3.1, 3.4),
        sidewalk=(2.2, 3.0),
        corner_radius=(4.5, 6.0),
        parking_rate=0.6,
        median_rate=0.2,
        yellow_divider=False,
        storeys=(2, 6),
        gable_rate=0.35,
        setback=(0.5, 3.0),
        tree_spacing=(9, 16),
        people=1.0,
        parked_rate=0.6,
        works_rate=0.5,
        facades=((176, 120, 96), (203, 186, 160), (150, 92, 74), (214, 207, 196), (128, 116, 108)),
        roofs=((120, 72, 58), (92, 90, 92), (140, 84, 66)),
        paints=(*_GREYS, (150, 30, 34), (32, 60, 118), (70, 92, 74)),
        foliage=((62, 98, 44), (84, 118, 52), (50, 84, 48)),
        grass=(92, 120, 58),
        asphalt=(74, 74, 77),
        paving=(150, 146, 140),
        vehicle_mix=(3.0, 3.0, 1.5, 2.5, 1.2, 0.4, 1.0, 0.6),
    ),
    "birch": Town(
        lane_width=(3.3, 3.7),
        sidewalk=(1.8, 2.6),
        corner_radius=(5.0, 7.5),
        parking_rate=0.35,
        median_rate=0.5,
        yellow_divider=True,
        storeys=(3, 12),
        gable_rate=0.1,
        setback=(2.0, 7.0),
        tree_spacing=(12, 24),
        people=0.8,
        parked_rate=0.45,
        works_rate=0.6,
        facades=((186, 190, 196), (142, 150, 160), (208, 204, 198), (110, 118, 126), (168, 148, 132)),
        roofs=((108, 108, 112), (72, 74, 78), (150, 148, 144)),
        paints=(*_GREYS, (168, 120, 48), (24, 84, 110), (92, 30, 44)),
        foliage=((92, 128, 60), (112, 138, 64), (74, 106, 62)),
        grass=(108, 128, 70),
        asphalt=(88, 87, 86),
        paving=(172, 168, 162),
        vehicle_mix=(2.0, 1.5, 1.0, 4.0, 1.0, 2.0, 1.6, 0.8),
    ),
    "cedar": Town(
        lane_width=(2.9, 3.2),
        sidewalk=(1.5, 2.2),
        corner_radius=(3.2, 5.0),
        parking_rate=0.75,
        median_rate=0.1,
        yellow_divider=False,
        storeys=(1, 4),
        gable_rate=0.65,
        setback=(1.0, 5.0),
        tree_spacing=(7, 13),
        people=1.3,
        parked_rate=0.7,
        works_rate=0.4,
        facades=((222, 208, 178), (198, 150, 110), (236, 228, 214), (160, 104, 84), (188, 176, 120)),
        roofs=((156, 82, 56), (110, 64, 50), (84, 78, 74)),
        paints=(*_GREYS, (196, 52, 40), (60, 110, 160), (196, 176, 60), (40, 90, 60)),
        foliage=((46, 82, 50), (60, 94, 58), (38, 70, 46)),
        grass=(84, 108, 60),
        asphalt=(66, 66, 70),
        paving=(138, 132, 122),
        vehicle_mix=(2.0, 4.0, 2.0, 1.5, 1.8, 0.3, 0.8, 0.5),
    ),
    "dogwood": Town(
        lane_width=(3.0, 3.5),
        sidewalk=(2.0, 3.2),
        corner_radius=(4.0, 6.5),
        parking_rate=0.5,
        median_rate=0.35,
        yellow_divider=True,
        storeys=(2, 8),
        gable_rate=0.4,
        setback=(1.5, 4.5),
        tree_spacing=(10, 18),
        people=0.9,
        parked_rate=0.55,
        works_rate=0.5,
        facades=((166, 132, 112), (210, 196, 174), (134, 140, 146), (190, 170, 150), (120, 86, 76)),
        roofs=((128, 78, 62), (86, 86, 90), (116, 110, 104)),
        paints=(*_GREYS, (120, 24, 52), (44, 70, 96), (140, 136, 96)),
        foliage=((72, 108, 52), (58, 90, 44), (96, 120, 62)),
        grass=(98, 122, 64),
        asphalt=(80, 79, 80),
        paving=(160, 154, 146),
        vehicle_mix=(2.5, 2.5, 1.5, 3.0, 1.3, 0.8, 1.2, 0.7),
    ),
    "elm": Town(
        lane_width=(3.0, 3.6),
        sidewalk=(1.8, 2.8),
        corner_radius=(3.8, 6.2),
        parking_rate=0.55,
        median_rate=0.3,
        yellow_divider=False,
        storeys=(2, 9),
        gable_rate=0.45,
        setback=(0.8, 5.0),
        tree_spacing=(8, 17),
        people=1.1,
        parked_rate=0.6,
        works_rate=0.5,
        facades=((150, 110, 92), (196, 190, 180), (214, 180, 140), (116, 124, 132), (230, 224, 216)),
        roofs=((104, 68, 58), (76, 78, 84), (150, 92, 70)),
        paints=(*_GREYS, (134, 42, 36), (40, 80, 130), (84, 100, 60), (200, 196, 170)),
        foliage=((54, 92, 46), (80, 110, 58), (100, 124, 56)),
        grass=(90, 116, 62),
        asphalt=(70, 71, 74),
        paving=(146, 142, 136),
        vehicle_mix=(2.5, 2.8, 1.8, 2.4, 1.6, 0.6, 1.2, 0.7),
    ),
    "fir": Town(
        lane_width=(3.2, 3.6),
        sidewalk=(1.6, 2.6),
        corner_radius=(4.5, 7.0),
        parking_rate=0.4,
        median_rate=0.4,
        yellow_divider=True,
        storeys=(1, 10),
        gable_rate=0.3,
        setback=(2.0, 6.0),
        tree_spacing=(9, 20),
        people=0.9,
        parked_rate=0.5,
        works_rate=0.55,
        facades=((170, 176, 180), (204, 192, 170), (140, 108, 92), (100, 106, 112), (184, 164, 144)),
        roofs=((98, 98, 102), (70, 66, 66), (132, 96, 78)),
        paints=(*_GREYS, (156, 100, 40), (30, 56, 90), (110, 36, 40)),
        foliage=((40, 74, 46), (66, 98, 56), (84, 112, 58)),
        grass=(100, 118, 66),
        asphalt=(84, 83, 84),
        paving=(164, 160, 152),
        vehicle_mix=(2.2, 2.0, 1.4, 3.4, 1.2, 1.4, 1.5, 0.8),
    ),
}
"""alder, birch, cedar: training. dogwood: validation. elm, fir: test."""


def town_named(name: str) -> Town:
    """Look a town up.

    Raises:
        ConfigError: there is no town of that name.
    """
    if name not in TOWNS:
        raise ConfigError(describe("town", expected=sorted(TOWNS), found=name))
    return TOWNS[name]
