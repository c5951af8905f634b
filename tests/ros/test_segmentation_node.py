# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The segmentation node over real ROS: answers, and every malformed cloud."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage
from vision_msgs.msg import LabelInfo

from kestrel.classes import IGNORE, POINT_CLASSES, POINT_COLOURS, SEMANTIC_KITTI_CLASSES
from kestrel.data.cloud_layout import structured
from kestrel.errors import ConfigError, ModelError
from kestrel.pipelines.released_segmenter import ReleasedSegmenter
from kestrel.pipelines.segmentation import PointSegmenter
from kestrel.types import PointCloud
from kestrel_nodes.qos import LATCHED
from kestrel_nodes.segmentation import (
    SegmentationNode,
    SegmentationParameters,
    class_indices,
    point_colour,
)
from kestrel_nodes.transforms import DYNAMIC_QOS, STATIC_QOS
from tests.pipelines.test_released_segmenter import weights_file
from tests.ros.graph import Graph
from tests.ros.messages import cloud, cloud_of, fill, header, timed_cloud
from tests.ros.stand_ins import CAR, ROAD, Segmentation

POINTS = [[5.0, 1.0, 0.0, 0.2], [6.0, -1.0, 1.0, 0.9], [7.0, 0.0, 0.1, 0.5]]
STATUS = "segmentation: input/points"


class Rig:
    """A segmentation node, a publisher of clouds and the labelled clouds that came back."""

    def __init__(self, graph: Graph, **parameters: object) -> None:
        self.graph = graph
        self.node = graph.add(Segmentation, "segmentation", **{"base_frame": "", **parameters})
        self.publisher = graph.publisher(PointCloud2, "/segmentation/input/points")
        self.answers = graph.collect(PointCloud2, "/segmentation/output/points")

    def answer_to(self, message: PointCloud2) -> PointCloud2:
        before = len(self.answers)
        self.publisher.publish(message)
        self.graph.until(lambda: len(self.answers) > before, "an answer")
        return self.answers[-1]

    def assert_recovers(self, at_ms: int) -> None:
        """The next good cloud is answered and ends what was said of the last."""
        answer = self.answer_to(cloud(POINTS, at_ms))
        assert answer.header == header(at_ms)
        self.graph.await_status(STATUS, lambda view: view.sound, "no word of it after a good cloud")


@pytest.fixture
def rig(graph: Graph) -> Rig:
    return Rig(graph)


def test_every_point_gets_its_class_in_the_order_and_with_the_header_of_the_input(rig: Rig) -> None:
    answer = rig.answer_to(cloud(POINTS, at_ms=40))
    table = structured(answer)
    assert answer.header == header(40)
    assert [field.name for field in answer.fields] == ["x", "y", "z", "class_id", "probability"]
    assert table["class_id"].tolist() == [ROAD, CAR, ROAD]
    assert table["x"].tolist() == [5.0, 6.0, 7.0]
    assert table["probability"].tolist() == [0.75] * 3


def test_the_coloured_cloud_carries_the_palette(graph: Graph, rig: Rig) -> None:
    coloured = graph.collect(PointCloud2, "/segmentation/output/points_coloured")
    rig.publisher.publish(cloud(POINTS))
    graph.until(lambda: coloured, "a coloured cloud")
    rgb = structured(coloured[0])["rgb"].copy().view(np.uint32)
    red, green, blue = POINT_COLOURS["car"]
    assert rgb[1] == red << 16 | green << 8 | blue
    assert rgb[0] == rgb[2] != rgb[1]


def velodyne(points: list[list[float]]) -> np.ndarray:
    """The same points with the fields, padding and byte order of another driver."""
    kind = {"names": ["x", "y", "z", "ring", "time"], "formats": [">f4", ">f4", ">f4", ">u2", ">f8"]}
    table = np.zeros(len(points), np.dtype({**kind, "offsets": [0, 4, 8, 16, 24], "itemsize": 40}))
    for index, row in enumerate(points):
        table[index] = (*row[:3], index, index / 1000)
    return table


def filtered(graph: Graph, points: list[list[float]], **parameters: object) -> PointCloud2:
    """What the filter of a node with ``parameters`` lets through."""
    rig = Rig(graph, **parameters)
    found = graph.collect(PointCloud2, "/segmentation/output/points_filtered")
    rig.publisher.publish(cloud_of(velodyne(points)))
    graph.until(lambda: found, "a filtered cloud")
    return found[0]


