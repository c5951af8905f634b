# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Sweeps that networks are judged by are where the recording says that their sensor sits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from kestrel.classes import DETECTION_CLASSES
from kestrel.data import messages
from kestrel.data.bag import BagWriter
from kestrel.data.perception_messages import DONT_CARE, objects_message
from kestrel.data.sensor_messages import cloud_message
from kestrel.errors import CalibrationError, InputError
from kestrel.train.judged_bag import JudgedSweep, judged_sweeps
from kestrel.types import Boxes3D, Float64Array, PointCloud
from tests.train.recordings import START, STEP, Drive, landmarks_in, odom_from_base

NAMES = (*DETECTION_CLASSES, DONT_CARE)
POINT = (4.0, 1.0, -1.5)

Mounts = Mapping[tuple[str, str], Float64Array]


def at(x: float, y: float, z: float) -> Float64Array:
    mount = np.eye(4)
    mount[:3, 3] = x, y, z
    return mount


def truth(frame: str = "base_link", *places: tuple[float, float]) -> Boxes3D:
    count = len(places) or 1
    return Boxes3D(
        center=np.array([(x, y, 0) for x, y in places or [(5, 1)]], np.float32),
        size=np.full((count, 3), 4, np.float32),
        yaw=np.zeros(count, np.float32),
        velocity=np.zeros((count, 2), np.float32),
        label=np.full(count, NAMES.index(DONT_CARE if places else "car"), np.int64),
        score=np.ones(count, np.float32),
        class_names=NAMES,
        frame_id=frame,
        stamp_ns=START,
    )


def write(path: Path, frame: str, mounts: Mounts, boxes: Boxes3D | None = None) -> Path:
    """Write a sweep of one point, in a frame, with true boxes, and an earlier one from nobody knows where."""
    cloud = np.array([[*POINT, 0]], np.float32)
    with BagWriter(path) as bag:
        transforms = [messages.transform_message(mount, *pair, START) for pair, mount in mounts.items()]
        bag.write("/tf_static", messages.tf_message(transforms), START)
        for stamp, name in ((START - STEP, "elsewhere"), (START, frame)):
            bag.write("/lidar/points", cloud_message(PointCloud(cloud, stamp, name)), stamp)
        bag.write("/truth/objects", objects_message(truth() if boxes is None else boxes), START)
    return path


@pytest.mark.parametrize("frame", ["lidar", "velodyne"])
def test_the_lidar_is_where_the_transforms_of_its_frame_lead(tmp_path: Path, frame: str) -> None:
    mounts = {("base_link", frame): at(0.5, 0.25, 2), ("base_link", "other"): at(9, 9, 9)}
    mounts |= {("base_link", "lidar"): at(7, 7, 7)} if frame != "lidar" else {}
    (sweep,) = judged_sweeps(write(tmp_path / "bag", frame, mounts))
    assert sweep.cloud.frame_id == "base_link"
    np.testing.assert_allclose(sweep.cloud.points[0, :3], (4.5, 1.25, 0.5), atol=1e-6)


def test_the_lidar_may_be_on_something_that_is_on_the_vehicle(tmp_path: Path) -> None:
    recorded = Drive(measured_s=0.08)  # the motion within a sweep is undone as well
    sweeps = judged_sweeps(recorded.write(tmp_path / "bag"))
    assert len(sweeps) == recorded.sweeps
    for sweep in sweeps:
        expected = landmarks_in(odom_from_base(sweep.truth.stamp_ns))
        np.testing.assert_allclose(sweep.cloud.points[:, :3], expected, atol=2e-2)


@pytest.mark.parametrize("known", [{("base_link", "lidar"): np.eye(4)}, {}], ids=["another", "none"])
def test_a_frame_of_which_nobody_knows_where_it_is_is_named(tmp_path: Path, known: Mounts) -> None:
    with pytest.raises(CalibrationError, match="transform base_link <- velodyne: expected frame"):
        judged_sweeps(write(tmp_path / "bag", "velodyne", known))


def test_true_boxes_in_another_frame_are_refused(tmp_path: Path) -> None:
    bag = write(tmp_path / "bag", "lidar", {("base_link", "lidar"): np.eye(4)}, truth("odom"))
    with pytest.raises(InputError, match="frame of /truth/objects: expected base_link, found odom"):
        judged_sweeps(bag)


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_a_damaged_bag_is_refused(tmp_path: Path, kept: float) -> None:
    whole = Drive(sweeps=40).write(tmp_path / "whole.mcap").read_bytes()
    (tmp_path / "cut.mcap").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(InputError, match=r"cut\.mcap: expected a complete bag"):
        judged_sweeps(tmp_path / "cut.mcap")


def test_places_are_known_within_40_m_and_outside_of_all_regions() -> None:
    sweep = JudgedSweep(
        PointCloud(np.zeros((0, 4), np.float32), START, "base_link"), truth("", (10, 0), (20, 0))
    )
    places = np.array([(10, 1, 0), (15, 0, 0), (21.9, 0, 0), (0, 39, 0), (0, -41, 0)], np.float32)
    assert sweep.known(places).tolist() == [False, True, False, True, False]
