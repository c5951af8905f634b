# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Points on the vehicle itself reach no network; the answers say where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sensor_msgs.msg import PointCloud2

from kestrel.classes import IGNORE
from kestrel.data.cloud_layout import structured
from kestrel.data.own_vehicle import NO_BOX, OwnVehicle
from kestrel.errors import ConfigError
from kestrel.types import PointCloud
from kestrel_nodes.fusion_parameters import FusionParameters
from kestrel_nodes.segmentation import SegmentationParameters
from tests.ros.fusion_rig import Rig
from tests.ros.graph import Graph
from tests.ros.messages import cloud, timed_cloud
from tests.ros.stand_ins import CAR, ROAD, Segmentation

ROOF = [-1.0, -1.0, 0.0, 3.0, 1.0, 2.0]
BASE_FROM_LIDAR = np.array([[0, -1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]], float)
"""A LiDAR 1 m ahead of the origin and 2 m above it, turned to the left."""


def test_the_box_stands_in_the_frame_of_the_vehicle_and_includes_its_faces() -> None:
    points = np.array([[0, 0, -0.1, 0], [0, -2, 0, 0], [0, -2.1, -0.1, 0], [0.9, 0, 0.1, 0]], np.float32)
    own = OwnVehicle(tuple(ROOF)).holds(PointCloud(points, 1, "lidar"), BASE_FROM_LIDAR)
    assert own.tolist() == [True, True, False, False]
    assert not NO_BOX.holds(PointCloud(points, 1, "lidar"), BASE_FROM_LIDAR).any()


@pytest.mark.parametrize("kind", [FusionParameters, SegmentationParameters])
@pytest.mark.parametrize(
    "box", [(1.0,), (-1.0, -1.0, 0.0, 3.0, 1.0), (-1.0, -1.0, 0.0, 3.0, -1.0, 2.0)], ids=len
)
def test_a_box_without_a_volume_is_refused(kind: type, box: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"own_vehicle_box_m: .*x_min"):
        kind(own_vehicle_box_m=box)


def test_the_vehicles_of_nuscenes_are_known() -> None:
    """Their LiDAR stands on the roof and measures the rack below it a thousand times a sweep."""
    rig = yaml.safe_load((Path(__file__).parents[2] / "config/rigs/nuscenes.param.yaml").read_text())
    for node in ("fusion", "segmentation"):
        vehicle = OwnVehicle(tuple(rig[node]["ros__parameters"]["own_vehicle_box_m"]))
        rack = PointCloud(np.array([[0.2, 0.4, 1.9, 0.1], [6, 0, 0.5, 0.1]], np.float32), 1, "base_link")
        assert vehicle.holds(rack, np.eye(4)).tolist() == [True, False]


def test_fusion_leaves_them_out_of_every_sweep_and_counts_them_once(graph: Graph) -> None:
    rig = Rig(graph, cameras=[""], own_vehicle_box_m=ROOF).ready()
    for at_ms in (100, 200, 300):
        rig.say_odometry(at_ms, (at_ms / 100, 0, 0))
        rig.deliver(rig.lidar, cloud([[0.5, 0.5, -0.5, 0.2], [8.0, 0.0, -1.0, 0.3]], at_ms), "points")
        rig.answer(at_ms)
    frame = rig.frames[-1]
    assert len(frame.sweeps) == 2
    for sweep in (frame.cloud, *frame.sweeps):
        assert sweep is not None
        assert sweep.points[:, 3].tolist() == [np.float32(0.3)]
    view = graph.await_status("fusion: input/points", lambda s: s.count("answered") == 3, "three answers")
    assert view.count("own_points") == 3


def test_they_are_found_before_the_motion_within_a_sweep_is_undone(graph: Graph) -> None:
    """At 30 m/s what was measured on the roof 0.1 s after the stamp would be put 3 m ahead of it."""
    rig = Rig(graph, cameras=[""], own_vehicle_box_m=ROOF).ready()
    for tick in range(15):
        rig.say_odometry(tick * 20, (0.6 * tick, 0, 0))
    rig.deliver(rig.lidar, timed_cloud([[1.0, 0, -0.5], [20.0, 0, 1.0]], [0.1, 0.0], 100), "points")
    rig.answer(100)
    np.testing.assert_allclose(rig.frames[0].cloud.points[:, 0], [20], atol=1e-4)


class Labels:
    """A segmentation node that knows its vehicle, and what it answers to three points of which one is own."""

    points = ([0.5, 0.5, 1.5, 0.2], [6.0, -1.0, 1.0, 0.9], [7.0, 0.0, 0.1, 0.5])

    def __init__(self, graph: Graph, topic: str, **parameters: Any) -> None:
        options = {"base_frame": "", "own_vehicle_box_m": ROOF} | parameters
        self.node = graph.add(Segmentation, "segmentation", **options)
        publisher = graph.publisher(PointCloud2, "/segmentation/input/points")
        answers = graph.collect(PointCloud2, topic)
        publisher.publish(cloud(list(self.points)))
        graph.until(lambda: answers, "an answer")
        self.answer = structured(answers[0])


def test_segmentation_gives_them_no_class_and_keeps_them_in_their_place(graph: Graph) -> None:
    labels = Labels(graph, "/segmentation/output/points")
    assert labels.answer["class_id"].tolist() == [IGNORE, CAR, ROAD]
    assert labels.answer["probability"].tolist() == [0.0, 0.75, 0.75]
    assert labels.answer["x"].tolist() == [0.5, 6.0, 7.0]
    assert labels.node.segmenter.clouds[-1].points[:, 0].tolist() == [6.0, 7.0]
    graph.await_status("segmentation: input/points", lambda s: s.count("own_points") == 1, "one own point")


@pytest.mark.parametrize("classes", [{"removed_classes": ["car"]}, {"kept_classes": ["driveable_surface"]}])
def test_the_filtered_cloud_is_without_them(graph: Graph, classes: dict[str, list[str]]) -> None:
    labels = Labels(graph, "/segmentation/output/points_filtered", **classes)
    assert labels.answer["x"].tolist() == [7.0]


def test_a_cloud_of_nothing_else_is_answered_and_said(graph: Graph) -> None:
    node = graph.add(Segmentation, "segmentation", base_frame="", own_vehicle_box_m=ROOF)
    publisher = graph.publisher(PointCloud2, "/segmentation/input/points")
    answers = graph.collect(PointCloud2, "/segmentation/output/points")
    publisher.publish(cloud([[0.5, 0.5, 1.5, 0.2]] * 2))
    graph.until(lambda: answers, "an answer")
    assert structured(answers[0])["class_id"].tolist() == [IGNORE, IGNORE]
    assert len(node.segmenter.clouds[-1]) == 0
    graph.await_status(
        "segmentation: input/points", lambda s: "of the vehicle itself" in s.message, "a warning"
    )
