# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The trivial baseline: what an afternoon's rules score where a network is supposed to do better.

Boxes are clusters whose size fits a class, point classes follow from height and distance, the map is a
straight road, and nothing ever happens in front. A network that does not clearly beat this is worth nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS, POINT_CLASSES
from kestrel.data.bag import BagReader
from kestrel.data.cloud_layout import cloud_fields
from kestrel.data.messages import source_of, stamp_of
from kestrel.data.recorded_sensors import CLOUD
from kestrel.data.recorded_transforms import RecordedTransforms
from kestrel.errors import InputError
from kestrel.eval.recording import BASE_FRAME, Answers
from kestrel.types import BevMap, Boxes3D, Float32Array, UInt8Array

FRONT_IMAGES: Final = ("/camera/front/image/compressed", "/camera/front/image")
GROUND_M: Final = 0.3
CEILING_M: Final = 4.0
REACH_M: Final = 50.0
CELL_M: Final = 0.4
FEWEST_POINTS: Final = 5
SURE_POINTS: Final = 100


class _Sizes(NamedTuple):
    """Least and largest length, width and height of what counts as one class, in metres."""

    name: str
    least: tuple[float, float, float]
    largest: tuple[float, float, float]


SIZE_RULES: Final = (
    _Sizes("pedestrian", (0.2, 0.1, 1.2), (1.2, 1.0, 2.1)),
    _Sizes("traffic_cone", (0.1, 0.1, 0.3), (0.6, 0.6, 1.0)),
    _Sizes("bicycle", (1.2, 0.2, 0.9), (2.1, 1.0, 2.0)),
    _Sizes("barrier", (1.2, 0.1, 0.5), (3.0, 0.8, 1.2)),
    _Sizes("car", (2.0, 0.8, 0.9), (6.0, 2.6, 2.3)),
    _Sizes("truck", (4.0, 1.2, 2.3), (10.0, 3.2, 4.0)),
    _Sizes("bus", (8.0, 1.2, 2.3), (14.0, 3.5, 4.0)),
)
"""First rule that fits decides."""

ROAD_HALF_WIDTH_M: Final = 12.0
"""What scores best on training drives: with crossings and side streets roads are wider than a street."""

WALK_WIDTH_M: Final = 3.0


def answer_drive(path: str | Path) -> Answers:
    """Return what the rules say about every sweep and front image of a bag or recording.

    Raises:
        InputError: the bag cannot be read.
        CalibrationError: it does not say where its LiDAR is.
    """
    answers = Answers()
    for stamp, points in _sweeps(path):
        answers.objects[stamp] = boxes(points, stamp)
        answers.points[stamp] = point_classes(points)
        answers.maps[stamp] = straight_road(stamp)
    for message in BagReader(path).messages(FRONT_IMAGES):
        picture = source_of(message.msgtype, message.raw)
        if picture is not None:
            answers.events[picture] = "clear"
    return answers


def _sweeps(path: str | Path) -> Iterator[tuple[int, Float32Array]]:
    """Yield stamp and (N, 3) points in base_link of every sweep, in the order and number of the message."""
    reader = BagReader(path)
    transforms = RecordedTransforms(reader)
    for message in reader.messages([CLOUD]):
        decoded = message.decode()
        stamp = stamp_of(decoded)
        mount = transforms.mount(decoded.header.frame_id, stamp)
        try:
            fields = cloud_fields(decoded)
        except InputError:  # a node does not answer a broken sweep either
            continue
        if not {"x", "y", "z"} <= set(fields.dtype.names or ()):
            continue
        points = np.stack([np.asarray(fields[name], np.float64) for name in "xyz"], 1)
        yield stamp, (points @ mount[:3, :3].T + mount[:3, 3]).astype(np.float32)


def boxes(points: Float32Array, stamp_ns: int) -> Boxes3D:
    """Return a box around every cluster above the ground whose size fits a class."""
    above = (points[:, 2] > GROUND_M) & (points[:, 2] < CEILING_M) & (np.abs(points[:, :2]) < REACH_M).all(1)
    found = points[above & np.isfinite(points).all(1)]
    cells = ((found[:, :2] + REACH_M) / CELL_M).astype(np.int64)
    grid = np.zeros((int(2 * REACH_M / CELL_M) + 1,) * 2, bool)
    grid[cells[:, 0], cells[:, 1]] = True
    labels, _ = ndimage.label(grid, structure=np.ones((3, 3)))
    cluster = labels[cells[:, 0], cells[:, 1]]
    order = np.argsort(cluster, kind="stable")
    parts = np.split(found[order], np.flatnonzero(np.diff(cluster[order])) + 1) if len(found) else []
    rows = [row for part in parts if (row := _box(part)) is not None]
    table = np.array(rows, np.float32).reshape(-1, 9)
    return Boxes3D(
        center=table[:, :3],
        size=table[:, 3:6],
        yaw=table[:, 6],
        velocity=np.zeros((len(table), 2), np.float32),
        label=table[:, 7].astype(np.int64),
        score=table[:, 8],
        class_names=DETECTION_CLASSES,
        frame_id=BASE_FRAME,
        stamp_ns=stamp_ns,
    )


def _box(cluster: Float32Array) -> tuple[float, ...] | None:
    """Return x, y, z, length, width, height, yaw, label, score of a cluster; None if no class fits."""
    if len(cluster) < FEWEST_POINTS:
        return None
    (x, y), (first, second), degrees = cv2.minAreaRect(np.ascontiguousarray(cluster[:, :2]))
    length, width = max(first, second), min(first, second)
    yaw = np.radians(degrees if first >= second else degrees + 90.0)
    top = float(cluster[:, 2].max())
    for rule in SIZE_RULES:
        size = (length, width, top)
        if all(low <= value <= high for low, value, high in zip(rule.least, size, rule.largest, strict=True)):
            score = min(1.0, len(cluster) / SURE_POINTS)
            label = DETECTION_CLASSES.index(rule.name)
            return (x, y, top / 2, length, width, top, float(yaw), label, score)
    return None


def point_classes(points: Float32Array) -> UInt8Array:
    """Return a class that is usual at every point's height above the ground and distance."""
    height, distance = points[:, 2], np.hypot(points[:, 0], points[:, 1])
    conditions: list[NDArray[np.bool_]] = [
        (height < GROUND_M) & (distance < 20),
        height < GROUND_M,
        (height < 1.8) & (distance < 25),
        height < 4.0,
    ]
    names = ("driveable_surface", "terrain", "car", "manmade")
    chosen = np.select(
        conditions, [POINT_CLASSES.index(name) for name in names], POINT_CLASSES.index("vegetation")
    )
    return np.asarray(chosen, np.uint8)


def straight_road(
    stamp_ns: int, *, lower: float = -50.0, resolution: float = 0.5, cells: int = 200
) -> BevMap:
    """Return the map of a straight road with pavements, whatever the sensors say."""
    side = np.abs(lower + (np.arange(cells) + 0.5) * resolution)
    probability = np.zeros((len(MAP_LAYERS), cells, cells), np.float32)
    probability[MAP_LAYERS.index("drivable_area")] = side < ROAD_HALF_WIDTH_M
    walk = (side >= ROAD_HALF_WIDTH_M) & (side < ROAD_HALF_WIDTH_M + WALK_WIDTH_M)
    probability[MAP_LAYERS.index("walkway")] = walk
    probability[MAP_LAYERS.index("divider")] = side < resolution
    return BevMap(probability, MAP_LAYERS, (lower, lower), resolution, BASE_FRAME, stamp_ns)
