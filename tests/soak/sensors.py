# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What the sensors of a vehicle on a round course send, at a rate that follows the answers of a node."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import cv2
import numpy as np
from geometry_msgs.msg import TransformStamped
from rclpy.qos import QoSProfile, ReliabilityPolicy
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, CompressedImage, PointCloud2
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from kestrel_nodes.stamps import NANOSECONDS, stamp_message
from kestrel_nodes.transforms import DYNAMIC_QOS, STATIC_QOS
from tests.ros.graph import Graph
from tests.ros.messages import cloud_of, fill

CAMERAS: Final = ("front", "back")
HEIGHT: Final = 720
WIDTH: Final = 1280
DIFFERENT: Final = 8
"""Different clouds, and pictures of each camera: the same ones in a row would count as frozen."""

OPTICAL: Final = Rotation.from_matrix([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
MOUNTED: Final = {
    "lidar": ((0.0, 0.0, 2.0), Rotation.identity()),
    "camera_front_optical": ((1.5, 0.0, 1.5), OPTICAL),
    "camera_back_optical": ((-1.0, 0.0, 1.5), Rotation.from_euler("z", 180, degrees=True) * OPTICAL),
}
RADIUS_M: Final = 30.0
SPEED_M_S: Final = 6.0
PERIOD_S: Final = 0.05
PERIOD_NS: Final = NANOSECONDS // 20
KNOWN_AHEAD_NS: Final = 2 * NANOSECONDS
"""Odometry is sent before its time: how late a busy machine is must not become a fault of the calibration."""

OVERLOAD: Final = 2.0
LEAST_HZ: Final = 2.0
ADAPT_S: Final = 4.0
"""How far the rate looks back."""

RELIABLE: Final = QoSProfile(depth=20, reliability=ReliabilityPolicy.RELIABLE)


def sweep(number: int) -> PointCloud2:
    """Return a sweep of ground, boxes and clutter; each number has other points and another count."""
    draw = np.random.default_rng(number)
    count = 18_000 + 1_000 * number
    azimuth, distance = draw.uniform(-np.pi, np.pi, count), 3.0 + 45.0 * draw.random(count) ** 2
    kind = [(name, "<f4") for name in ("x", "y", "z", "intensity", "time")]
    table = np.zeros(count, np.dtype(kind))
    table["x"], table["y"] = distance * np.cos(azimuth), distance * np.sin(azimuth)
    table["z"] = -2.0 + 0.03 * draw.standard_normal(count)
    for place in draw.uniform(-25, 25, (12, 2)):
        part = draw.integers(0, count, 400)
        for axis, (middle, size) in zip("xyz", ((place[0], 4.0), (place[1], 1.8), (-1.2, 1.5)), strict=True):
            table[axis][part] = middle + size * (draw.random(len(part)) - 0.5)
    table["intensity"] = draw.random(count)
    table["time"] = (azimuth + np.pi) / (20 * np.pi)
    return cloud_of(table)


def photograph(number: int) -> CompressedImage:
    """Return a JPEG; each number is another picture."""
    draw = np.random.default_rng(number)
    small = draw.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), np.uint8)
    picture = cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    message = CompressedImage(format="jpeg")
    fill(message, cv2.imencode(".jpg", picture)[1].tobytes())
    return message


def camera_info(frame_id: str) -> CameraInfo:
    return CameraInfo(
        header=Header(stamp=stamp_message(time.time_ns()), frame_id=frame_id),
        width=WIDTH,
        height=HEIGHT,
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=[700.0, 0.0, WIDTH / 2, 0.0, 700.0, HEIGHT / 2, 0.0, 0.0, 1.0],
    )


def transform(parent: str, child: str, shift: Any, turn: Rotation, stamp_ns: int) -> TransformStamped:
    header = Header(stamp=stamp_message(stamp_ns), frame_id=parent)
    message = TransformStamped(header=header, child_frame_id=child)
    place, rotation = message.transform.translation, message.transform.rotation
    place.x, place.y, place.z = (float(value) for value in shift)
    rotation.x, rotation.y, rotation.z, rotation.w = turn.as_quat().tolist()
    return message


