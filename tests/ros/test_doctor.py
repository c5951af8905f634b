# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The doctor finds what keeps a graph from working, and is content with one that works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TransformStamped
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, PointCloud2
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from kestrel_nodes.doctor import Finding, Level
from kestrel_nodes.doctor.graph import (
    check_camera_infos,
    check_clouds,
    check_graph,
    check_inputs,
    without_publisher,
)
from kestrel_nodes.doctor.listener import Listener
from kestrel_nodes.doctor.machine import check_gpu, check_kernels, check_shared_memory
from kestrel_nodes.qos import LATCHED
from tests.ros.fusion_rig import Fusion
from tests.ros.messages import cloud, fill
from tests.ros.stand_ins import Augment, Segmentation, Video, configured

LISTEN_S = 1.5
DEADLINE_S = 40.0
PERIOD_S = 0.1
RELIABLE = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)


class Vehicle:
    """Sensors that publish until told to stop, each part of which a test may leave out."""

    def __init__(
        self, *, calibrated: bool, connected: bool, lidar_qos: QoSProfile, latched: bool = False
    ) -> None:
        self.context = Context()
        self.context.init()
        self.driver = Node("driver", context=self.context)
        self.fusion = Node("fusion", context=self.context)
        self.fusion.create_subscription(PointCloud2, "/lidar/points", lambda _: None, RELIABLE)
        self.points = self.driver.create_publisher(PointCloud2, "/lidar/points", lidar_qos)
        self.image = self.driver.create_publisher(CompressedImage, "/camera/front/image/compressed", RELIABLE)
        info_qos = LATCHED if latched else RELIABLE
        self.info = self.driver.create_publisher(CameraInfo, "/camera/front/camera_info", info_qos)
        self.transforms = self.driver.create_publisher(TFMessage, "/tf", RELIABLE)
        self.calibrated, self.connected = calibrated and not latched, connected
        if latched:
            self.info.publish(CameraInfo(header=Header(frame_id="camera")))

    def publish(self) -> None:
        """Publish one message of everything."""
        stamp: Time = self.driver.get_clock().now().to_msg()
        cloud, image, info = PointCloud2(), CompressedImage(), CameraInfo()
        for message, frame in ((cloud, "lidar"), (image, "camera"), (info, "camera")):
            message.header.stamp, message.header.frame_id = stamp, frame
        self.points.publish(cloud)
        self.image.publish(image)
        if self.calibrated:
            self.info.publish(info)
        children = ("lidar", "camera") if self.connected else ("camera",)
        message = TFMessage(transforms=[TransformStamped(child_frame_id=child) for child in children])
        for transform in message.transforms:
            transform.header.stamp, transform.header.frame_id = stamp, "base_link"
        self.transforms.publish(message)

    def close(self) -> None:
        """Leave the graph."""
        self.driver.destroy_node()
        self.fusion.destroy_node()
        self.context.try_shutdown()


@contextmanager
def driving(
    *,
    calibrated: bool = True,
    connected: bool = True,
    lidar_qos: QoSProfile = RELIABLE,
    latched: bool = False,
) -> Iterator[None]:
    """Keep a vehicle publishing in the background."""
    vehicle = Vehicle(calibrated=calibrated, connected=connected, lidar_qos=lidar_qos, latched=latched)
    stop = threading.Event()

    def publish() -> None:
        while not stop.wait(PERIOD_S):
            vehicle.publish()

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        vehicle.close()


def broken(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level is Level.BROKEN]


