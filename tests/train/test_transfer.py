# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Classes of points judged by boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kestrel.classes import DETECTION_CLASSES, POINT_CLASSES
from kestrel.data import messages
from kestrel.data.bag import BagWriter
from kestrel.data.perception_messages import DONT_CARE, objects_message
from kestrel.data.sensor_messages import cloud_message
from kestrel.errors import InputError
from kestrel.train.transfer import score_points
from kestrel.types import Boxes3D, PointCloud, UInt8Array

STAMP = 10**9
CAR, TRUCK, ROAD, WALKER = (
    POINT_CLASSES.index(name) for name in ("car", "truck", "driveable_surface", "pedestrian")
)
# In base_link: two points in the car, one on the road, one far away, one where nothing is known.
POINTS = [[10, 0, 1], [11, 0.5, 1], [20, 0, 0], [60, 0, 1], [-10, 0, 1]]


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    names = (*DETECTION_CLASSES, DONT_CARE)
    boxes = Boxes3D(
        center=np.array([[10.5, 0, 1], [-50, 0, 0]], np.float32),
        size=np.array([[4, 2, 2], [100, 200, 10]], np.float32),
        yaw=np.zeros(2, np.float32),
        velocity=np.zeros((2, 2), np.float32),
        label=np.array([names.index("car"), names.index(DONT_CARE)], np.int64),
        score=np.ones(2, np.float32),
        class_names=names,
        frame_id="base_link",
        stamp_ns=STAMP,
    )
    mount = np.eye(4)
    mount[2, 3] = 2.0
    points = np.array([[x, y, z - 2, 0] for x, y, z in POINTS], np.float32)
    with BagWriter(tmp_path / "bag") as out:
        transform = messages.transform_message(mount, "base_link", "lidar", STAMP)
        out.write("/tf_static", messages.tf_message([transform]), STAMP)
        out.write("/lidar/points", cloud_message(PointCloud(points, STAMP, "lidar")), STAMP)
        out.write("/truth/objects", objects_message(boxes), STAMP)
    return tmp_path / "bag"


def labels(*values: int) -> UInt8Array:
    return np.array(values, np.uint8)


def test_a_truck_in_the_box_of_a_car_is_a_vehicle(bag: Path) -> None:
    values = score_points(lambda cloud: labels(CAR, TRUCK, ROAD, ROAD, ROAD), bag)
    assert values == {"sweeps": 1.0, "recall/vehicle": 1.0, "precision/vehicle": 1.0}


def test_points_outside_count_where_something_is_known(bag: Path) -> None:
    values = score_points(lambda cloud: labels(CAR, ROAD, CAR, CAR, CAR), bag)
    assert values == {"sweeps": 1.0, "recall/vehicle": 0.5, "precision/vehicle": 0.5}


def test_group_without_a_box_has_precision_alone(bag: Path) -> None:
    values = score_points(lambda cloud: labels(ROAD, WALKER, ROAD, ROAD, ROAD), bag)
    assert values == {"sweeps": 1.0, "recall/vehicle": 0.0, "precision/pedestrian": 0.0}


def test_bag_without_boxes_is_refused(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "empty") as out:
        out.write("/tf_static", messages.tf_message([]), STAMP)
    with pytest.raises(InputError, match="/truth/objects"):
        score_points(lambda cloud: labels(), tmp_path / "empty")
