# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Checks of a running ROS graph: who is there, who is not heard, and why."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import product

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, qos_check_compatible

from kestrel.data.cloud_reader import read_cloud
from kestrel.errors import InputError
from kestrel_nodes.doctor.finding import Finding, Level
from kestrel_nodes.doctor.listener import Listener
from kestrel_nodes.replay.player import LABELS, TRUTH

NODES = ("video", "segmentation", "fusion", "augment")
BASE_FRAME = "base_link"
"""What sensors must be connected to where no running node says another frame."""

WITH_BASE_FRAME = ("segmentation", "fusion")
"""Nodes with a parameter ``base_frame``."""

TRANSFORMS = ("/tf", "/tf_static")
CLOCK_TOLERANCE_S = 5.0
OWN_TOPICS = ("/parameter_events", "/rosout", "/clock")
CLOSE_M = 1.0
CLOSE_SHARE = 0.01
"""A LiDAR with a larger share of its points closer than CLOSE_M, seen from above, may see its vehicle."""
MADE = re.compile(rf"/output/|^{TRUTH}")
"""Topics of what nodes answer, and of the truth of a simulation."""
PICTURES = re.compile(rf"/(output|debug)/|^{TRUTH}|^{LABELS}$")
"""Images that no camera took: drawn by a node, or the truth of a simulation."""


def check_graph(listen_s: float) -> Iterator[Finding]:
    """Listen to the graph for ``listen_s`` seconds and yield what is right and wrong with it."""
    rclpy.init()
    node = rclpy.create_node("kestrel_doctor")
    try:
        listener = Listener(node)
        listener.listen(listen_s)
        running = [found for name in NODES for found in sorted(set(listener.nodes)) if found[0] == name]
        if running:
            yield Finding(Level.OK, "nodes", f"running: {', '.join(name for name, _ in running)}")
        else:
            advice = "`kestrel up` starts them; run the doctor beside them"
            yield Finding(Level.NOTE, "nodes", "none of Kestrel's is running", advice)
        for name, namespace in running:
            yield from check_inputs(node, name, namespace)
        yield from check_camera_infos(listener)
        yield from check_transforms(listener, base_frames(listener, running))
        yield from check_clouds(listener)
        yield from check_clock(listener)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def check_inputs(node: Node, name: str, namespace: str) -> Iterator[Finding]:
    """Yield the inputs of one node that nobody publishes or whose QoS does not fit."""
    try:
        inputs = node.get_subscriber_names_and_types_by_node(name, namespace)
    except Exception:  # rclpy's class for this is private
        yield Finding(Level.NOTE, name, "has left the graph meanwhile", "see its log for the reason")
        return
    for topic, _ in inputs:
        if topic in OWN_TOPICS:
            continue
        subject = f"{name}: {topic}"
        publishers = node.get_publishers_info_by_topic(topic)
        if not publishers:
            yield without_publisher(name, topic)
        for subscription in node.get_subscriptions_info_by_topic(topic):
            if (subscription.node_name, subscription.node_namespace) != (name, namespace):
                continue
            for publisher in publishers:
                fit, reason = qos_check_compatible(publisher.qos_profile, subscription.qos_profile)
                if fit == QoSCompatibility.ERROR:
                    advice = f"set the QoS parameter of this input of {name} to what the publisher offers"
                    yield Finding(
                        Level.BROKEN, subject, f"QoS mismatch with {publisher.node_name}: {reason}", advice
                    )


def without_publisher(name: str, topic: str) -> Finding:
    """Return the finding about an input that nobody publishes: a note where the node can do without it."""
    level = Level.NOTE
    if name == "augment":
        advice = "none is needed: the node answers requests (~/render) without label images"
    elif topic in TRANSFORMS:
        advice = "none is needed where the transforms below are connected and there is no odometry"
    else:
        level = Level.BROKEN
        advice = "start the sensor driver or the replay, or remap the input to the topic it publishes"
    return Finding(level, f"{name}: {topic}", "has no publisher", advice)


