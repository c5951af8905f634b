# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Labels of the LiDAR segmentation data sets as class indices, and the classes of one as those of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from kestrel.classes import IGNORE, POINT_CLASSES, SEMANTIC_KITTI_CLASSES
from kestrel.errors import InputError, describe
from kestrel.types import UInt8Array, UInt16Array

SPVNAS_RAW_LABELS: Final[dict[str, tuple[int, ...]]] = {
    "car": (10, 252),
    "bicycle": (11,),
    "motorcycle": (15,),
    "truck": (18, 258),
    "other-vehicle": (20, 259),
    "person": (30, 254),
    "bicyclist": (31, 253),
    "motorcyclist": (32, 255),
    "road": (40,),
    "parking": (44,),
    "sidewalk": (48,),
    "other-ground": (49,),
    "building": (50,),
    "fence": (51,),
    "vegetation": (70,),
    "trunk": (71,),
    "terrain": (72,),
    "pole": (80,),
    "traffic-sign": (81,),
}
"""Raw SemanticKITTI labels of each class in SPVNAS: buses, rail vehicles and lane markings have none."""

OFFICIAL_RAW_LABELS: Final[dict[str, tuple[int, ...]]] = {
    **SPVNAS_RAW_LABELS,
    "other-vehicle": (13, 16, 20, 256, 257, 259),
    "road": (40, 60),
}
"""The same in the benchmark's own map: buses and rail vehicles are other vehicles, lane markings are road."""

SEMANTIC_KITTI_WITHOUT_CLASS: Final = (0, 1, 52, 99)
"""Raw SemanticKITTI labels without a class in either: unlabelled, outliers, other structures and objects."""

LIDARSEG_RAW_LABELS: Final[dict[str, tuple[int, ...]]] = {
    "barrier": (9,),
    "bicycle": (14,),
    "bus": (15, 16),
    "car": (17,),
    "construction_vehicle": (18,),
    "motorcycle": (21,),
    "pedestrian": (2, 3, 4, 6),
    "traffic_cone": (12,),
    "trailer": (22,),
    "truck": (23,),
    "driveable_surface": (24,),
    "other_flat": (25,),
    "sidewalk": (26,),
    "terrain": (27,),
    "manmade": (28,),
    "vegetation": (30,),
}
"""Raw nuScenes lidarseg labels (0..31) of each class of the challenge; the others are ignored there."""

LIDARSEG_CATEGORIES: Final = (
    "noise",
    "animal",
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.barrier",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    "movable_object.trafficcone",
    "static_object.bicycle_rack",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.car",
    "vehicle.construction",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.motorcycle",
    "vehicle.trailer",
    "vehicle.truck",
    "flat.driveable_surface",
    "flat.other",
    "flat.sidewalk",
    "flat.terrain",
    "static.manmade",
    "static.other",
    "static.vegetation",
    "vehicle.ego",
)
"""What each raw nuScenes lidarseg label is called in category.json."""

_KITTI_TO_LIDARSEG: Final[dict[str, str]] = {
    "car": "car",
    "bicycle": "bicycle",
    "motorcycle": "motorcycle",
    "truck": "truck",
    "person": "pedestrian",
    "bicyclist": "bicycle",
    "motorcyclist": "motorcycle",
    "road": "driveable_surface",
    "parking": "driveable_surface",
    "sidewalk": "sidewalk",
    "other-ground": "other_flat",
    "building": "manmade",
    "fence": "manmade",
    "vegetation": "vegetation",
    "trunk": "vegetation",
    "terrain": "terrain",
    "pole": "manmade",
    "traffic-sign": "manmade",
}
"""nuScenes counts riders as part of their cycle. other-vehicle is bus, trailer or construction_vehicle."""

_LIDARSEG_TO_KITTI: Final[dict[str, str]] = {
    "bus": "other-vehicle",
    "car": "car",
    "construction_vehicle": "other-vehicle",
    "pedestrian": "person",
    "trailer": "other-vehicle",
    "truck": "truck",
    "other_flat": "other-ground",
    "sidewalk": "sidewalk",
    "terrain": "terrain",
}
"""bicycle and motorcycle may have riders, driveable_surface may be parking, vegetation a trunk, manmade
one of four classes; barrier and traffic_cone have no class in SemanticKITTI."""


def _between(names: Mapping[str, str], sources: tuple[str, ...], targets: tuple[str, ...]) -> UInt8Array:
    table = np.full(256, IGNORE, np.uint8)
    for source, target in names.items():
        table[sources.index(source)] = targets.index(target)
    return table


POINT_CLASS_OF_KITTI: Final = _between(_KITTI_TO_LIDARSEG, SEMANTIC_KITTI_CLASSES, POINT_CLASSES)
"""(256,) uint8: the index into POINT_CLASSES for one into SEMANTIC_KITTI_CLASSES, IGNORE where none."""

KITTI_OF_POINT_CLASS: Final = _between(_LIDARSEG_TO_KITTI, POINT_CLASSES, SEMANTIC_KITTI_CLASSES)
"""(256,) uint8: the other way; IGNORE where several classes are possible, or none."""


def class_of_raw(
    raw: UInt16Array, labels: Mapping[str, tuple[int, ...]], classes: tuple[str, ...]
) -> UInt8Array:
    """Return class indices of raw labels, IGNORE for those without a class.

    Args:
        raw: any shape; the lower 16 bits of SemanticKITTI's labels, or nuScenes lidarseg labels.
        labels: SPVNAS_RAW_LABELS, OFFICIAL_RAW_LABELS or LIDARSEG_RAW_LABELS.
        classes: SEMANTIC_KITTI_CLASSES or POINT_CLASSES.

    Raises:
        InputError: labels of another type than uint8 or uint16, which may hold instance numbers.
    """
    if raw.dtype not in (np.uint8, np.uint16):
        raise InputError(describe("raw labels", expected="uint8 or uint16", found=raw.dtype))
    table = np.full(1 << 16, IGNORE, np.uint8)
    for name, values in labels.items():
        table[list(values)] = classes.index(name)
    return np.asarray(table[raw])
