# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Classes of points judged by boxes: for real sweeps whose points nobody has labelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kestrel.classes import DETECTION_CLASSES, POINT_CLASSES
from kestrel.data.bag import BagReader
from kestrel.data.messages import stamp_of, transform_from_message
from kestrel.data.perception_messages import DONT_CARE, boxes_from_message
from kestrel.data.sensor_messages import cloud_from_message
from kestrel.errors import InputError, describe
from kestrel.train.progress import track
from kestrel.types import Boxes3D, Float64Array, PointCloud, UInt8Array

GROUPS: Final = {
    "vehicle": ("car", "truck", "bus", "trailer", "construction_vehicle"),
    "cycle": ("bicycle", "motorcycle"),
    "pedestrian": ("pedestrian",),
}
"""What counts as the same thing: a van that is called a truck is no mistake here."""
PRECISION_RANGE_M: Final = 40.0

Labeller = Callable[[PointCloud], UInt8Array]


def score_boxes(labels_of: Labeller, bag: Path) -> dict[str, float]:
    """Return recall and precision of the points of each group, over all sweeps of a bag with true boxes.

    Recall: points inside of boxes of the group that got a class of it. Precision: points with a class of the
    group, within 40 m and outside of the regions of which the truth says nothing, that are inside of a box of
    the group. Boxes stand on the road: its points below a vehicle count as missed ones.

    Raises:
        InputError: the bag has no sweeps with /truth/objects.
    """
    counts: Counter[tuple[str, str]] = Counter()
    sweeps, truth, base_from_lidar = _read(bag)
    for stamp in track(sorted(sweeps.keys() & truth.keys()), "boxes"):
        cloud = _in_base(sweeps[stamp], base_from_lidar)
        _count(counts, labels_of(cloud), cloud.points[:, :3], truth[stamp])
    if not counts:
        raise InputError(describe(f"bag {bag}", expected="/lidar/points with /truth/objects", found="none"))
    values = {}
    for group in GROUPS:
        for name, whole in (("recall", "true"), ("precision", "judged")):
            if counts[group, whole]:
                values[f"{name}/{group}"] = counts[group, name] / counts[group, whole]
    return values


def _count(
    counts: Counter[tuple[str, str]], label: UInt8Array, points: NDArray[np.float32], boxes: Boxes3D
) -> None:
    inside = boxes.contain(points)
    names = np.array([boxes.class_names[index] for index in boxes.label])
    known = ~inside[names == DONT_CARE].any(0) & (np.hypot(*points[:, :2].T) < PRECISION_RANGE_M)
    for group, members in GROUPS.items():
        called = np.isin(label, [POINT_CLASSES.index(name) for name in members])
        true = inside[np.isin(names, members)].any(0)
        counts[group, "true"] += int(true.sum())
        counts[group, "recall"] += int((true & called).sum())
        counts[group, "judged"] += int((called & known).sum())
        counts[group, "precision"] += int((called & known & true).sum())


def _read(bag: Path) -> tuple[dict[int, PointCloud], dict[int, Boxes3D], Float64Array]:
    """Return sweeps and true boxes by stamp, and where the LiDAR is mounted."""
    sweeps: dict[int, PointCloud] = {}
    truth: dict[int, Boxes3D] = {}
    base_from_lidar = np.eye(4)
    for message in BagReader(bag).messages(["/tf_static", "/lidar/points", "/truth/objects"]):
        decoded = message.decode()
        if message.topic == "/tf_static":
            for transform in decoded.transforms:
                if transform.child_frame_id == "lidar":
                    base_from_lidar = transform_from_message(transform.transform)
        elif message.topic == "/lidar/points":
            sweeps[stamp_of(decoded)] = cloud_from_message(decoded)
        else:
            truth[stamp_of(decoded)] = boxes_from_message(decoded, DETECTION_CLASSES)
    return sweeps, truth, base_from_lidar


def _in_base(cloud: PointCloud, base_from_lidar: Float64Array) -> PointCloud:
    points = cloud.points.copy()
    points[:, :3] = points[:, :3] @ base_from_lidar[:3, :3].T + base_from_lidar[:3, 3]
    return PointCloud(points, cloud.stamp_ns, "base_link")
