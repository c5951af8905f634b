# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The fusion node over real ROS: good sensors, and every way in which one can fail."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CompressedImage
from tf2_msgs.msg import TFMessage
from vision_msgs.msg import Detection3DArray
from visualization_msgs.msg import Marker, MarkerArray

from kestrel.data.cloud_reader import DecodedCloud, read_cloud
from kestrel.data.transform_buffer import TransformBuffer
from kestrel.errors import CalibrationError
from kestrel.types import PointCloud
from kestrel_nodes import fusion_frame
from kestrel_nodes.collector import LIDAR, Collected
from kestrel_nodes.fusion_frame import BuiltFrame, FrameBuilder
from kestrel_nodes.health import Concern
from kestrel_nodes.stamps import stamp_ns
from tests.ros.fusion_rig import CAMERAS, ERROR, POINTS, WARN, Rig, transform
from tests.ros.graph import Graph
from tests.ros.messages import MILLISECOND, START_NS, cloud, fill, header, jpeg, timed_cloud


def test_complete_frame_is_seen_in_base_link_and_answered_with_the_stamp_of_the_lidar(graph: Graph) -> None:
    rig = Rig(graph).ready()
    detections = graph.collect(Detection3DArray, "/fusion/output/detections")
    rig.sense(100)
    answer = rig.answer(100)
    assert answer.header == header(100, "base_link")
    assert answer.modality == "camera+lidar"
    assert (set(answer.sensors_used), answer.sensors_missing) == ({"lidar", *CAMERAS}, [])
    (seen,) = answer.objects
    assert (seen.class_id, seen.score) == ("car", pytest.approx(0.75))
    assert (seen.twist.twist.linear.x, seen.twist.twist.linear.y) == (5, 1)

    (frame,) = rig.frames
    np.testing.assert_allclose(frame.cloud.points[:, :3], np.array(POINTS)[:, :3] + (0, 0, 2), atol=1e-6)
    assert frame.images["front"].data.shape == (48, 64, 3)
    ahead = frame.calibrations["back"].reference_from_camera @ (0, 0, 10, 1)
    np.testing.assert_allclose(ahead, (-11, 0, 1.5, 1), atol=1e-9)

    graph.until(lambda: detections, "detections")
    (detection,) = detections[0].detections
    assert detection.header == detections[0].header == answer.header
    assert detection.results[0].hypothesis.class_id == "car"
    assert (detection.bbox.size.x, detection.bbox.size.y, detection.bbox.size.z) == (4, 2, 1.5)
    assert detection.bbox.center.position.x == 10
    assert detection.bbox.center.orientation.z == pytest.approx(np.sin(0.15))


def test_missing_camera_is_masked_after_the_timeout_and_named(graph: Graph) -> None:
    rig = Rig(graph).ready()
    rig.sense(100, "front", "lidar")
    answer = rig.answer(100)
    assert (answer.modality, answer.sensors_missing) == ("camera+lidar", ["back"])
    assert rig.frames[0].images.keys() == {"front"}
    graph.await_status("fusion: sync", lambda s: s.level == WARN and "back: no matching" in s.message, "WARN")
    rig.sense(200)
    assert rig.answer(200).sensors_missing == []
    graph.await_status("fusion: sync", lambda s: s.level == 0, "recovered")


def test_image_outside_the_window_takes_no_part(graph: Graph) -> None:
    rig = Rig(graph, window_s=0.05).ready()
    rig.sense(300, "back")
    rig.sense(100, "front", "lidar")
    assert rig.answer(100).sensors_missing == ["back"]


def test_all_cameras_dead_leaves_the_lidar_alone_and_says_so(graph: Graph) -> None:
    rig = Rig(graph).ready()
    rig.sense(100, "lidar")
    answer = rig.answer(100)
    assert (answer.modality, answer.sensors_used) == ("lidar", ["lidar"])
    graph.await_status("fusion: sync", lambda s: s.level == WARN and "LiDAR alone" in s.message, "WARN")