class Vehicle:
    """Sends where everything is: mountings once, the pose on a circle 20 times a second, intrinsics."""

    def __init__(self, graph: Graph) -> None:
        self._tf = graph.publisher(TFMessage, "/tf", DYNAMIC_QOS, matched=False)
        self._static = graph.publisher(TFMessage, "/tf_static", STATIC_QOS, matched=False)
        self._static.publish(
            TFMessage(
                transforms=[transform("base_link", name, *at, time.time_ns()) for name, at in MOUNTED.items()]
            )
        )
        self._infos = {
            name: graph.publisher(CameraInfo, f"/fusion/input/{name}/camera_info", matched=False)
            for name in CAMERAS
        }
        self._next_s, self._known_ns = 0.0, time.time_ns()

    def act(self) -> float:
        """Send what is due; return when the next is, in seconds of time.monotonic()."""
        now = time.monotonic()
        if now >= self._next_s:
            self._next_s = now + PERIOD_S
            self._say_poses_until(time.time_ns() + KNOWN_AHEAD_NS)
            for name, publisher in self._infos.items():
                publisher.publish(camera_info(f"camera_{name}_optical"))
        return self._next_s

    def _say_poses_until(self, end_ns: int) -> None:
        """Leave no gap, however long this thread did not run."""
        while self._known_ns < end_ns:
            self._known_ns += PERIOD_NS
            angle = (self._known_ns / NANOSECONDS * SPEED_M_S / RADIUS_M) % (2 * math.pi)
            shift = (RADIUS_M * math.cos(angle), RADIUS_M * math.sin(angle), 0.0)
            turn = Rotation.from_euler("z", angle + math.pi / 2)
            pose = transform("odom", "base_link", shift, turn, self._known_ns)
            self._tf.publish(TFMessage(transforms=[pose]))


@dataclass
class Sensors:
    """The sensors of one node: every shot publishes one message on each of its inputs.

    shoot: publishes the messages with a number and a stamp.
    most_hz: never faster than this.
    rate_hz: how often; OVERLOAD times what was answered of late, so that it rises until the node cannot
        follow.
    sent: when, in seconds of time.monotonic().
    """

    shoot: Callable[[int, int], None]
    most_hz: float
    rate_hz: float = LEAST_HZ
    sent: list[float] = field(default_factory=list)
    _answers: deque[float] = field(default_factory=deque)
    _next_s: float = 0.0

    def answered(self) -> None:
        """Note an answer of the node."""
        self._answers.append(time.monotonic())

    def act(self) -> float:
        """Send what is due; return when the next is."""
        now = time.monotonic()
        if now >= self._next_s:
            while self._answers and self._answers[0] < now - ADAPT_S:
                self._answers.popleft()
            wanted = OVERLOAD * len(self._answers) / ADAPT_S
            self.rate_hz = min(max(wanted, LEAST_HZ), self.most_hz)
            self.shoot(len(self.sent), time.time_ns())
            self.sent.append(now)
            # From when it was due: a late turn of this thread must not lower the rate.
            self._next_s = max(self._next_s, now - 1.0) + 1 / self.rate_hz
        return self._next_s


@contextmanager
def sending(actors: Sequence[Vehicle | Sensors]) -> Iterator[None]:
    """Let everything send in a thread of its own, whatever this one does."""
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(max(min(actor.act() for actor in actors) - time.monotonic(), 0.0)):
            pass

    thread = threading.Thread(target=send, name="sensors")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def sensors_of(graph: Graph, node: str, *, most_hz: float = 250.0) -> Sensors:
    """Return the sensors of one of the nodes, never faster than ``most_hz``."""
    inputs: dict[str, tuple[type, list[Any], str]] = {}
    # Pictures first: no sweep waits for them because this thread had to.
    if node != "segmentation":
        for first, camera in enumerate(CAMERAS if node == "fusion" else CAMERAS[:1]):
            pictures = [photograph(1 + DIFFERENT * first + number) for number in range(DIFFERENT)]
            inputs[f"{camera}/image/compressed"] = (CompressedImage, pictures, f"camera_{camera}_optical")
    if node in ("fusion", "segmentation"):
        inputs["points"] = (PointCloud2, [sweep(number) for number in range(DIFFERENT)], "lidar")
    publishers = [
        (graph.publisher(kind, f"/{node}/input/{topic}", RELIABLE), messages, frame)
        for topic, (kind, messages, frame) in inputs.items()
    ]

    def shoot(number: int, stamp_ns: int) -> None:
        for publisher, messages, frame in publishers:
            message = messages[number % DIFFERENT]
            message.header = Header(stamp=stamp_message(stamp_ns), frame_id=frame)
            publisher.publish(message)

    return Sensors(shoot, most_hz)
