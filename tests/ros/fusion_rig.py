# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A vehicle with sensors that are driven by tests, and the fusion node on it."""

from __future__ import annotations

from typing import Any

import numpy as np
from geometry_msgs.msg import TransformStamped
from kestrel_msgs.msg import PerceivedObjects
from rclpy.publisher import Publisher
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, CompressedImage, PointCloud2
from tf2_msgs.msg import TFMessage

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS
from kestrel.engine.device import CPU
from kestrel.pipelines.fusion import FusionDetector
from kestrel.types import BevMap, Boxes3D, SensorFrame
from kestrel_nodes.fusion import FusionNode
from kestrel_nodes.stamps import stamp_ns
from kestrel_nodes.transforms import DYNAMIC_QOS, STATIC_QOS
from tests.ros.graph import Graph
from tests.ros.messages import MILLISECOND, START_NS, cloud, header, jpeg

CAMERAS = ("front", "back")
OPTICAL = Rotation.from_matrix([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
POINTS = [[5.0, 1.0, -1.0, 0.2], [6.0, -1.0, 0.5, 0.9]]
WARN, ERROR = 1, 2


class FixedDetector:
    """Answers every frame with one moving car, or with nothing, and keeps the frames."""

    sweeps = 2
    sweep_s = 0.0
    remove_close_m = 0.0
    map_memory = True
    precision = "float32"
    device = CPU
    classes, layers = DETECTION_CLASSES, MAP_LAYERS
    manifest = None

    def __init__(self) -> None:
        self.frames: list[SensorFrame] = []
        self.found = 1
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

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

    def load(self, device: str) -> Any:
        return FixedDetector()


class UntrainedFusion(FusionNode):
    """The real node around the real network."""

    def load(self, device: str) -> FusionDetector:
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