def test_dead_lidar_hands_over_to_the_reference_camera_and_takes_over_again(graph: Graph) -> None:
    rig = Rig(graph, reference_camera="back").ready()
    rig.sense(0)
    rig.answer(0)
    at_ms = 100

    def cameras_answer() -> bool:
        nonlocal at_ms
        rig.sense(at_ms, *CAMERAS)
        at_ms += 100
        return rig.objects[-1].modality == "camera"

    graph.until(cameras_answer, "an answer of the cameras alone")
    assert rig.objects[-1].sensors_missing == ["lidar"]
    assert rig.frames[-1].cloud is None
    text = "cameras alone (no LiDAR), stamped by back"
    graph.await_status("fusion: sync", lambda s: s.level == WARN and text in s.message, "WARN")
    graph.await_status("fusion: input/points", lambda s: s.level == ERROR, "silent LiDAR")
    rig.sense(at_ms + 100, "lidar")
    assert rig.answer(at_ms + 100).modality == "lidar", "cameras silent for so long are not waited for"
    rig.sense(at_ms + 200)
    assert rig.answer(at_ms + 200).modality == "camera+lidar"
    graph.await_status("fusion: sync", lambda s: s.level == 0, "recovered")


def test_cameras_alone_as_configured_are_no_fault(graph: Graph) -> None:
    rig = Rig(graph, use_lidar=False).ready()
    rig.sense(100)
    answer = rig.answer(100)
    assert (answer.modality, answer.sensors_missing) == ("camera", [])
    graph.await_status("fusion: sync", lambda s: s.level == 0, "OK")


def test_lidar_alone_as_configured_is_no_fault(graph: Graph) -> None:
    rig = Rig(graph, cameras=[""]).ready()
    rig.sense(100)
    assert rig.answer(100).modality == "lidar"
    graph.await_status("fusion: sync", lambda s: s.level == 0, "OK")


def test_camera_without_camera_info_is_masked_until_it_comes(graph: Graph) -> None:
    rig = Rig(graph)
    rig.say_extrinsics()
    rig.say_intrinsics("front")
    rig.sense(100)
    assert rig.answer(100).sensors_missing == ["back"]
    text = "CameraInfo of back: expected a message"
    graph.await_status("fusion: calibration", lambda s: s.level == ERROR and text in s.message, "ERROR")
    rig.say_intrinsics("back")
    rig.sense(200)
    assert rig.answer(200).sensors_missing == []
    graph.await_status("fusion: calibration", lambda s: text not in s.message, "recovered")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"k": [0.0] * 9}, "not calibrated"),
        ({"d": [0.1, 0.2]}, "4 or 5 finite numbers"),
        ({"distortion_model": "division"}, "distortion_model"),
        ({"width": 128, "height": 96}, "expected 128x96 as in CameraInfo, found 64x48"),
        ({"header": header(0, "somewhere")}, "frame_id of images of back"),
    ],
    ids=["zero K", "short D", "unknown model", "other size", "other frame"],
)
def test_camera_with_unusable_calibration_is_masked_with_the_reason(
    graph: Graph, changes: dict[str, Any], reason: str
) -> None:
    rig = Rig(graph)
    rig.say_extrinsics()
    rig.say_intrinsics("front")
    rig.say_intrinsics("back", **changes)
    rig.sense(100)
    assert rig.answer(100).sensors_missing == ["back"]
    graph.await_status(
        "fusion: calibration",
        lambda s: s.level == ERROR and "back" in s.message and reason in s.message,
        reason,
    )


def test_sensor_without_transform_is_masked_and_the_frames_are_named(graph: Graph) -> None:
    rig = Rig(graph)
    rig.say_extrinsics("lidar", "camera_front_optical")
    rig.say_intrinsics()
    rig.sense(100)
    assert rig.answer(100).sensors_missing == ["back"]
    text = "transform base_link <- camera_back_optical"
    graph.await_status("fusion: calibration", lambda s: s.level == ERROR and text in s.message, "ERROR")


def test_without_any_transform_nothing_is_published_and_recovery_is_immediate(graph: Graph) -> None:
    rig = Rig(graph)
    rig.say_intrinsics()
    rig.sense(100)
    text = "transform base_link <- lidar"
    graph.await_status("fusion: calibration", lambda s: s.level == ERROR and text in s.message, "ERROR")
    assert not rig.objects
    rig.say_extrinsics()
    rig.sense(200)
    assert rig.answer(200).modality == "camera+lidar"
    graph.await_status("fusion: calibration", lambda s: text not in s.message, "recovered")