def check_camera_infos(listener: Listener) -> Iterator[Finding]:
    """Yield the cameras whose calibration nobody publishes."""
    for topic, types in sorted(listener.topics.items()):
        is_image = types[0] in ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
        drawn = PICTURES.search(topic) is not None
        if not is_image or drawn or topic not in listener.frames:
            continue
        camera = topic.removesuffix("/compressed").rsplit("/", 1)[0]
        info = f"{camera}/camera_info"
        if listener.frames.get(info) is None:
            advice = f"publish sensor_msgs/CameraInfo on {info}; without it fusion leaves this camera out"
            yield Finding(Level.BROKEN, topic, f"no CameraInfo heard on {info}", advice)
        else:
            yield Finding(Level.OK, topic, "has CameraInfo")


def base_frames(listener: Listener, running: list[tuple[str, str]]) -> set[str]:
    """Return the frames in which the running nodes work; an empty one means that of the cloud itself."""
    asked = [listener.parameter(*found, "base_frame") for found in running if found[0] in WITH_BASE_FRAME]
    told = {frame for frame in asked if frame is not None}
    return told - {""} if told else {BASE_FRAME}


def check_transforms(listener: Listener, base_frames: set[str]) -> Iterator[Finding]:
    """Yield the sensor frames without a transform to each of ``base_frames``."""
    heard = {frame for topic, frame in listener.frames.items() if "/output/" not in topic}
    if "" in heard:
        yield Finding(Level.BROKEN, "frame_id", "is empty on a sensor topic", "set it in the sensor's driver")
    for base, frame in product(sorted(base_frames), sorted(heard - {""})):
        if frame == base or listener.reaches(frame, base):
            yield Finding(Level.OK, f"TF {base} <- {frame}", "connected")
        else:
            advice = f"publish it: `ros2 run tf2_ros static_transform_publisher ... {base} {frame}`"
            yield Finding(Level.BROKEN, f"TF {base} <- {frame}", "missing", advice)


def check_clouds(listener: Listener) -> Iterator[Finding]:
    """Yield the clouds that cannot be read, and those in which the vehicle itself may be seen."""
    for topic, message in sorted(listener.clouds.items()):
        if MADE.search(topic):
            continue
        try:
            points = read_cloud(message).cloud.points
        except InputError as error:
            yield Finding(Level.BROKEN, topic, str(error), "fix the driver: the nodes refuse such clouds")
            continue
        close = np.square(points[:, :2]).sum(axis=1) < CLOSE_M**2
        if len(points) and close.mean() > CLOSE_SHARE:
            found = (
                f"{close.mean():.0%} of the points are within {CLOSE_M:.0f} m of the LiDAR, seen from above"
            )
            advice = "if these are of the vehicle itself: set own_vehicle_box_m of fusion and segmentation"
            yield Finding(Level.NOTE, topic, found, advice)


def check_clock(listener: Listener) -> Iterator[Finding]:
    """Yield whether stamps, /clock and the machine's clock agree."""
    if not listener.stamps_ns:
        return
    newest = max(listener.stamps_ns.values())
    reference, name = (
        (time.time_ns(), "the machine's clock")
        if listener.clock_ns is None
        else (listener.clock_ns, "/clock")
    )
    skew_s = (reference - newest) * 1e-9
    if abs(skew_s) <= CLOCK_TOLERANCE_S:
        yield Finding(Level.OK, "clock", f"stamps are {skew_s:.2f} s behind {name}")
        return
    advice = (
        "old data is replayed without /clock: use `kestrel replay`, and use_sim_time on every node"
        if listener.clock_ns is None
        else "a sensor is stamped by another clock: synchronise it (PTP, chrony) or restamp"
    )
    yield Finding(Level.BROKEN, "clock", f"newest stamp is {skew_s:.1f} s away from {name}", advice)
