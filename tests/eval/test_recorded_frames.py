# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Frames of recordings for a detector: as the fusion node makes them, as the released networks saw them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from kestrel.data.bag import BagReader, BagWriter
from kestrel.data.messages import source_of
from kestrel.eval.detector_score import DetectorScore
from kestrel.eval.lidar_frame import leaning_from_base, moved_boxes
from kestrel.eval.recording import read_recording
from kestrel.types import SensorFrame
from tests.data.nuscenes_data_set import (
    LIDAR_AT,
    PICTURE_OFFSET_US,
    START_US,
    SWEEP_US,
    DataSet,
    car,
    ego,
    seen,
)
from tests.eval.made_recording import boxes
from tests.eval.stand import imported, knowing
from tests.pipelines.test_bevfusion import detector as untrained


def test_frames_hold_nine_earlier_sweeps_where_the_vehicle_is_now(bag: Path, data_set: DataSet) -> None:
    detector = knowing(bag)
    DetectorScore(detector).add(bag)
    assert [frame.stamp_ns for frame in detector.frames] == [at * 1000 for at in data_set.samples_us]
    frame = detector.frames[1]
    ages = [(frame.stamp_ns - sweep.stamp_ns) // 1000 for sweep in frame.sweeps]
    assert ages == [number * SWEEP_US for number in range(1, 10)]
    assert frame.cloud is not None
    for age, sweep in zip([0, *ages], [frame.cloud, *frame.sweeps], strict=True):
        then = 0.5 - age * 1e-6
        expected = seen(*car(then), 0.5)
        np.testing.assert_allclose(sweep.points[:5, :2].mean(0), expected, atol=1e-3)
        assert len(sweep) == 6
    assert len(detector.frames[0].sweeps) == 0


def test_points_at_the_sensor_are_left_out_of_earlier_sweeps_alone(data_set: DataSet, tmp_path: Path) -> None:
    for path in data_set.root.rglob("*.pcd.bin"):
        sweep = np.fromfile(path, np.float32).reshape(-1, 5)
        np.concatenate([sweep, [[0.9, -0.9, 0, 7, 1]], [[0.9, 1.1, 0, 7, 1]]]).astype(np.float32).tofile(path)
    bag = imported(data_set, tmp_path / "bag")
    detector = knowing(bag)
    DetectorScore(detector).add(bag)
    frame = detector.frames[1]
    assert frame.cloud is not None
    assert [len(cloud) for cloud in (frame.cloud, *frame.sweeps)] == [8] + [7] * 9


def with_a_key_picture(data_set: DataSet, bag: Path) -> Path:
    """Import the data set with a picture of the front camera as that of the second sample."""
    for row in data_set.tables["sample_data"]:
        if "CAM_FRONT" in row["filename"] and abs(row["timestamp"] - data_set.samples_us[1]) < 200_000:
            row["is_key_frame"] = row["timestamp"] == START_US - 20_000 + 7 * 83_333
            row["sample_token"] = "a1"
    data_set.write("sample_data")
    return imported(data_set, bag)


def test_pictures_are_those_of_the_sample_and_stand_where_they_were_taken(
    data_set: DataSet, tmp_path: Path
) -> None:
    now, wanted = data_set.samples_us[1], START_US + 563_331  # another one is closer
    bag = with_a_key_picture(data_set, tmp_path / "bag")
    detector = knowing(bag)
    DetectorScore(detector).add(bag)
    first, frame = detector.frames[:2]
    assert frame.images["front"].stamp_ns == wanted * 1000
    assert abs(frame.images["back_left"].stamp_ns - now * 1000) < 42_000_000, "else the nearest one"
    assert first.images["front"].stamp_ns == (START_US - PICTURE_OFFSET_US) * 1000, "before the first sweep"
    for each, then, seconds in ((frame, (wanted - START_US) * 1e-6, 0.5), (first, -0.02, 0.0)):
        check_mount(each, then, seconds)


def test_a_picture_that_the_recording_lost_gives_way_to_the_nearest_one(
    data_set: DataSet, tmp_path: Path
) -> None:
    bag = with_a_key_picture(data_set, tmp_path / "bag")
    samples = read_recording(bag).samples.values()
    sample, camera = next((each, name) for each in samples for name in each.pictures)
    lost = f"/camera/{camera}/image/compressed", sample.pictures[camera]
    left_out = 0
    with BagWriter(tmp_path / "lossy.mcap") as lossy:
        for message in BagReader(bag).messages():
            source = source_of(message.msgtype, message.raw)
            if source is not None and (message.topic, source.stamp_ns) == lost:
                left_out += 1
            else:
                lossy.write_raw(message.topic, message.msgtype, message.log_time_ns, message.raw)
    assert left_out == 1
    detector = knowing(tmp_path / "lossy.mcap")
    DetectorScore(detector).add(tmp_path / "lossy.mcap")
    (frame,) = [each for each in detector.frames if each.stamp_ns == sample.stamp_ns]
    found = frame.images[camera].stamp_ns
    assert found != sample.pictures[camera]
    assert abs(found - sample.stamp_ns) <= 100_000_000


def check_mount(frame: SensorFrame, then: float, now: float) -> None:
    """The front camera is where it was ``then`` as of the vehicle ``now``."""
    x, y, yaw = ego(then)
    corner = seen(x, y, now)
    turn = yaw - ego(now)[2]
    mount = np.array(
        [1.7 * math.cos(turn) - 0.1 * math.sin(turn), 1.7 * math.sin(turn) + 0.1 * math.cos(turn)]
    )
    place = frame.calibrations["front"].reference_from_camera[:2, 3]
    np.testing.assert_allclose(place, corner + mount, atol=5e-3)


def lean(data_set: DataSet, pitch: float) -> np.ndarray:
    """Make the LiDAR lean ahead; return its rotation on the vehicle, (3, 3)."""
    row = data_set.row("calibrated_sensor", "c LIDAR_TOP")
    w, x, y, z = row["rotation"]
    turned = Rotation.from_euler("y", pitch) * Rotation.from_quat((x, y, z, w))
    x, y, z, w = turned.as_quat().tolist()
    row["rotation"] = [w, x, y, z]
    data_set.write("calibrated_sensor")
    return turned.as_matrix()


def test_a_released_network_sees_the_points_as_of_the_lidar_that_leans(
    data_set: DataSet, tmp_path: Path
) -> None:
    lidar = np.eye(4)
    lidar[:3, :3], lidar[:3, 3] = lean(data_set, 0.025), LIDAR_AT
    points = np.random.default_rng(0).uniform((-6, -6, -3), (6, 6, 1), (40, 3))
    points = points[np.abs(points[:, :2]).max(1) > 1]
    for path in data_set.root.rglob("*.pcd.bin"):
        np.pad(points, ((0, 0), (0, 2)), constant_values=51).astype(np.float32).tofile(path)
    network = untrained("det", "lidar", precision="float32")
    seen_by_it: list[np.ndarray] = []
    inputs = network.inputs
    network.inputs = lambda frame: (seen_by_it.append(inputs(frame).clouds[0].numpy()), inputs(frame))[1]
    DetectorScore(network).add(imported(data_set, tmp_path / "bag"))
    now = seen_by_it[1]
    sweep = now[now[:, 4] == 0]
    np.testing.assert_allclose(sweep[:, :3], points, atol=1e-5)
    np.testing.assert_allclose(sweep[:, 3], 51, atol=1e-4)

    def vehicle(seconds: float) -> np.ndarray:
        x, y, yaw = ego(seconds)
        pose = np.eye(4)
        pose[:3, :3], pose[:2, 3] = Rotation.from_euler("z", yaw).as_matrix(), (x, y)
        return pose

    moved = np.linalg.inv(vehicle(0.5) @ lidar) @ vehicle(0.5 - 0.15) @ lidar
    expected = points @ moved[:3, :3].T + moved[:3, 3]
    third = now[np.abs(now[:, 4] - 0.15) < 1e-4]
    inside = (np.abs(expected[:, :2]).max(1) < 6.4) & (expected[:, 2] > -5)
    assert inside.sum() > 20
    np.testing.assert_allclose(third[:, :3], expected[inside], atol=1e-4)


def test_boxes_of_a_network_that_leans_come_back_into_the_frame_of_the_vehicle() -> None:
    base_from_lidar = np.eye(4)
    base_from_lidar[:3, :3] = Rotation.from_euler("zy", (0.01, 0.025)).as_matrix()
    base_from_lidar[:3, 3] = LIDAR_AT
    leaning = leaning_from_base(base_from_lidar)
    truth = boxes(0, [(40.0, 0.0, 0.8), (-5.0, 12.0, 0.8)])
    back = moved_boxes(moved_boxes(truth, leaning), np.linalg.inv(leaning))
    np.testing.assert_allclose(back.center, truth.center, atol=1e-5)
    np.testing.assert_allclose(back.yaw, truth.yaw, atol=1e-3)
    leant = moved_boxes(truth, leaning)
    assert leant.center[0, 2] - truth.center[0, 2] == pytest.approx(0.025 * 39.06, abs=0.02), "1 m at 40 m"