def test_transform_that_is_no_rotation_is_refused_and_counted(graph: Graph) -> None:
    rig = Rig(graph).ready()
    broken = transform("base_link", "lidar", (0, 0, 9), Rotation.identity())
    broken.transform.rotation.w = 3.0
    rig.tf_static.publish(TFMessage(transforms=[broken]))
    graph.await_status("fusion: calibration", lambda s: s.count("refused_transforms") == 1, "a refused one")
    rig.sense(100)
    rig.answer(100)
    assert rig.frames[0].cloud.points[0, 2] == pytest.approx(POINTS[0][2] + 2)


def broken_jpeg(at_ms: int) -> CompressedImage:
    """Return a picture of the camera at the back whose end is missing."""
    message = CompressedImage(header=header(at_ms, "camera_back_optical"), format="jpeg")
    fill(message, bytes(jpeg(at_ms).data)[:200])
    return message


def test_broken_jpeg_masks_its_camera_for_that_frame_alone(graph: Graph) -> None:
    rig = Rig(graph).ready()
    rig.deliver(rig.images["back"], broken_jpeg(100), "back/image/compressed")
    rig.sense(100, "front", "lidar")
    assert rig.answer(100).sensors_missing == ["back"]
    status = "fusion: input/back/image/compressed"
    graph.await_status(status, lambda s: s.count("rejected") == 1 and s.said("JPEG data", ERROR), "ERROR")
    rig.sense(200)
    assert rig.answer(200).sensors_missing == []
    graph.await_status(status, lambda s: s.sound, "recovered")


def test_broken_camera_stays_an_error_while_its_next_picture_waits(graph: Graph) -> None:
    rig = Rig(graph).ready()
    rig.deliver(rig.images["back"], broken_jpeg(100), "back/image/compressed")
    rig.sense(100, "front", "lidar")
    status = "fusion: input/back/image/compressed"
    graph.await_status(status, lambda s: s.level == ERROR and "JPEG data" in s.message, "ERROR")
    rig.deliver(rig.images["back"], broken_jpeg(200), "back/image/compressed")
    view = graph.await_status(status, lambda s: s.count("received") == 2, "the next picture")
    assert "JPEG data" in view.message


def test_picture_that_serves_two_sweeps_is_rejected_once(graph: Graph) -> None:
    rig = Rig(graph).ready()
    rig.deliver(rig.images["back"], broken_jpeg(100), "back/image/compressed")
    rig.sense(100, "front")
    for at_ms in (100, 150):
        rig.sense(at_ms, "lidar")
        assert rig.answer(at_ms).sensors_missing == ["back"]
    concern = rig.node.health["input/back/image/compressed"]
    assert (concern.counted("received"), concern.counted("rejected")) == (1, 1)


