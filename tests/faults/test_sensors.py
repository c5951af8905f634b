# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Sensors that lie about time, size or place: said by name, and over with the next good message."""

from __future__ import annotations

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from sensor_msgs.msg import PointCloud2
from tf2_msgs.msg import TFMessage

from kestrel.data.cloud_layout import structured
from tests.ros.fusion_rig import ERROR, POINTS, WARN, Rig, camera_info
from tests.ros.graph import Graph
from tests.ros.messages import cloud, cloud_of, fill, header, jpeg
from tests.ros.stand_ins import CAR, ROAD, Segmentation

XYZI = ("x", "y", "z", "intensity")


@pytest.mark.parametrize("skew_ms", [2000, -600])
def test_camera_with_a_wrong_clock_is_masked_and_its_distance_is_said(graph: Graph, skew_ms: int) -> None:
    rig = Rig(graph, lost_after_s=30.0).ready()
    rig.sense(1000 + skew_ms, "back")
    rig.sense(1000, "front", "lidar")
    assert rig.answer(1000).sensors_missing == ["back"]
    text = f"back: no matching message (the nearest image is {skew_ms:+d} ms away)"
    graph.await_status("fusion: sync", lambda s: s.level == WARN and text in s.message, "the distance")


def test_camera_with_a_known_offset_takes_part(graph: Graph) -> None:
    rig = Rig(graph, sensor_offsets_s=[0.0, 0.0, 0.5]).ready()
    rig.sense(1500, "back")
    rig.sense(1000, "front", "lidar")
    assert rig.answer(1000).sensors_missing == []
    graph.await_status("fusion: sync", lambda s: s.values.get("back_skew_ms") == "+0.0", "no skew")


def test_doubled_and_late_sweeps_are_dropped_and_no_answer_goes_back_in_time(graph: Graph) -> None:
    rig = Rig(graph, cameras=[""]).ready()
    for at_ms in (1000, 1000, 900, 1100):
        rig.sense(at_ms)
        if at_ms == 1000:
            rig.answer(1000)
    rig.answer(1100)
    view = graph.await_status("fusion: input/points", lambda s: s.count("answered") == 2, "two answers")
    assert (view.count("duplicate_stamp"), view.count("out_of_order")) == (1, 1)
    stamps = [message.header.stamp.nanosec for message in rig.objects]
    assert stamps == sorted(stamps)


def test_sweep_without_a_stamp_is_dropped_and_counted(graph: Graph) -> None:
    rig = Rig(graph, cameras=[""]).ready()
    unstamped = cloud(POINTS)
    unstamped.header.stamp.sec = unstamped.header.stamp.nanosec = 0
    rig.deliver(rig.lidar, unstamped, "points")
    graph.await_status("fusion: input/points", lambda s: s.count("stamp_zero") == 1, "a dropped sweep")
    rig.sense(100)
    rig.answer(100)


def test_resolution_that_changes_masks_the_camera_until_its_camera_info_follows(graph: Graph) -> None:
    rig = Rig(graph).ready()
    rig.sense(100)
    rig.answer(100)
    rig.deliver(rig.images["back"], jpeg(200, "camera_back_optical", (24, 32)), "back/image/compressed")
    rig.sense(200, "front", "lidar")
    assert rig.answer(200).sensors_missing == ["back"]
    text = "expected 64x48 as in CameraInfo, found 32x24"
    graph.await_status("fusion: calibration", lambda s: s.level == ERROR and text in s.message, "ERROR")
    smaller = camera_info("back", width=32, height=24, k=[25.0, 0, 16, 0, 25, 12, 0, 0, 1])
    rig.deliver(rig.infos["back"], smaller, "back/camera_info")
    rig.deliver(rig.images["back"], jpeg(300, "camera_back_optical", (24, 32)), "back/image/compressed")
    rig.sense(300, "front", "lidar")
    assert rig.answer(300).sensors_missing == []
    assert rig.frames[-1].calibrations["back"].width == 32
    graph.await_status("fusion: calibration", lambda s: s.count("changes") == 1, "one change")


def test_mirrored_rectification_masks_the_camera(graph: Graph) -> None:
    rig = Rig(graph, rectified=True)
    rig.say_extrinsics()
    projection = [50.0, 0, 32, 0, 0, 50, 24, 0, 0, 0, 1, 0]
    rig.say_intrinsics("front", p=projection, r=[1.0, 0, 0, 0, 1, 0, 0, 0, 1])
    rig.say_intrinsics("back", p=projection, r=[2.0, 0, 0, 0, 1, 0, 0, 0, 1])
    rig.sense(100)
    assert rig.answer(100).sensors_missing == ["back"]
    graph.await_status("fusion: calibration", lambda s: s.level == ERROR and "back R" in s.message, "ERROR")