def examine(wanted: int, *, driving: bool = True) -> list[Finding]:
    """Examine the graph until so many things are broken: discovery takes its time on a busy machine."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        findings = list(check_graph(LISTEN_S))
        heard = not driving or any(finding.subject == "clock" for finding in findings)
        if (heard and len(broken(findings)) == wanted) or time.monotonic() > deadline:
            return findings


def test_a_working_graph_has_nothing_broken() -> None:
    with driving():
        findings = examine(0)
    assert broken(findings) == []
    assert {"nodes", "TF base_link <- lidar", "clock"} <= {finding.subject for finding in findings}


def test_a_camera_whose_calibration_was_published_once_and_kept_has_one() -> None:
    with driving(latched=True):
        findings = examine(0)
    assert broken(findings) == []
    assert "has CameraInfo" in {finding.found for finding in findings}


def test_a_camera_without_calibration_is_named() -> None:
    with driving(calibrated=False):
        (finding,) = broken(examine(1))
    assert "/camera/front/camera_info" in finding.found
    assert finding.advice


def test_a_missing_transform_is_named() -> None:
    with driving(connected=False):
        (finding,) = broken(examine(1))
    assert finding.subject == "TF base_link <- lidar"


def test_a_qos_mismatch_names_topic_and_publisher() -> None:
    with driving(lidar_qos=BEST_EFFORT):
        (finding,) = broken(examine(1))
    assert finding.subject == "fusion: /lidar/points"
    assert "driver" in finding.found


@pytest.mark.parametrize(
    "topic",
    [
        "/fusion/debug/overlay/front",
        "/augment/output/image",
        "/augment/input/labels",
        "/truth/camera/a/depth",
    ],
)
def test_a_picture_that_no_camera_took_needs_no_calibration(topic: str) -> None:
    heard = SimpleNamespace(
        topics={topic: ["sensor_msgs/msg/Image"], "/camera/b/image": ["sensor_msgs/msg/Image"]},
        frames={topic: "camera", "/camera/b/image": "camera"},
    )
    (finding,) = check_camera_infos(cast(Listener, heard))
    assert finding.subject == "/camera/b/image"


@pytest.mark.parametrize(
    ("topic", "x", "noted"),
    [
        ("/lidar/points", 0.5, True),
        ("/lidar/points", 5.0, False),
        ("/segmentation/output/points", 0.5, False),
    ],
    ids=["on the roof", "far away", "made by a node"],
)
def test_a_vehicle_that_its_own_lidar_may_see_is_noted(topic: str, x: float, noted: bool) -> None:
    sweep = cloud([[x, -0.3, -0.2, 0.1]] * 2 + [[20.0, 5.0, 0.0, 0.1]] * 98)
    heard = SimpleNamespace(clouds={topic: sweep})
    findings = list(check_clouds(cast(Listener, heard)))
    assert [(f.level, f.subject, f.found[:3]) for f in findings] == [(Level.NOTE, topic, "2% ")] * noted
    assert all("own_vehicle_box_m" in finding.advice for finding in findings)


def test_a_cloud_that_nodes_would_refuse_is_broken_and_an_empty_one_is_not() -> None:
    torn = cloud([[5.0, 0.0, 0.0, 0.1]])
    fill(torn, bytes(torn.data)[:-3])
    heard = SimpleNamespace(clouds={"/a": torn, "/b": cloud([])})
    (finding,) = check_clouds(cast(Listener, heard))
    assert (finding.level, finding.subject) == (Level.BROKEN, "/a")


def test_a_node_that_left_the_graph_is_noted() -> None:
    context = Context()
    context.init()
    doctor = Node("doctor", context=context)
    try:
        (finding,) = check_inputs(doctor, "fusion", "/")
    finally:
        doctor.destroy_node()
        context.try_shutdown()
    assert (finding.level, finding.subject) == (Level.NOTE, "fusion")


@pytest.mark.parametrize("namespace", ["/", "/robot"])
def test_an_input_without_publisher_is_named(namespace: str) -> None:
    context = Context()
    context.init()
    fusion = Node("fusion", context=context, namespace=namespace)
    fusion.create_subscription(PointCloud2, "/lidar/points", lambda _: None, RELIABLE)
    try:
        (finding,) = broken(examine(1, driving=False))
    finally:
        fusion.destroy_node()
        context.try_shutdown()
    assert (finding.subject, finding.found) == ("fusion: /lidar/points", "has no publisher")


def test_transforms_are_asked_for_to_the_frame_that_the_node_works_in() -> None:
    context = Context()
    context.init()
    fusion = Node("fusion", context=context)
    fusion.declare_parameter("base_frame", "base_link")
    fusion.set_parameters([Parameter("base_frame", value="footprint")])
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(fusion)
    spinner = threading.Thread(target=executor.spin)
    spinner.start()
    try:
        with driving():
            findings = examine(2)
    finally:
        executor.shutdown()
        spinner.join()
        fusion.destroy_node()
        context.try_shutdown()
    missing = {finding.subject for finding in broken(findings)}
    assert missing == {"TF footprint <- lidar", "TF footprint <- camera"}


@pytest.mark.parametrize("kind", [Video, Segmentation, Fusion, Augment])
def test_only_an_input_that_its_node_needs_is_broken_without_publisher(kind: type) -> None:
    with configured(kind) as node:
        needed = {name: port.required for name, port in node.inputs.items()}
    assert needed
    for name, required in needed.items():
        topic = name if name.startswith("/") else f"/{kind.__name__.lower()}/input/{name}"
        finding = without_publisher(kind.__name__.lower(), topic)
        assert (finding.level is Level.BROKEN) == required
        assert finding.advice


def test_kernels_that_are_not_used_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kestrel.ops.backend.dispatch_level", lambda: "torch")
    assert check_kernels().level is Level.NOTE


def test_a_gpu_is_a_note_and_so_is_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kestrel.engine.device.gpu_problem", lambda _: "0 GPUs that torch 2.13 finds")
    none = check_gpu()
    assert none.level is Level.NOTE
    assert none.found == "none that torch can use: 0 GPUs that torch 2.13 finds"
    monkeypatch.setattr("kestrel.engine.device.gpu_problem", lambda _: None)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "Orin")
    there = check_gpu()
    assert there.level is Level.NOTE
    assert there.found == "Orin"
    assert "`device`" in there.advice


def test_too_little_shared_memory_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    small = SimpleNamespace(free=64 << 20, total=64 << 20)
    monkeypatch.setattr("shutil.disk_usage", lambda _: small)
    (finding,) = check_shared_memory()
    assert finding.level is Level.BROKEN
    assert "--shm-size" in finding.advice


def test_the_command_reports_as_json_and_by_its_exit_code() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kestrel", "doctor", "--no-graph", "--json"], capture_output=True, text=True
    )
    report = json.loads(done.stdout)
    levels = [finding["level"] for finding in report["findings"]]
    assert report["figures"]["broken"]["value"] == levels.count("broken")
    assert done.returncode == (1 if "broken" in levels else 0)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_torch_that_cannot_be_imported_is_said(tmp_path: Path, options: list[str]) -> None:
    broken = tmp_path / "torch"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise OSError('libtorch_cpu.so: cannot open shared object file')")
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "kestrel", "doctor", "--no-graph", *options],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 1, done.stderr
    assert "cannot be imported: libtorch_cpu.so" in done.stdout.replace("\n", " ")
    assert "Traceback" not in done.stderr
