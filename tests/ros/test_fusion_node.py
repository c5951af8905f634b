# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The fusion node over real ROS: what it makes of good sensors, and of every way in which one can fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from kestrel_msgs.msg import PerceivedObjects
from nav_msgs.msg import OccupancyGrid
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.publisher import Publisher
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from tf2_msgs.msg import TFMessage
from vision_msgs.msg import Detection3DArray
from visualization_msgs.msg import Marker, MarkerArray

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS
from kestrel.pipelines.fusion import FusionDetector
from kestrel.types import BevMap, Boxes3D, SensorFrame
from kestrel_nodes.fusion import FusionNode
from kestrel_nodes.stamps import stamp_message, stamp_ns
from kestrel_nodes.transforms import DYNAMIC_QOS, STATIC_QOS
from tests.pipelines.test_bevfusion import write_weights
from tests.ros.graph import Graph
from tests.ros.messages import MILLISECOND, START_NS, cloud, fill, header, jpeg, timed_cloud

CAMERAS = ("front", "back")
OPTICAL = Rotation.from_matrix([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
POINTS = [[5.0, 1.0, -1.0, 0.2], [6.0, -1.0, 0.5, 0.9]]
WARN, ERROR = 1, 2


class FixedDetector:
    """Answers every frame with one moving car, or with nothing, and keeps the frames."""

    sweeps = 2
    remove_close_m = 0.0
    classes, layers = DETECTION_CLASSES, MAP_LAYERS
    manifest = None

    def __init__(self) -> None:
        self.frames: list[SensorFrame] = []
        self.found = 1

    def detect(self, frame: SensorFrame) -> tuple[Boxes3D, BevMap]:
        self.frames.append(frame)
        boxes = Boxes3D(
            center=np.array([[10, 2, 1]], np.float32)[: self.found],
            size=np.array([[4, 2, 1.5]], np.float32)[: self.found],
            yaw=np.array([0.3], np.float32)[: self.found],
            velocity=np.array([[5, 1]], np.float32)[: self.found],
            label=np.zeros(self.found, np.int64),
            score=np.array([0.75], np.float32)[: self.found],
            class_names=DETECTION_CLASSES,
            frame_id=frame.frame_id,
            stamp_ns=frame.stamp_ns,
        )
        probability = np.zeros((len(MAP_LAYERS), 40, 20), np.float32)
        probability[0, 30, 5] = 0.8
        return boxes, BevMap(probability, MAP_LAYERS, (-10.0, -5.0), 0.5, frame.frame_id, frame.stamp_ns)


class Fusion(FusionNode):
    """The real node around FixedDetector."""

    def load(self) -> Any:
        return FixedDetector()


class UntrainedFusion(FusionNode):
    """The real node around the real network."""

    def load(self) -> FusionDetector:
        return FusionDetector.untrained(score_threshold=0.0)


def transform(parent: str, child: str, shift: Any, turn: Rotation, at_ms: int = 0) -> TransformStamped:
    message = TransformStamped(header=header(at_ms, parent), child_frame_id=child)
    place, rotation = message.transform.translation, message.transform.rotation
    place.x, place.y, place.z = (float(value) for value in shift)
    rotation.x, rotation.y, rotation.z, rotation.w = turn.as_quat().tolist()
    return message


def camera_info(camera: str, **changes: Any) -> CameraInfo:
    values = {
        "header": header(0, f"camera_{camera}_optical"),
        "width": 64,
        "height": 48,
        "distortion_model": "plumb_bob",
        "d": [0.0] * 5,
        "k": [50.0, 0, 32, 0, 50, 24, 0, 0, 1],
    }
    return CameraInfo(**(values | changes))


class Rig:
    """A vehicle with two cameras and a LiDAR 2 m above the ground, and the fusion node on it."""

    def __init__(self, graph: Graph, kind: type[FusionNode] = Fusion, **parameters: object) -> None:
        self.graph = graph
        options = {"cameras": list(CAMERAS), "lidar_timeout_s": 0.3, "lost_after_s": 0.5} | parameters
        self.node = graph.add(kind, "fusion", **options)
        self.cameras = self.node.params.cameras
        self.objects = graph.collect(PerceivedObjects, "/fusion/output/objects")
        self.tf = graph.publisher(TFMessage, "/tf", DYNAMIC_QOS)
        self.tf_static = graph.publisher(TFMessage, "/tf_static", STATIC_QOS)
        self.images = {
            name: graph.publisher(CompressedImage, f"/fusion/input/{name}/image/compressed")
            for name in self.cameras
        }
        self.infos = {
            name: graph.publisher(CameraInfo, f"/fusion/input/{name}/camera_info") for name in self.cameras
        }
        if self.node.params.use_lidar:
            self.lidar = graph.publisher(PointCloud2, "/fusion/input/points")

    @property
    def frames(self) -> list[SensorFrame]:
        """What the network saw, without the warm-up."""
        return self.node.detector.frames[1:]

    def say_extrinsics(self, *frames: str) -> None:
        """Send the static transforms, of ``frames`` alone if any are named, and wait until they arrived."""
        all_of_them = [
            transform("base_link", "lidar", (0, 0, 2), Rotation.identity()),
            transform("base_link", "camera_front_optical", (1.5, 0, 1.5), OPTICAL),
            transform(
                "base_link",
                "camera_back_optical",
                (-1, 0, 1.5),
                Rotation.from_euler("z", 180, degrees=True) * OPTICAL,
            ),
        ]
        chosen = [item for item in all_of_them if not frames or item.child_frame_id in frames]
        self.deliver(self.tf_static, TFMessage(transforms=chosen), "/tf_static")

    def received(self, topic: str) -> int:
        return self.node.health[f"input/{topic.lstrip('/')}"].counted("received")

    def say_intrinsics(self, *cameras: str, **changes: Any) -> None:
        for camera in cameras or self.cameras:
            self.deliver(self.infos[camera], camera_info(camera, **changes), f"{camera}/camera_info")

    def say_odometry(self, at_ms: int, shift: Any = (0, 0, 0), turn: Rotation | None = None) -> None:
        pose = transform("odom", "base_link", shift, turn or Rotation.identity(), at_ms)
        self.deliver(self.tf, TFMessage(transforms=[pose]), "/tf")

    def ready(self) -> Rig:
        self.say_extrinsics()
        self.say_intrinsics()
        return self

    def deliver(self, publisher: Publisher, message: Any, topic: str) -> None:
        """Publish, and wait until the node has received it: the order between topics is that of the calls."""
        before = self.received(topic)
        publisher.publish(message)
        self.graph.until(lambda: self.received(topic) > before, f"a message on {topic}")

    def sense(self, at_ms: int, *sensors: str) -> None:
        """Let sensors measure (all, unless some are named): first the cameras, then the LiDAR."""
        for camera in self.cameras:
            if not sensors or camera in sensors:
                image = jpeg(at_ms, f"camera_{camera}_optical")
                self.deliver(self.images[camera], image, f"{camera}/image/compressed")
        if self.node.params.use_lidar and (not sensors or "lidar" in sensors):
            self.deliver(self.lidar, cloud(POINTS, at_ms), "points")

    def answer(self, at_ms: int) -> PerceivedObjects:
        """Return the objects with the stamp ``at_ms``, waiting for them."""
        stamp = START_NS + at_ms * MILLISECOND

        def found() -> list[PerceivedObjects]:
            return [message for message in self.objects if stamp_ns(message.header.stamp) == stamp]

        self.graph.until(found, f"objects at {at_ms} ms")
        return found()[-1]


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
    rig.sense(at_ms + 100, *CAMERAS)
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


def test_broken_jpeg_masks_its_camera_for_that_frame_alone(graph: Graph) -> None:
    rig = Rig(graph).ready()
    broken = CompressedImage(header=header(100, "camera_back_optical"), format="jpeg")
    fill(broken, bytes(jpeg(100).data)[:200])
    rig.images["back"].publish(broken)
    rig.sense(100, "front", "lidar")
    assert rig.answer(100).sensors_missing == ["back"]
    status = "fusion: input/back/image/compressed"
    graph.await_status(status, lambda s: s.count("rejected") == 1 and s.said("JPEG data", ERROR), "ERROR")
    rig.sense(200)
    assert rig.answer(200).sensors_missing == []
    graph.await_status(status, lambda s: s.level == 0, "recovered")


def test_malformed_cloud_leaves_the_cameras_and_is_rejected(graph: Graph) -> None:
    rig = Rig(graph).ready()
    rig.sense(100, *CAMERAS)
    broken = cloud(POINTS, 100)
    broken.point_step = 0
    rig.lidar.publish(broken)
    assert rig.answer(100).modality == "camera"
    graph.await_status("fusion: input/points", lambda s: s.count("rejected") == 1, "a rejected cloud")


def test_empty_cloud_and_empty_answer_are_published_as_empty_messages(graph: Graph) -> None:
    rig = Rig(graph, cameras=[""]).ready()
    markers = graph.collect(MarkerArray, "/fusion/output/markers")
    rig.node.detector.found = 0
    rig.lidar.publish(cloud([], 100))
    assert rig.answer(100).objects == []
    graph.until(lambda: markers, "markers")
    assert [marker.action for marker in markers[0].markers] == [Marker.DELETEALL]


def test_earlier_sweeps_are_moved_to_where_the_vehicle_is_now(graph: Graph) -> None:
    rig = Rig(graph, cameras=[""]).ready()
    for tick in range(41):
        # A left-hand curve: 10 m/s and 0.5 rad/s.
        turn = Rotation.from_euler("z", 0.5 * tick * 0.02)
        rig.say_odometry(tick * 20, (0.2 * tick, 0, 0), turn)
    for at_ms in (100, 210, 300):
        rig.sense(at_ms)
        rig.answer(at_ms)
    sweeps = rig.frames[-1].sweeps
    assert [(START_NS + 300 * MILLISECOND - sweep.stamp_ns) // MILLISECOND for sweep in sweeps] == [90, 200]
    now = Rotation.from_euler("z", 0.5 * 0.3)
    for sweep, at_s in zip(sweeps, (0.21, 0.1), strict=True):
        in_base = np.array(POINTS)[:, :3] + (0, 0, 2)
        in_odom = Rotation.from_euler("z", 0.5 * at_s).apply(in_base) + np.array([10 * at_s, 0, 0])
        expected = now.inv().apply(in_odom - (3, 0, 0))
        np.testing.assert_allclose(sweep.points[:, :3], expected, atol=1e-4)
    assert rig.frames[0].sweeps == ()


def test_points_of_the_vehicle_itself_do_not_trail_behind_it(graph: Graph) -> None:
    """Where the network was trained without them, points close to their sensor are not taken along."""

    class Particular(FixedDetector):
        remove_close_m = 1.0

    class ParticularFusion(FusionNode):
        def load(self) -> Any:
            return Particular()

    rig = Rig(graph, ParticularFusion).ready()
    rig.say_odometry(0)
    rig.say_odometry(200)
    rig.deliver(rig.lidar, cloud([[0.5, -0.5, -1.0, 0.2], [0.5, 1.5, 0.0, 0.2]], at_ms=100), "points")
    rig.sense(200)
    rig.answer(200)
    (earlier,) = rig.frames[-1].sweeps
    np.testing.assert_allclose(earlier.points[:, :2], [[0.5, 1.5]], atol=1e-6)


def test_objects_keep_their_ids_from_frame_to_frame_while_the_vehicle_moves(graph: Graph) -> None:
    rig = Rig(graph, cameras=[""], track_position_std_m=0.3).ready()
    markers = graph.collect(MarkerArray, "/fusion/output/markers")
    for at_ms, x in ((100, 0.0), (200, -0.5), (300, -1.0), (500, 40.0)):
        # The box stands still in base_link and so moves with the vehicle: by its own 5 m/s, until it jumps.
        rig.say_odometry(at_ms, (x + 10 * at_ms / 1000, at_ms / 1000, 0))
        rig.sense(at_ms)
        rig.answer(at_ms)  # a sweep that still waits would give way to the next
    ids = [rig.answer(at_ms).objects[0].track_id for at_ms in (100, 200, 300, 500)]
    assert ids == [0, 0, 0, 1]
    graph.until(lambda: len(markers) == 4, "markers")
    bodies = [marker for marker in markers[-1].markers if marker.type == Marker.CUBE]
    labels = [marker.text for marker in markers[-1].markers if marker.type == Marker.TEXT_VIEW_FACING]
    assert ([body.id for body in bodies], labels) == ([1], ["car #1 0.75"])
    graph.await_status("fusion: output", lambda s: s.values.get("tracks", "").endswith("odom"), "tracks")


def test_thresholds_by_class_and_range_and_other_names_are_applied(graph: Graph) -> None:
    thresholds = ["car=0.5", "car@30=0.9"]
    rig = Rig(graph, cameras=[""], class_thresholds=thresholds, class_remap=["car=vehicle"]).ready()
    rig.sense(100)
    assert [seen.class_id for seen in rig.answer(100).objects] == ["vehicle"]


@pytest.mark.parametrize(
    "parameters",
    [{"class_thresholds": ["car=2"]}, {"class_remap": ["spaceship=car"]}],
    ids=["score", "class"],
)
def test_unusable_selection_fails_at_configure(graph: Graph, parameters: dict[str, Any]) -> None:
    node = graph.add(Fusion, "fusion", active=False, **parameters)
    assert node.trigger_configure() is TransitionCallbackReturn.FAILURE
    (name,) = parameters
    graph.await_status("fusion: life cycle", lambda s: s.level == ERROR and name in s.message, "the reason")


def test_overlay_and_map_are_drawn_only_for_those_who_look(graph: Graph) -> None:
    rig = Rig(graph).ready()
    rig.sense(100)
    rig.answer(100)
    for subscription in list(graph.node.subscriptions):
        if subscription.topic_name == "/fusion/output/objects":
            graph.node.destroy_subscription(subscription)
    graph.until(lambda: not rig.node.objects.wanted, "nobody to listen")
    overlays = graph.collect(Image, "/fusion/debug/overlay/front")
    graph.until(lambda: rig.node.overlays["front"].wanted, "the overlay to be wanted")
    rig.sense(200)
    graph.until(lambda: overlays, "an overlay")
    assert (overlays[0].header, overlays[0].width) == (header(200, "camera_front_optical"), 64)
    plain = rig.frames[-1].images["front"].data
    drawn = np.frombuffer(overlays[0].data, np.uint8).reshape(plain.shape)
    changed = (drawn != plain).any(axis=-1)
    # The car 10 m ahead and 2 m to the left: left of the middle of a picture with f = 50 px.
    assert changed[:, :32].any()
    assert changed.mean() < 0.5
    assert [rig.node.overlays[name].published for name in CAMERAS] == [1, 0]
    maps = graph.collect(Image, "/fusion/output/map_image")
    rig.sense(300)
    graph.until(lambda: maps, "the map")
    assert (maps[0].encoding, maps[0].width, maps[0].height) == ("rgb8", 80, 160)


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


def test_motion_within_a_sweep_is_undone(graph: Graph) -> None:
    rig = Rig(graph, cameras=[""]).ready()
    for tick in range(15):
        rig.say_odometry(tick * 20, (0.2 * tick, 0, 0))
    rig.deliver(rig.lidar, timed_cloud([[20.0, 0.0, 1.0]] * 2, [0.0, 0.1], 100), "points")
    rig.answer(100)
    # 10 m/s: what was measured 0.1 s after the stamp is 1 m further away from where the vehicle was.
    np.testing.assert_allclose(rig.frames[0].cloud.points[:, 0], (20, 21), atol=1e-4)
    graph.await_status("fusion: calibration", lambda s: s.values.get("deskew") == "on", "on")


def test_without_odometry_single_sweeps_are_used_and_that_is_said(graph: Graph) -> None:
    rig = Rig(graph, cameras=[""]).ready()
    for at_ms in (100, 200):
        rig.sense(at_ms)
        rig.answer(at_ms)
    assert rig.frames[1].sweeps == ()
    text = "earlier sweeps are left out: transform odom <- base_link"
    graph.await_status("fusion: calibration", lambda s: s.level == WARN and text in s.message, "WARN")


def test_jump_back_in_time_starts_anew_with_the_first_frame(graph: Graph) -> None:
    rig = Rig(graph).ready()
    for at_ms in (60_000, 60_100):
        rig.say_odometry(at_ms)
        rig.sense(at_ms)
        rig.answer(at_ms)
    for at_ms in (0, 100):
        rig.say_odometry(at_ms)
        rig.sense(at_ms)
    assert rig.answer(100).sensors_missing == []
    times = [sweep.stamp_ns - START_NS for sweep in rig.frames[-1].sweeps]
    assert all(time < 100 * MILLISECOND for time in times), "no sweep from before the jump"
    assert graph.status("fusion: sync").count("time_jumps") > 0 or graph.await_status(
        "fusion: sync", lambda s: s.count("time_jumps") > 0, "the jump"
    )


def test_extrinsics_that_change_at_run_time_are_used_and_counted(graph: Graph) -> None:
    rig = Rig(graph).ready()
    rig.sense(100)
    rig.answer(100)
    moved = transform("base_link", "camera_front_optical", (9, 0, 1.5), OPTICAL)
    rig.deliver(rig.tf_static, TFMessage(transforms=[moved]), "/tf_static")
    rig.sense(200)
    rig.answer(200)
    assert rig.frames[1].calibrations["front"].reference_from_camera[0, 3] == 9
    graph.await_status("fusion: calibration", lambda s: s.count("changes") == 1, "one change")


def test_output_frame_turns_boxes_velocities_and_map(graph: Graph) -> None:
    rig = Rig(graph, cameras=[""], output_frame="odom").ready()
    grids = graph.collect(OccupancyGrid, "/fusion/output/map/drivable_area")
    quarter = Rotation.from_euler("z", 90, degrees=True)
    rig.say_odometry(100, (100, 50, 0), quarter)
    rig.sense(100)
    answer = rig.answer(100)
    (seen,) = answer.objects
    assert answer.header.frame_id == "odom"
    place, velocity, turn = seen.pose.pose.position, seen.twist.twist.linear, seen.pose.pose.orientation
    np.testing.assert_allclose((place.x, place.y, place.z), (98, 60, 1), atol=1e-5)
    np.testing.assert_allclose((velocity.x, velocity.y), (-1, 5), atol=1e-5)
    assert 2 * np.arctan2(turn.z, turn.w) == pytest.approx(np.pi / 2 + 0.3, abs=1e-5)
    graph.until(lambda: grids, "the map")
    (grid,) = grids
    assert (grid.header.frame_id, grid.info.width, grid.info.height, grid.info.resolution) == (
        "odom",
        40,
        20,
        0.5,
    )
    np.testing.assert_allclose(
        (grid.info.origin.position.x, grid.info.origin.position.y), (105, 40), atol=1e-5
    )
    assert grid.info.origin.orientation.z == pytest.approx(np.sin(np.pi / 4))
    cells = np.array(grid.data).reshape(20, 40)
    assert (cells[5, 30], cells.sum()) == (80, 80)


def test_without_transform_to_the_output_frame_nothing_is_published(graph: Graph) -> None:
    rig = Rig(graph, cameras=[""], output_frame="map").ready()
    rig.sense(100)
    text = "transform map <- base_link"
    graph.await_status("fusion: calibration", lambda s: s.level == ERROR and text in s.message, "ERROR")
    assert not rig.objects


def test_nothing_is_computed_that_nobody_wants(graph: Graph) -> None:
    rig = Rig(graph, cameras=[""]).ready()
    for subscription in list(graph.node.subscriptions):
        if subscription.topic_name == "/fusion/output/objects":
            graph.node.destroy_subscription(subscription)
    graph.until(lambda: not rig.node.objects.wanted, "nobody to listen")
    rig.sense(100)
    graph.await_status("fusion: input/points", lambda s: s.count("unwanted") == 1, "an unwanted sweep")
    assert not rig.frames


def test_messages_end_as_answered_after_deactivation_too(graph: Graph) -> None:
    rig = Rig(graph).ready()
    rig.sense(100)
    rig.answer(100)
    assert rig.node.trigger_deactivate() is TransitionCallbackReturn.SUCCESS
    assert rig.node.trigger_activate() is TransitionCallbackReturn.SUCCESS
    graph.until(lambda: rig.lidar.get_subscription_count() > 0, "the subscription")
    graph.until(lambda: all(p.get_subscription_count() > 0 for p in rig.images.values()), "subscriptions")
    rig.sense(200)
    assert rig.answer(200).modality == "camera+lidar"
    view = graph.await_status("fusion: input/points", lambda s: s.count("answered") == 2, "two answers")
    assert view.count("received") == 2


def test_cameras_named_twice_fail_at_configure(graph: Graph) -> None:
    node = graph.add(Fusion, "fusion", active=False, cameras=["front", "front"])
    assert node.trigger_configure() is TransitionCallbackReturn.FAILURE
    graph.await_status(
        "fusion: life cycle", lambda s: s.level == ERROR and "cameras" in s.message, "the reason"
    )


def test_real_network_answers_on_every_output(graph: Graph) -> None:
    rig = Rig(graph, UntrainedFusion, score_threshold=0.0, display_score=0.0).ready()
    grids = {
        layer: graph.collect(OccupancyGrid, f"/fusion/output/map/{layer}")
        for layer in rig.node.detector.layers
    }
    pictures = graph.collect(Image, "/fusion/output/bev_image")
    markers = graph.collect(MarkerArray, "/fusion/output/markers")
    rig.sense(100)
    answer = rig.answer(100)
    assert answer.objects, "a threshold of 0 keeps boxes"
    graph.until(lambda: pictures and markers and all(grids.values()), "all outputs")
    assert (pictures[0].encoding, pictures[0].header) == ("rgb8", header(100, "base_link"))
    assert len(pictures[0].data) == pictures[0].height * pictures[0].width * 3
    labels = [marker for marker in markers[0].markers if marker.type == Marker.TEXT_VIEW_FACING]
    assert len(labels) == len(answer.objects)
    for grid in (grids[layer][0] for layer in grids):
        assert grid.header.stamp == stamp_message(START_NS + 100 * MILLISECOND)
        assert 0 <= min(grid.data) <= max(grid.data) <= 100


@pytest.mark.parametrize(("task", "sensors"), [("det", "camera+lidar"), ("seg", "lidar")])
def test_the_weights_parameter_brings_up_a_converted_bevfusion(
    graph: Graph, tmp_path: Path, task: str, sensors: str
) -> None:
    path = tmp_path / f"{task}.safetensors"
    write_weights(path, task, sensors)
    rig = Rig(graph, FusionNode, weights=str(path), score_threshold=0.0, engine="folded").ready()
    drivable = graph.collect(OccupancyGrid, "/fusion/output/map/drivable_area") if task == "seg" else []
    pictures = graph.collect(Image, "/fusion/output/bev_image")
    rig.sense(100)
    answer = rig.answer(100)
    assert answer.header == header(100, "base_link")
    assert bool(answer.objects) == (task == "det")
    graph.until(lambda: bool(pictures and (drivable or task == "det")), "picture and map")
    if drivable:
        assert max(drivable[0].data) <= 100