def test_the_filtered_cloud_is_the_input_without_the_removed_classes_in_its_own_layout(graph: Graph) -> None:
    nan = [float("nan"), 0.0, 0.0, 0.0]
    answer = filtered(graph, [*POINTS, nan, POINTS[1]], removed_classes=["driveable_surface"])
    assert answer.point_step == 40
    assert answer.is_bigendian
    assert [field.name for field in answer.fields] == ["x", "y", "z", "ring", "time"]
    table = structured(answer)
    assert table["ring"].tolist() == [1, 4]
    assert table["time"].tolist() == [0.001, 0.004]


def test_the_filtered_cloud_can_hold_the_chosen_classes_alone(graph: Graph) -> None:
    answer = filtered(graph, POINTS, kept_classes=["driveable_surface"])
    assert structured(answer)["ring"].tolist() == [0, 2]


def test_points_without_a_class_are_not_removed_and_not_kept(graph: Graph) -> None:
    points = [[float(i), 0.0, 0.0, 0.0] for i in range(20)]
    answer = filtered(graph, points, removed_classes=["driveable_surface"], capacity=5)
    assert answer.width == 15


def test_a_filter_with_an_unknown_class_or_two_ways_at_once_is_refused() -> None:
    with pytest.raises(ConfigError, match="kept_classes"):
        SegmentationParameters(removed_classes=("car",), kept_classes=("bus",))
    with pytest.raises(ConfigError, match=r"removed_classes: .*'tram'"):
        class_indices("removed_classes", ("tram",), POINT_CLASSES)


def test_label_info_reaches_a_late_subscriber(graph: Graph, rig: Rig) -> None:
    infos = graph.collect(LabelInfo, "/segmentation/output/label_info", LATCHED)
    graph.until(lambda: infos, "the label info")
    assert tuple(entry.class_name for entry in infos[0].class_map) == POINT_CLASSES
    assert infos[0].header == Header(), "it is about no moment and no place"


def test_an_empty_cloud_is_answered_with_an_empty_cloud_and_counted(graph: Graph, rig: Rig) -> None:
    answer = rig.answer_to(cloud([], at_ms=10))
    assert answer.is_dense
    assert (answer.width * answer.height, len(answer.data)) == (0, 0)
    graph.await_status(STATUS, lambda view: view.count("empty_clouds") == 1, "one empty cloud")


def test_points_that_are_not_finite_stay_in_place_without_a_class(graph: Graph, rig: Rig) -> None:
    nan, inf = float("nan"), float("inf")
    answer = rig.answer_to(cloud([POINTS[1], [nan, 0, 0, 0], [inf, 0, 0, 0], [1e30, 0, 0, 0], POINTS[0]]))
    assert structured(answer)["class_id"].tolist() == [CAR, IGNORE, IGNORE, IGNORE, ROAD]
    assert not answer.is_dense, "PCL looks for points that are not finite only where this says so"
    view = graph.await_status(STATUS, lambda view: view.count("invalid_points") == 2, "two invalid points")
    assert view.count("far_points") == 1


def test_a_cloud_of_nothing_but_nan_is_answered_and_reported(graph: Graph, rig: Rig) -> None:
    answer = rig.answer_to(cloud([[float("nan")] * 4] * 3, at_ms=10))
    assert structured(answer)["class_id"].tolist() == [IGNORE] * 3
    view = graph.await_status(STATUS, lambda view: view.said("no usable point", 1), "WARN")
    assert view.count("invalid_points") == 3
    rig.assert_recovers(20)


