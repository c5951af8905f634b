# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What a simulated surface is, and how that reads in the class lists of the benchmarks."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import numpy as np

from kestrel.classes import IGNORE, POINT_CLASSES, SEMANTIC_KITTI_CLASSES
from kestrel.types import UInt8Array


class Semantic(IntEnum):
    """Class of one simulated surface; the value in semantic images and point truth."""

    VOID = 0
    SKY = 1
    ROAD = 2
    LANE_MARKING = 3
    CROSSING = 4
    STOP_LINE = 5
    PARKING = 6
    SIDEWALK = 7
    TERRAIN = 8
    BUILDING = 9
    FENCE = 10
    VEGETATION = 11
    TRUNK = 12
    POLE = 13
    TRAFFIC_SIGN = 14
    TRAFFIC_LIGHT = 15
    OTHER_STRUCTURE = 16
    CAR = 17
    VAN = 18
    TRUCK = 19
    BUS = 20
    TRAILER = 21
    CONSTRUCTION_VEHICLE = 22
    MOTORCYCLE = 23
    MOTORCYCLIST = 24
    BICYCLE = 25
    BICYCLIST = 26
    PEDESTRIAN = 27
    BARRIER = 28
    TRAFFIC_CONE = 29
    OTHER_GROUND = 30


_POINT_CLASS: Final[dict[Semantic, str]] = {
    Semantic.ROAD: "driveable_surface",
    Semantic.LANE_MARKING: "driveable_surface",
    Semantic.CROSSING: "driveable_surface",
    Semantic.STOP_LINE: "driveable_surface",
    Semantic.PARKING: "driveable_surface",
    Semantic.SIDEWALK: "sidewalk",
    Semantic.TERRAIN: "terrain",
    Semantic.BUILDING: "manmade",
    Semantic.FENCE: "manmade",
    Semantic.VEGETATION: "vegetation",
    Semantic.TRUNK: "vegetation",
    Semantic.POLE: "manmade",
    Semantic.TRAFFIC_SIGN: "manmade",
    Semantic.TRAFFIC_LIGHT: "manmade",
    Semantic.OTHER_STRUCTURE: "manmade",
    Semantic.CAR: "car",
    Semantic.VAN: "car",
    Semantic.TRUCK: "truck",
    Semantic.BUS: "bus",
    Semantic.TRAILER: "trailer",
    Semantic.CONSTRUCTION_VEHICLE: "construction_vehicle",
    Semantic.MOTORCYCLE: "motorcycle",
    Semantic.MOTORCYCLIST: "motorcycle",
    Semantic.BICYCLE: "bicycle",
    Semantic.BICYCLIST: "bicycle",
    Semantic.PEDESTRIAN: "pedestrian",
    Semantic.BARRIER: "barrier",
    Semantic.TRAFFIC_CONE: "traffic_cone",
    Semantic.OTHER_GROUND: "other_flat",
}

_KITTI_CLASS: Final[dict[Semantic, str]] = {
    Semantic.ROAD: "road",
    Semantic.LANE_MARKING: "road",
    Semantic.CROSSING: "road",
    Semantic.STOP_LINE: "road",
    Semantic.PARKING: "parking",
    Semantic.SIDEWALK: "sidewalk",
    Semantic.OTHER_GROUND: "other-ground",
    Semantic.TERRAIN: "terrain",
    Semantic.BUILDING: "building",
    Semantic.FENCE: "fence",
    Semantic.VEGETATION: "vegetation",
    Semantic.TRUNK: "trunk",
    Semantic.POLE: "pole",
    Semantic.TRAFFIC_SIGN: "traffic-sign",
    Semantic.CAR: "car",
    Semantic.VAN: "car",
    Semantic.TRUCK: "truck",
    Semantic.BUS: "other-vehicle",
    Semantic.TRAILER: "other-vehicle",
    Semantic.CONSTRUCTION_VEHICLE: "other-vehicle",
    Semantic.MOTORCYCLE: "motorcycle",
    Semantic.MOTORCYCLIST: "motorcyclist",
    Semantic.BICYCLE: "bicycle",
    Semantic.BICYCLIST: "bicyclist",
    Semantic.PEDESTRIAN: "person",
}

DETECTION_CLASS: Final[dict[Semantic, str]] = {
    Semantic.CAR: "car",
    Semantic.VAN: "car",
    Semantic.TRUCK: "truck",
    Semantic.BUS: "bus",
    Semantic.TRAILER: "trailer",
    Semantic.CONSTRUCTION_VEHICLE: "construction_vehicle",
    Semantic.MOTORCYCLE: "motorcycle",
    Semantic.MOTORCYCLIST: "motorcycle",
    Semantic.BICYCLE: "bicycle",
    Semantic.BICYCLIST: "bicycle",
    Semantic.PEDESTRIAN: "pedestrian",
    Semantic.BARRIER: "barrier",
    Semantic.TRAFFIC_CONE: "traffic_cone",
}
"""nuScenes detection class of each kind of actor; a rider and the cycle below are one box."""


MOTOR_VEHICLES: Final = frozenset(
    {
        Semantic.CAR,
        Semantic.VAN,
        Semantic.TRUCK,
        Semantic.BUS,
        Semantic.TRAILER,
        Semantic.CONSTRUCTION_VEHICLE,
        Semantic.MOTORCYCLE,
        Semantic.MOTORCYCLIST,
    }
)
"""Kinds of actors that have lamps."""


def _table(names: dict[Semantic, str], classes: tuple[str, ...]) -> UInt8Array:
    table = np.full(256, IGNORE, np.uint8)
    for semantic, name in names.items():
        table[semantic] = classes.index(name)
    return table


POINT_CLASS_TABLE: Final = _table(_POINT_CLASS, POINT_CLASSES)
"""(256,) uint8: index with a Semantic, get the index into classes.POINT_CLASSES or IGNORE."""

SEMANTIC_KITTI_TABLE: Final = _table(_KITTI_CLASS, SEMANTIC_KITTI_CLASSES)
"""(256,) uint8: index with a Semantic, get the index into classes.SEMANTIC_KITTI_CLASSES or IGNORE."""
