# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The trivial baseline on recordings."""

import numpy as np
import pytest

from kestrel.classes import DETECTION_CLASSES
from kestrel.data import sensor_messages
from kestrel.data.bag import BagWriter
from kestrel.errors import CalibrationError
from kestrel.eval import baseline
from kestrel.types import PointCloud
from tests.eval.made_recording import EPOCH, MS, WALL, write


def test_baseline_finds_a_cluster_of_the_size_of_a_car():
    random = np.random.default_rng(0)
    car = random.uniform((8.0, 1.2, 0.4), (12.2, 3.0, 1.5), (400, 3)).astype(np.float32)
    ground = np.c_[random.uniform(-40, 40, (2000, 2)), np.zeros(2000)].astype(np.float32)
    found = baseline.boxes(np.concatenate([car, ground]), EPOCH)
    assert [DETECTION_CLASSES[label] for label in found.label] == ["car"]
    np.testing.assert_allclose(found.center[0, :2], (10.1, 2.1), atol=0.2)
    np.testing.assert_allclose(found.size[0], (4.2, 1.8, 1.5), atol=0.3)


def test_baseline_answers_every_sweep_with_every_point(tmp_path):
    answers = baseline.answer_drive(write(tmp_path / "out.mcap", sweeps=3))
    assert len(answers.objects) == len(answers.maps) == 3
    assert [len(classes) for classes in answers.points.values()] == [4, 4, 4]


def test_baseline_needs_to_know_where_the_lidar_is(tmp_path):
    with BagWriter(tmp_path / "bag") as bag:
        cloud = PointCloud(np.zeros((4, 4), np.float32), EPOCH, "roof")
        bag.write("/lidar/points", sensor_messages.cloud_message(cloud), EPOCH)
    with pytest.raises(CalibrationError, match="roof"):
        baseline.answer_drive(tmp_path / "bag")


def test_baseline_does_not_answer_broken_sweeps(tmp_path):
    path = tmp_path / "out.mcap"
    with BagWriter(path) as bag:
        for index in range(3):
            points = PointCloud(np.zeros((4, 4), np.float32), EPOCH + index * MS, "base_link")
            cloud = sensor_messages.cloud_message(points)
            if index == 1:
                cloud.data = cloud.data[:7]
            if index == 2:
                cloud.fields = cloud.fields[1:]
            bag.write("/lidar/points", cloud, WALL + index * MS)
    assert list(baseline.answer_drive(path).objects) == [EPOCH]