def broken_clouds() -> list[tuple[str, PointCloud2, str]]:
    truncated = cloud(POINTS)
    fill(truncated, bytes(truncated.data)[:-7])
    too_long = cloud(POINTS)
    fill(too_long, bytes(too_long.data) + b"12345")
    no_step = cloud(POINTS)
    no_step.point_step = 0
    outside = cloud(POINTS)
    outside.fields[2].offset = 14
    overlap = cloud(POINTS)
    overlap.fields[1].offset = 2
    unknown = cloud(POINTS)
    unknown.fields[0].datatype = 42
    no_count = cloud(POINTS)
    no_count.fields[0].count = 0
    doubled = cloud(POINTS)
    doubled.fields[1].name = "x"
    row_step = cloud(POINTS)
    row_step.row_step = 5
    no_x = cloud_of(np.zeros(4, np.dtype([("y", "<f4"), ("z", "<f4")])))
    integers = cloud_of(np.zeros(4, np.dtype([("x", "<i4"), ("y", "<i4"), ("z", "<i4")])))
    huge = cloud(POINTS)
    huge.width = 4_000_000_000
    huge.height = 4_000_000_000
    return [
        ("truncated", truncated, "cloud data"),
        ("too long", too_long, "cloud data"),
        ("point_step 0", no_step, "point_step"),
        ("field beyond point_step", outside, "cloud field 'z'"),
        ("overlapping fields", overlap, "overlap"),
        ("unknown datatype", unknown, "datatype"),
        ("count 0", no_count, "count"),
        ("doubled field", doubled, "unique names"),
        ("row_step too small", row_step, "row_step"),
        ("no x", no_x, "cloud field 'x'"),
        ("integer coordinates", integers, "cloud field 'x'"),
        ("absurd size", huge, "row_step"),
    ]


def test_each_malformed_cloud_is_rejected_with_its_reason_and_the_next_good_one_answered(
    graph: Graph, rig: Rig
) -> None:
    for number, (name, message, reason) in enumerate(broken_clouds()):
        at_ms = 100 * number
        message.header = header(at_ms)
        rig.publisher.publish(message)
        view = graph.await_status(
            STATUS,
            lambda view, reason=reason: view.level == 2 and reason in view.message,
            f"{name}: {reason}",
        )
        assert view.count("rejected") == number + 1, name
        rig.assert_recovers(at_ms + 50)
    assert len(rig.answers) == len(broken_clouds())


