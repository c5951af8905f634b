# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Boxes judged on recorded sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from kestrel.classes import DETECTION_CLASSES
from kestrel.data import messages
from kestrel.data.bag import BagWriter
from kestrel.data.perception_messages import DONT_CARE, objects_message
from kestrel.data.sensor_messages import cloud_message
from kestrel.errors import ConfigError, InputError
from kestrel.train.box_transfer import Detector, assign, score_detections
from kestrel.train.score import score_bag
from kestrel.types import BevMap, Boxes3D, PointCloud, SensorFrame

STAMP = 10**9
NAMES = (*DETECTION_CLASSES, DONT_CARE)
SIZES = {"pedestrian": (1, 1, 2), "bicycle": (2, 1, 2), DONT_CARE: (50, 50, 9)}
VEHICLE = (4, 2, 2)

Row = tuple[str, float, float, float]
"""Class, x, y, and the score of a box that was found or the points in a true one."""


def boxes(rows: Sequence[Row], *, true: bool) -> Boxes3D:
    values = np.array([row[3] for row in rows])
    return Boxes3D(
        center=np.array([(row[1], row[2], 1) for row in rows], np.float32).reshape(-1, 3),
        size=np.array([SIZES.get(row[0], VEHICLE) for row in rows], np.float32).reshape(-1, 3),
        yaw=np.zeros(len(rows), np.float32),
        velocity=np.zeros((len(rows), 2), np.float32),
        label=np.array([NAMES.index(row[0]) for row in rows], np.int64),
        score=np.ones(len(rows), np.float32) if true else values.astype(np.float32),
        class_names=NAMES,
        frame_id="base_link",
        stamp_ns=STAMP,
        track_id=np.arange(len(rows), dtype=np.int64) if true else None,
        num_points=values.astype(np.int64) if true else None,
    )


def detector(*rows: Row) -> Detector:
    def detect(frame: SensorFrame) -> tuple[Boxes3D, BevMap]:
        assert frame.modality == "lidar"
        return boxes(rows, true=False), cast(BevMap, None)

    return detect


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    truth = boxes(
        [
            ("car", 10, 0, 50),
            ("car", 20, 0, 50),
            ("car", 30, 10, 0),  # seen by no ray
            ("car", 60, 0, 50),  # too far
            ("pedestrian", 10, 10, 9),
            (DONT_CARE, -25, 0, 0),
        ],
        true=True,
    )
    with BagWriter(tmp_path / "bag") as out:
        mount = messages.transform_message(np.eye(4), "base_link", "lidar", STAMP)
        out.write("/tf_static", messages.tf_message([mount]), STAMP)
        for stamp in (STAMP, 2 * STAMP):
            cloud = PointCloud(np.zeros((1, 4), np.float32), stamp, "lidar")
            out.write("/lidar/points", cloud_message(cloud), stamp)
            out.write("/truth/objects", objects_message(truth), STAMP)
    return tmp_path / "bag"


def test_recall_counts_boxes_that_overlap_enough_and_names_the_tracks(bag: Path) -> None:
    found = score_detections(
        detector(("car", 10.5, 0, 0.9), ("bus", 21.5, 0, 0.4), ("pedestrian", 10, 10.9, 0.2)), bag
    )
    assert found["sweeps"] == 1
    assert found["score_0.1/recall/vehicle/iou50"] == 0.5, "a shift of 1.5 m of 4 leaves an overlap of 0.45"
    assert found["score_0.1/recall/vehicle/2m"] == 1.0, "a bus is a vehicle"
    assert found["score_0.5/recall/vehicle/2m"] == 0.5, "its score is too low"
    assert (found["score_0.1/recall/pedestrian/1m"], found["score_0.3/recall/pedestrian/1m"]) == (1.0, 0.0)
    assert (found["track/vehicle/0/found"], found["track/vehicle/1/found"]) == (1, 0)
    assert not any(name.startswith(("track/vehicle/2", "track/vehicle/3")) for name in found)
    assert "score_0.1/recall/cycle/1m" not in found, "there are no true ones"


def test_a_box_is_false_only_where_the_truth_says_what_is_there(bag: Path) -> None:
    rows: list[Row] = [
        ("car", 10, 0, 0.9),
        ("car", 10, 0.1, 0.8),  # the same car again
        ("car", 5, -20, 0.7),
        ("car", 30, 10, 0.7),  # there, although no ray has hit it
        ("car", -20, 5, 0.6),  # nobody knows
        ("car", 45, 0, 0.9),  # too far
        ("bicycle", 0, 15, 0.2),
    ]
    found = score_detections(detector(*rows), bag)
    assert found["score_0.1/false_per_sweep/vehicle"] == 2
    assert found["score_0.1/false_per_sweep/cycle"] == 1
    assert found["score_0.3/false_per_sweep/cycle"] == 0


def test_nothing_found_is_no_error(bag: Path) -> None:
    found = score_detections(detector(), bag)
    assert found["score_0.1/recall/vehicle/iou50"] == 0
    assert found["score_0.1/false_per_sweep/vehicle"] == 0


def test_the_surest_box_takes_the_closest_free_true_one() -> None:
    closeness = np.array([[0.6, 0.7], [0.9, 0.8]])
    found, is_right = assign(np.array([0.9, 0.2], np.float32), closeness, 0.5)
    assert found.all()
    assert is_right.all()
    found, is_right = assign(np.array([0.9, 0.2], np.float32), closeness, 0.85)
    assert found.tolist() == [True, False]
    assert is_right.tolist() == [False, True]


def test_a_bag_without_true_boxes_is_refused(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "empty") as out:
        cloud = PointCloud(np.zeros((1, 4), np.float32), STAMP, "lidar")
        out.write("/lidar/points", cloud_message(cloud), STAMP)
    with pytest.raises(InputError, match="expected /lidar/points with /truth/objects"):
        score_detections(detector(), tmp_path / "empty")


def test_weights_that_find_neither_points_nor_boxes_are_refused(bag: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected KestrelFusion or KestrelSeg .*found KestrelVideo"):
        score_bag("kestrel-video", bag)
