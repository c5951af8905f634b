# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The class lists of the benchmarks that Kestrel's networks answer in, and their display colours.

Order is part of the contract: networks, truth and messages use the index into these tuples.
"""

from __future__ import annotations

from typing import Final

DETECTION_CLASSES: Final = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
"""nuScenes detection classes in the order of the BEVFusion checkpoints."""

ATTRIBUTES: Final = (
    "pedestrian.moving",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "cycle.with_rider",
    "cycle.without_rider",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
)
"""What nuScenes says of a box beside its class, in the order of its devkit."""

NO_ATTRIBUTE: Final = -1
"""Attribute of a box that has none, or of which none is known."""

POINT_CLASSES: Final = (
    "barrier",
    "bicycle",
    "bus",
    "car",
    "construction_vehicle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "trailer",
    "truck",
    "driveable_surface",
    "other_flat",
    "sidewalk",
    "terrain",
    "manmade",
    "vegetation",
)
"""nuScenes lidarseg classes (the 16 of the challenge), the label space of Kestrel-Seg."""

SEMANTIC_KITTI_CLASSES: Final = (
    "car",
    "bicycle",
    "motorcycle",
    "truck",
    "other-vehicle",
    "person",
    "bicyclist",
    "motorcyclist",
    "road",
    "parking",
    "sidewalk",
    "other-ground",
    "building",
    "fence",
    "vegetation",
    "trunk",
    "terrain",
    "pole",
    "traffic-sign",
)
"""SemanticKITTI single-scan classes in the order of the SPVNAS checkpoints."""

MAP_LAYERS: Final = (
    "drivable_area",
    "ped_crossing",
    "walkway",
    "stop_line",
    "carpark_area",
    "divider",
)
"""Bird's-eye map layers in the order of the BEVFusion segmentation checkpoints."""

EVENTS: Final = (
    "clear",
    "lead_braking",
    "cut_in",
    "crossing_from_left",
    "crossing_from_right",
    "oncoming_turn",
    "ego_stopping",
    "stopped",
)
"""What goes on in front of the vehicle; the label space of Kestrel-Video."""

IGNORE: Final = 255
"""Label of points and pixels without a class; never counted in a metric."""

Rgb = tuple[int, int, int]

DETECTION_COLOURS: Final[dict[str, Rgb]] = {
    "car": (255, 158, 0),
    "truck": (255, 99, 71),
    "construction_vehicle": (233, 150, 70),
    "bus": (255, 127, 80),
    "trailer": (255, 140, 0),
    "barrier": (112, 128, 144),
    "motorcycle": (255, 61, 99),
    "bicycle": (220, 20, 60),
    "pedestrian": (0, 0, 230),
    "traffic_cone": (47, 79, 79),
}

POINT_COLOURS: Final[dict[str, Rgb]] = {
    **DETECTION_COLOURS,
    "driveable_surface": (0, 207, 191),
    "other_flat": (175, 0, 75),
    "sidewalk": (75, 0, 75),
    "terrain": (112, 180, 60),
    "manmade": (222, 184, 135),
    "vegetation": (0, 175, 0),
}

MAP_COLOURS: Final[dict[str, Rgb]] = {
    "drivable_area": (166, 206, 227),
    "ped_crossing": (251, 154, 153),
    "walkway": (227, 26, 28),
    "stop_line": (253, 191, 111),
    "carpark_area": (255, 127, 0),
    "divider": (106, 61, 154),
}