def test_a_cloud_without_intensity_is_used_and_says_so(graph: Graph, rig: Rig) -> None:
    table = np.zeros(2, np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4")]))
    assert rig.answer_to(cloud_of(table)).width == 2
    graph.await_status(STATUS, lambda view: view.said("no intensity field", 1), "WARN")


def test_a_cloud_above_the_capacity_is_thinned_and_says_so(graph: Graph) -> None:
    rig = Rig(graph, capacity=10)
    answer = rig.answer_to(cloud([[float(i), 0.0, 1.0, 0.5] for i in range(100)]))
    classes = structured(answer)["class_id"]
    assert (classes == CAR).sum() == 10
    assert (classes == IGNORE).sum() == 90
    graph.await_status(STATUS, lambda view: view.said("beyond the capacity", 1), "WARN")


def test_without_a_transform_the_frames_are_named_and_with_it_the_cloud_is_moved(graph: Graph) -> None:
    rig = Rig(graph, base_frame="base_link")
    rig.publisher.publish(cloud(POINTS, 10))
    view = graph.await_status("segmentation: calibration", lambda view: view.level == 2, "ERROR")
    assert "base_link" in view.message
    assert "lidar" in view.message
    transform = TransformStamped(header=header(0, "base_link"), child_frame_id="lidar")
    transform.transform.translation.z = 1.8
    transform.transform.rotation.w = 1.0
    static = graph.publisher(TFMessage, "/tf_static", STATIC_QOS)
    static.publish(TFMessage(transforms=[transform]))
    graph.until(lambda: rig.node.inputs["/tf_static"].concern.counted("received"), "the transform")
    answer = rig.answer_to(cloud(POINTS, 20))
    assert answer.header.frame_id == "lidar"
    assert structured(answer)["z"].tolist() == pytest.approx([0.0, 1.0, 0.1])
    moved = rig.node.segmenter.clouds[-1]
    assert moved.frame_id == "base_link"
    assert moved.points[:, 2] == pytest.approx([1.8, 2.8, 1.9])
    graph.await_status("segmentation: calibration", lambda view: view.level == 0, "OK")


def test_motion_within_a_sweep_is_undone_for_the_network_and_not_in_the_answer(graph: Graph) -> None:
    rig = Rig(graph)
    moving = timed_cloud([[20.0, 0.0, 1.0]] * 2, [0.0, 0.1], 100)
    assert structured(rig.answer_to(moving))["x"].tolist() == [20, 20]
    text = "the sweep is not deskewed: transform odom <- lidar"
    status = "segmentation: calibration"
    graph.await_status(status, lambda view: view.level == 1 and text in view.message, "WARN")
    publisher = graph.publisher(TFMessage, "/tf", DYNAMIC_QOS)
    for tick in range(20):
        pose = TransformStamped(header=header(20 * tick, "odom"), child_frame_id="lidar")
        pose.transform.translation.x = 0.2 * tick
        pose.transform.rotation.w = 1.0
        publisher.publish(TFMessage(transforms=[pose]))
    graph.until(lambda: rig.node.inputs["/tf"].concern.counted("received") == 20, "the odometry")
    moving.header = header(200)
    assert structured(rig.answer_to(moving))["x"].tolist() == [20, 20]
    assert rig.node.segmenter.clouds[-1].points[:, 0] == pytest.approx([20, 21], abs=1e-4)
    graph.await_status(status, lambda view: view.level == 0 and view.values["deskew"] == "on", "OK")


def test_a_network_that_answers_nan_is_an_error_of_the_model_until_it_answers_again(
    graph: Graph, rig: Rig
) -> None:
    rig.node.gate.error = ModelError("output of Kestrel-Seg: expected finite values, found 3 of 9 not finite")
    rig.publisher.publish(cloud(POINTS, 10))
    graph.await_status("segmentation: model", lambda view: view.said("not finite", 2), "ERROR")
    assert not rig.answers
    rig.node.gate.error = None
    rig.assert_recovers(20)
    graph.await_status("segmentation: model", lambda view: view.level < 2, "no ERROR")


def test_the_real_network_answers_through_the_node(graph: Graph) -> None:
    class Untrained(SegmentationNode):
        def load(self, device: str) -> PointSegmenter:
            return PointSegmenter.untrained()

    graph.add(Untrained, "segmentation", base_frame="")
    publisher = graph.publisher(PointCloud2, "/segmentation/input/points")
    answers = graph.collect(PointCloud2, "/segmentation/output/points")
    points = np.random.default_rng(0).uniform(-20, 20, (500, 4)) * [1, 1, 0.05, 0.02]
    publisher.publish(cloud(np.abs(points).tolist()))
    graph.until(lambda: answers, "an answer")
    table = structured(answers[0])
    assert (table["class_id"] < len(POINT_CLASSES)).any()
    assert (table["probability"] > 0).any()
    graph.await_status("segmentation: model", lambda view: view.said("weights are random", 1), "WARN")


def test_a_converted_network_gets_sweeps_at_the_place_of_the_lidar(graph: Graph, tmp_path: Path) -> None:
    weights = weights_file(tmp_path)
    node = graph.add(SegmentationNode, "segmentation", weights=str(weights), deskew=False)
    publisher = graph.publisher(PointCloud2, "/segmentation/input/points")
    answers = graph.collect(PointCloud2, "/segmentation/output/points")
    infos = graph.collect(LabelInfo, "/segmentation/output/label_info", LATCHED)
    turned = TransformStamped(header=header(0, "base_link"), child_frame_id="lidar")
    turned.transform.translation.z = 1.8
    turned.transform.rotation.z = 1.0  # half a turn
    turned.transform.rotation.w = 0.0
    static = graph.publisher(TFMessage, "/tf_static", STATIC_QOS)
    static.publish(TFMessage(transforms=[turned]))
    graph.until(lambda: node.inputs["/tf_static"].concern.counted("received"), "the transform")

    points = np.random.default_rng(0).uniform((2, 2, -1.7, 0), (9, 9, 0, 1), (800, 4)).astype(np.float32)
    publisher.publish(cloud(points.tolist()))
    graph.until(lambda: answers and infos, "an answer")

    ahead = PointCloud(points * np.float32([-1, -1, 1, 1]), 0, "base_link")
    wanted = ReleasedSegmenter(weights).segment(ahead)
    assert structured(answers[0])["probability"] == pytest.approx(wanted.probability, abs=1e-4)
    assert tuple(entry.class_name for entry in infos[0].class_map) == SEMANTIC_KITTI_CLASSES


def test_classes_of_semantickitti_have_the_colours_of_their_nearest() -> None:
    assert point_colour("road") == POINT_COLOURS["driveable_surface"]
    assert point_colour("car") == POINT_COLOURS["car"]
    assert len({point_colour(name) for name in SEMANTIC_KITTI_CLASSES}) >= 9
