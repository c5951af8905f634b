# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The fusion node over real ROS: what it publishes and how it is configured."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nav_msgs.msg import OccupancyGrid
from rclpy.lifecycle import TransitionCallbackReturn
from sensor_msgs.msg import Image
from visualization_msgs.msg import Marker, MarkerArray

from kestrel.classes import MAP_LAYERS
from kestrel.types import SensorFrame
from kestrel_nodes.fusion import FusionNode
from kestrel_nodes.stamps import stamp_message
from tests.pipelines.test_bevfusion import write_weights
from tests.ros.fusion_rig import CAMERAS, ERROR, Fusion, Rig, UntrainedFusion
from tests.ros.graph import Graph
from tests.ros.messages import MILLISECOND, START_NS, header

INPUTS = ("fusion: input/points", *(f"fusion: input/{name}/image/compressed" for name in CAMERAS))


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


def test_nothing_is_computed_that_nobody_wants(graph: Graph) -> None:
    rig = Rig(graph).ready()
    for subscription in list(graph.node.subscriptions):
        if subscription.topic_name == "/fusion/output/objects":
            graph.node.destroy_subscription(subscription)
    graph.until(lambda: not rig.node.objects.wanted, "nobody to listen")
    rig.sense(100)
    for topic in INPUTS:
        graph.await_status(topic, lambda s: s.count("unwanted") == 1, "an unwanted message")
    assert not rig.frames


def test_every_message_of_a_frame_that_gave_way_is_counted(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(graph).ready()
    busy, go_on = threading.Event(), threading.Event()
    detect = rig.node.detector.detect

    def slow(frame: SensorFrame) -> Any:
        busy.set()
        assert go_on.wait(20)
        return detect(frame)

    monkeypatch.setattr(rig.node.detector, "detect", slow)
    rig.sense(100)
    graph.until(busy.is_set, "the first frame in the network")
    for at_ms in (200, 300):
        rig.sense(at_ms)
    graph.await_status(INPUTS[0], lambda s: s.count("superseded") == 1, "the second sweep to give way")
    go_on.set()
    rig.answer(300)
    for topic in INPUTS:
        view = graph.await_status(topic, lambda s: s.count("answered") == 2, "two answers")
        assert (view.count("received"), view.count("superseded")) == (3, 1)


@pytest.mark.parametrize("next_ms", [200, -60_000], ids=["later", "time set back meanwhile"])
def test_messages_end_as_answered_after_deactivation_too(graph: Graph, next_ms: int) -> None:
    rig = Rig(graph).ready()
    rig.sense(100)
    rig.answer(100)
    assert rig.node.trigger_deactivate() is TransitionCallbackReturn.SUCCESS
    assert rig.node.trigger_activate() is TransitionCallbackReturn.SUCCESS
    graph.until(lambda: rig.lidar.get_subscription_count() > 0, "the subscription")
    graph.until(lambda: all(p.get_subscription_count() > 0 for p in rig.images.values()), "subscriptions")
    rig.sense(next_ms)
    assert rig.answer(next_ms).modality == "camera+lidar"
    view = graph.await_status("fusion: input/points", lambda s: s.count("answered") == 2, "two answers")
    assert view.count("received") == 2


def test_what_took_part_in_no_frame_stays_counted_over_a_deactivation(graph: Graph) -> None:
    rig = Rig(graph).ready()
    rig.sense(100, "front")
    assert rig.node.trigger_deactivate() is TransitionCallbackReturn.SUCCESS
    assert rig.node.trigger_activate() is TransitionCallbackReturn.SUCCESS
    view = graph.await_status("fusion: sync", lambda s: "front: reset" in s.values, "the unused image")
    assert view.count("front: reset") == 1


def test_a_bug_in_the_network_leaves_no_message_uncounted(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(frame: Any) -> Any:
        raise RuntimeError("a bug in the network")

    rig = Rig(graph).ready()
    monkeypatch.setattr(rig.node.detector, "detect", fail)
    rig.sense(100)
    for topic in INPUTS:
        view = graph.await_status(topic, lambda s: s.count("rejected") == 1, "a rejected message")
        assert view.count("received") == 1


@pytest.mark.parametrize(
    ("folder", "reason"), [("", "engine int8: expected a folder"), ("/none", "int8 models /none")]
)
def test_int8_without_its_models_fails_at_configure(graph: Graph, folder: str, reason: str) -> None:
    node = graph.add(FusionNode, "fusion", active=False, engine="int8", int8_folder=folder)
    assert node.trigger_configure() is TransitionCallbackReturn.FAILURE
    graph.await_status("fusion: life cycle", lambda s: s.level == ERROR and reason in s.message, reason)


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
    assert tuple(grids) == MAP_LAYERS
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