def test_every_encoding_of_a_cloud_on_the_wire_is_answered_alike(graph: Graph) -> None:
    graph.add(Segmentation, "segmentation", base_frame="")
    publisher = graph.publisher(PointCloud2, "/segmentation/input/points")
    answers = graph.collect(PointCloud2, "/segmentation/output/points")
    rows = [(5.0, 1.0, 0.0, 0.2), (6.0, -1.0, 1.0, 0.9), (7.0, 0.0, 0.1, 0.5), (8.0, 2.0, 2.0, 0.1)]
    for number, kind in enumerate((np.dtype("<f4"), np.dtype(">f4"), np.dtype("<f8"))):
        table = np.array(rows, np.dtype([(name, kind) for name in XYZI])).reshape(2, 2)
        message = cloud_of(table, 100 * number)
        if number == 2:  # rows with padding, as organised sensors send them
            row_step, padding = message.row_step, b"\xff" * 12
            data = bytes(message.data)
            fill(message, data[:row_step] + padding + data[row_step:] + padding)
            message.row_step += len(padding)
        publisher.publish(message)
        graph.until(lambda number=number: len(answers) == number + 1, f"the answer to {kind}")
        found = structured(answers[-1])
        assert found["class_id"].tolist() == [ROAD, CAR, ROAD, CAR], kind
        assert found["x"].tolist() == [5, 6, 7, 8], kind


def test_far_too_many_points_are_thinned_to_the_capacity_and_answered(graph: Graph) -> None:
    node = graph.add(Segmentation, "segmentation", base_frame="", capacity=20_000)
    publisher = graph.publisher(PointCloud2, "/segmentation/input/points")
    answers = graph.collect(PointCloud2, "/segmentation/output/points")
    table = np.zeros(200_000, np.dtype([(name, "<f4") for name in XYZI]))
    table["x"] = np.linspace(1, 60, len(table))
    table["z"][::7] = 1e30
    publisher.publish(cloud_of(table))
    graph.until(lambda: answers, "an answer")
    assert len(node.segmenter.clouds[-1]) == 20_000
    assert np.abs(node.segmenter.clouds[-1].points).max() <= 60
    text = "beyond the capacity of 20000"
    status = graph.await_status(
        "segmentation: input/points", lambda s: s.level >= WARN and text in s.message, text
    )
    assert status.count("far_points") == len(table[::7])


def test_frame_of_a_second_publisher_is_refused_and_both_are_reported(graph: Graph) -> None:
    rig = Rig(graph, cameras=[""]).ready()
    rig.sense(100)
    rig.answer(100)
    second = graph.publisher(PointCloud2, "/fusion/input/points")
    rig.deliver(second, cloud(POINTS, 200, "other_lidar"), "points")
    graph.await_status(
        "fusion: input/points",
        lambda s: s.level == WARN and "2 publishers" in s.message and s.count("mixed_frames") == 1,
        "WARN",
    )
    rig.sense(300)
    assert [frame.stamp_ns for frame in rig.frames] == sorted({f.stamp_ns for f in rig.frames})
    rig.answer(300)


def test_transform_that_is_late_is_waited_for_no_longer_than_its_tolerance(graph: Graph) -> None:
    rig = Rig(graph, cameras=[""], output_frame="odom", tf_tolerance_s=0.05).ready()
    rig.say_odometry(100)
    rig.sense(140)
    rig.answer(140)
    rig.sense(300)
    text = "'odom' <- 'base_link' -0.200 s away from the stamp"
    graph.await_status("fusion: calibration", lambda s: s.level == ERROR and text in s.message, "ERROR")
    rig.say_odometry(400)
    rig.sense(400)
    rig.answer(400)


def test_vehicle_with_all_its_frames_in_two_trees_says_which(graph: Graph) -> None:
    rig = Rig(graph, cameras=[""])
    stray = TransformStamped(header=header(0, "elsewhere"), child_frame_id="lidar")
    stray.transform.rotation.w = 1.0
    rig.say_extrinsics("camera_front_optical")
    rig.deliver(rig.tf_static, TFMessage(transforms=[stray]), "/tf_static")
    rig.sense(100)
    text = "two trees: 'base_link' is below 'base_link', 'lidar' below 'elsewhere'"
    graph.await_status("fusion: calibration", lambda s: s.level == ERROR and text in s.message, "ERROR")
