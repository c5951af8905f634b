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
    suv, van, pickup, truck, bus. frontage: weights of terrace, detached house, block, walled yard, green and
    hall along streets; empty where plain buildings stand in even rows.
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
    frontage: tuple[float, ...] = ()


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
    "hazel": Town(
        lane_width=(2.5, 3.1),
        sidewalk=(0.9, 2.2),
        corner_radius=(3.0, 4.5),
        parking_rate=0.6,
        median_rate=0.05,
        yellow_divider=False,
        storeys=(1, 4),
        gable_rate=0.7,
        setback=(0.2, 2.0),
        tree_spacing=(14, 30),
        people=1.1,
        parked_rate=0.6,
        works_rate=0.4,
        facades=((214, 200, 176), (186, 150, 120), (232, 224, 210), (150, 130, 112), (196, 178, 150)),
        roofs=((150, 80, 58), (106, 66, 54), (88, 84, 82)),
        paints=(*_GREYS, (140, 34, 34), (40, 70, 120), (176, 160, 90)),
        foliage=((56, 92, 46), (76, 108, 54), (44, 76, 44)),
        grass=(94, 118, 60),
        asphalt=(76, 76, 78),
        paving=(148, 142, 134),
        vehicle_mix=(2.0, 3.5, 2.5, 1.5, 2.5, 0.3, 1.2, 0.5),
        frontage=(5.0, 2.0, 1.0, 1.0, 0.6, 0.2),
    ),
    "juniper": Town(
        lane_width=(2.7, 3.5),
        sidewalk=(1.0, 2.6),
        corner_radius=(3.5, 6.5),
        parking_rate=0.4,
        median_rate=0.1,
        yellow_divider=True,
        storeys=(1, 3),
        gable_rate=0.6,
        setback=(1.0, 5.0),
        tree_spacing=(8, 18),
        people=0.8,
        parked_rate=0.5,
        works_rate=0.4,
        facades=((206, 196, 184), (170, 120, 96), (224, 214, 190), (132, 128, 124), (180, 168, 128)),
        roofs=((120, 72, 60), (80, 80, 84), (142, 92, 70)),
        paints=(*_GREYS, (150, 90, 40), (36, 88, 104), (96, 34, 48)),
        foliage=((50, 86, 44), (86, 116, 58), (64, 98, 50)),
        grass=(98, 122, 62),
        asphalt=(82, 81, 81),
        paving=(158, 152, 144),
        vehicle_mix=(2.2, 2.4, 2.0, 2.6, 2.0, 0.9, 1.2, 0.5),
        frontage=(1.0, 5.0, 0.5, 2.0, 1.5, 0.4),
    ),
    "larch": Town(
        lane_width=(2.8, 3.4),
        sidewalk=(1.4, 3.4),
        corner_radius=(3.5, 7.0),
        parking_rate=0.7,
        median_rate=0.25,
        yellow_divider=False,
        storeys=(2, 6),
        gable_rate=0.4,
        setback=(0.3, 4.0),
        tree_spacing=(9, 22),
        people=1.0,
        parked_rate=0.65,
        works_rate=0.5,
        facades=((190, 182, 170), (158, 108, 88), (212, 196, 160), (120, 122, 126), (228, 222, 212)),
        roofs=((100, 70, 60), (84, 86, 90), (136, 86, 64)),
        paints=(*_GREYS, (128, 40, 40), (44, 76, 128), (72, 96, 66)),
        foliage=((60, 96, 48), (90, 120, 60), (46, 80, 46)),
        grass=(96, 120, 64),
        asphalt=(70, 70, 73),
        paving=(150, 146, 140),
        vehicle_mix=(2.5, 2.6, 2.0, 2.2, 2.2, 0.5, 1.4, 0.8),
        frontage=(2.5, 1.5, 2.5, 2.0, 0.8, 1.0),
    ),
    "maple": Town(
        lane_width=(2.6, 3.4),
        sidewalk=(1.0, 3.0),
        corner_radius=(3.2, 6.0),
        parking_rate=0.55,
        median_rate=0.15,
        yellow_divider=True,
        storeys=(1, 5),
        gable_rate=0.5,
        setback=(0.4, 4.0),
        tree_spacing=(10, 24),
        people=1.0,
        parked_rate=0.55,
        works_rate=0.5,
        facades=((200, 190, 172), (166, 130, 108), (220, 208, 188), (140, 134, 130), (184, 160, 130)),
        roofs=((128, 76, 60), (90, 88, 88), (112, 74, 62)),
        paints=(*_GREYS, (132, 60, 40), (50, 80, 110), (150, 140, 100)),
        foliage=((58, 94, 46), (82, 112, 56), (52, 82, 48)),
        grass=(96, 120, 62),
        asphalt=(78, 78, 80),
        paving=(154, 148, 140),
        vehicle_mix=(2.3, 2.7, 2.1, 2.2, 2.1, 0.6, 1.3, 0.6),
        frontage=(2.5, 2.5, 1.2, 1.8, 1.0, 0.5),
    ),
}
"""alder, birch, cedar: training. dogwood: validation. elm, fir: test. With streets as they have grown: hazel,
juniper, larch for training, maple for validation."""


def town_named(name: str) -> Town:
    """Look a town up.

    Raises:
        ConfigError: there is no town of that name.
    """
    if name not in TOWNS:
        raise ConfigError(describe("town", expected=sorted(TOWNS), found=name))
    return TOWNS[name]