def test_sweeps_that_cannot_be_placed_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The transform of the LiDAR may never come: memory must not grow meanwhile."""
    decoded: list[weakref.ref[PointCloud]] = []

    def read(*arguments: Any, **options: Any) -> DecodedCloud:
        result = read_cloud(*arguments, **options)
        decoded.append(weakref.ref(result.cloud))
        return result

    monkeypatch.setattr(fusion_frame, "read_cloud", read)
    builder = FrameBuilder(TransformBuffer(), sweeps=2)
    for number in range(20):
        message = cloud(POINTS, 100 * number)
        collected = Collected(stamp_ns(message.header.stamp), LIDAR, message, {}, {}, (), generation=0)
        with pytest.raises(CalibrationError, match="transform base_link <- lidar"):
            builder.build(collected, [], BuiltFrame())
    gc.collect()
    assert len(decoded) == 20
    assert sum(sweep() is not None for sweep in decoded) <= 2


def test_malformed_cloud_leaves_the_cameras_and_is_rejected(graph: Graph) -> None:
    rig = Rig(graph).ready()
    rig.sense(100, *CAMERAS)
    broken = cloud(POINTS, 100)
    broken.point_step = 0
    rig.lidar.publish(broken)
    assert rig.answer(100).modality == "camera"
    graph.await_status("fusion: input/points", lambda s: s.count("rejected") == 1, "a rejected cloud")


@pytest.mark.parametrize(
    ("points", "found"),
    [
        ([], "an empty cloud"),
        ([[float("nan"), 0.0, 0.0, 0.5]], "none: all are NaN"),
        ([[0.5, 0.5, -1.0, 0.2]], "of the vehicle itself"),
    ],
    ids=["empty", "NaN", "own vehicle"],
)
def test_sweep_without_points_takes_no_part_beside_pictures(
    graph: Graph, points: list[list[float]], found: str
) -> None:
    rig = Rig(graph, own_vehicle_box_m=[-1.0, -1.0, 0.0, 3.0, 1.0, 2.0]).ready()
    rig.sense(100, *CAMERAS)
    rig.deliver(rig.lidar, cloud(points, 100), "points")
    answer = rig.answer(100)
    assert (answer.modality, answer.sensors_missing) == ("camera", ["lidar"])
    assert rig.frames[-1].cloud is None
    view = graph.await_status(
        "fusion: input/points",
        lambda s: s.level == ERROR and "usable points: expected" in s.message and found in s.message,
        found,
    )
    assert (view.count("received"), view.count("rejected")) == (1, 1)
    text = "cameras alone (no LiDAR)"
    graph.await_status("fusion: sync", lambda s: s.level == WARN and text in s.message, text)
    rig.sense(200)
    assert rig.answer(200).modality == "camera+lidar"
    graph.await_status("fusion: sync", lambda s: s.level == 0, "recovered")


def test_empty_cloud_and_empty_answer_are_published_as_empty_messages(graph: Graph) -> None:
    rig = Rig(graph, cameras=[""]).ready()
    markers = graph.collect(MarkerArray, "/fusion/output/markers")
    rig.node.detector.found = 0
    rig.lidar.publish(cloud([], 100))
    assert rig.answer(100).objects == []
    graph.until(lambda: markers, "markers")
    assert [marker.action for marker in markers[0].markers] == [Marker.DELETEALL]


def test_frozen_and_black_cameras_are_warnings(graph: Graph) -> None:
    rig = Rig(graph, frozen_after=2).ready()
    for at_ms in (100, 200):
        rig.sense(at_ms)
        rig.answer(at_ms)
    status = "fusion: input/back/image/compressed"
    graph.await_status(status, lambda s: s.level == WARN and "frozen" in s.message, "WARN")
    black = CompressedImage(header=header(300, "camera_back_optical"), format="png")
    fill(black, cv2.imencode(".png", np.zeros((48, 64, 3), np.uint8))[1].tobytes())
    rig.deliver(rig.images["back"], black, "back/image/compressed")
    rig.sense(300, "front", "lidar")
    rig.answer(300)
    graph.await_status(
        status,
        lambda s: s.level == WARN and "is black" in s.message and "frozen" not in s.message,
        "black and no longer frozen",
    )


def test_what_became_of_an_earlier_sweep_is_not_said_of_the_newest() -> None:
    """Odometry has ended: where the vehicle is is known, where it is at the end of the sweep is not."""
    transforms = TransformBuffer(tolerance_s=0.25)
    transforms.add("base_link", "lidar", 0, (0, 0, 2), (0, 0, 0, 1), static=True)
    for at_ms in range(-300, 201, 20):
        transforms.add(
            "odom", "base_link", START_NS + at_ms * MILLISECOND, (0.01 * at_ms, 0, 0), (0, 0, 0, 1)
        )
    earlier, newest = (timed_cloud([[20, 0, 1]] * 2, [0.0, 0.1], at_ms) for at_ms in (100, 400))
    collected = Collected(stamp_ns(newest.header.stamp), LIDAR, newest, {}, {}, (), generation=0)
    built = BuiltFrame()
    frame = FrameBuilder(transforms, sweeps=1).build(collected, [earlier], built)
    assert len(frame.sweeps) == 1, "the earlier one was decoded, and deskewed, after the newest"
    assert built.deskewed is not None
    assert built.deskewed.outcome == "no odometry"
    concern = Concern("calibration")
    built.deskewed.report(concern)
    assert "the sweep is not deskewed: transform odom <- lidar" in concern.publish().message
