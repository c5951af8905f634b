# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The fusion node over real ROS while the vehicle moves: sweeps, tracks, frames, jumps of time."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import numpy as np
import pytest
from nav_msgs.msg import OccupancyGrid
from scipy.spatial.transform import Rotation
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import Marker, MarkerArray

from kestrel.data.cloud_reader import read_cloud
from kestrel_nodes import fusion
from kestrel_nodes.collector import Collector
from kestrel_nodes.fusion import FusionNode
from kestrel_nodes.stamps import stamp_ns
from kestrel_nodes.worker import Job
from tests.ros.fusion_rig import ERROR, OPTICAL, POINTS, WARN, FixedDetector, Rig, transform
from tests.ros.graph import Graph
from tests.ros.messages import MILLISECOND, START_NS, cloud, timed_cloud


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
    pose = rig.frames[-1].fixed_from_reference
    np.testing.assert_allclose(pose[:3, 3], (3, 0, 0), atol=1e-6)
    np.testing.assert_allclose(pose[:3, :3], now.as_matrix(), atol=1e-4)
    graph.await_status("fusion: output", lambda s: s.values.get("map") == "of all frames", "maps of all")


def test_earlier_sweeps_lie_as_far_apart_as_the_network_wants_and_each_is_decoded_once(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spaced(FixedDetector):
        sweep_s = 0.2

    class SpacedFusion(FusionNode):
        def load(self, device: str) -> Any:
            return Spaced()

    decoded = []

    def read(message: Any, **options: Any) -> Any:
        decoded.append(stamp_ns(message.header.stamp))
        return read_cloud(message, **options)

    monkeypatch.setattr("kestrel_nodes.fusion_frame.read_cloud", read)
    rig = Rig(graph, SpacedFusion, cameras=[""]).ready()
    for at_ms in range(50, 1050, 50):  # as fast as the fastest
        rig.say_odometry(at_ms)
        rig.sense(at_ms)
        rig.answer(at_ms)
    ages = [(rig.frames[-1].stamp_ns - sweep.stamp_ns) // MILLISECOND for sweep in rig.frames[-1].sweeps]
    assert ages == [200, 400]
    assert len(rig.frames) == len(decoded) == len(set(decoded)) == 20
    assert len(rig.node.builder._sweeps) <= 9


def test_points_of_the_vehicle_itself_do_not_trail_behind_it(graph: Graph) -> None:
    """Where the network was trained without them, points close to their sensor are not taken along."""

    class Particular(FixedDetector):
        remove_close_m = 1.0

    class ParticularFusion(FusionNode):
        def load(self, device: str) -> Any:
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


def test_objects_keep_their_ids_while_odometry_is_late_for_less_than_a_track_lives(graph: Graph) -> None:
    rig = Rig(graph, cameras=[""], tf_tolerance_s=0.0, track_memory_s=0.5).ready()
    ids = []
    for at_ms in (100, 200, 300, 400, 1000, 1100):
        if at_ms not in (300, 1000, 1100):
            rig.say_odometry(at_ms, (0.0, 0.0, 0.0))
        rig.sense(at_ms)
        ids.append(rig.answer(at_ms).objects[0].track_id)
        if at_ms == 300:
            graph.await_status(
                "fusion: output", lambda s: s.values.get("tracks", "").endswith("wait for odom"), "waiting"
            )
    # Then tracks begin anew in the frame of the vehicle.
    assert ids == [0, 0, -1, 0, 1, 1]
    graph.await_status("fusion: output", lambda s: s.values.get("tracks", "").endswith("base_link"), "tracks")


def test_a_camera_that_leads_answers_in_the_order_of_the_stamps_when_the_lidar_comes_back(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a frame is in work for long, one of the LiDAR and one of a camera come to wait."""
    now_ns = 10**12
    monkeypatch.setattr(fusion, "Collector", partial(Collector, clock=lambda: now_ns))
    rig = Rig(graph, lost_after_s=0.3).ready()
    rig.sense(100)
    rig.answer(100)
    gate = threading.Event()
    rig.node.worker.submit("something that takes long", Job(gate.wait))
    rig.sense(200)
    for at_ms in (600, 1000):
        now_ns += 350 * MILLISECOND
        rig.sense(at_ms, *rig.cameras)
    rig.sense(1100, "lidar")
    now_ns += 400 * MILLISECOND
    graph.until(lambda: not rig.node.collector.pending, "the end of the waiting for images")
    gate.set()
    rig.answer(1100)
    rig.sense(1200, "lidar")  # behind whatever still waited
    rig.answer(1200)
    stamps = [frame.stamp_ns for frame in rig.frames]
    assert stamps == sorted(stamps)


def test_motion_within_a_sweep_is_undone(graph: Graph) -> None:
    rig = Rig(graph, cameras=[""]).ready()
    for tick in range(15):
        rig.say_odometry(tick * 20, (0.2 * tick, 0, 0))
    rig.deliver(rig.lidar, timed_cloud([[20.0, 0.0, 1.0]] * 2, [0.0, 0.1], 100), "points")
    rig.answer(100)
    # 10 m/s: what was measured 0.1 s after the stamp is 1 m further away from where the vehicle was.
    np.testing.assert_allclose(rig.frames[0].cloud.points[:, 0], (20, 21), atol=1e-4)
    graph.await_status("fusion: calibration", lambda s: s.values.get("deskew") == "on", "on")


def test_a_camera_is_where_it_was_when_it_took_its_picture(graph: Graph) -> None:
    rig = Rig(graph, sensor_offsets_s=[0.0, 0.0, 0.02]).ready()
    for tick in range(7):  # 10 m/s; it is known until 20 ms after the sweep
        rig.say_odometry(tick * 20, (0.2 * tick, 0, 0))
    rig.sense(60, "front")
    rig.sense(140, "back")
    rig.sense(100, "lidar")
    rig.answer(100)
    at = {name: item.reference_from_camera[:3, 3] for name, item in rig.frames[0].calibrations.items()}
    # Mounted at 1.5 m and at -1 m; the stamp of the second is 20 ms ahead of its picture.
    np.testing.assert_allclose(at["front"], (1.5 - 0.4, 0, 1.5), atol=1e-6)
    np.testing.assert_allclose(at["back"], (-1 + 0.2, 0, 1.5), atol=1e-6)
    graph.await_status("fusion: calibration", lambda s: s.level == 0 and s.values.get("changes") == "0", "OK")


def test_without_odometry_cameras_count_as_where_they_are_and_that_is_said(graph: Graph) -> None:
    rig = Rig(graph).ready()
    rig.sense(60, "front", "back")
    rig.sense(100, "lidar")
    rig.answer(100)
    place = rig.frames[0].calibrations["front"].reference_from_camera[:3, 3]
    np.testing.assert_allclose(place, (1.5, 0, 1.5), atol=1e-6)
    text = "motion between sweep and pictures is not undone: transform odom <- base_link"
    graph.await_status("fusion: calibration", lambda s: s.level == WARN and text in s.message, "WARN")


def test_without_odometry_single_sweeps_are_used_and_that_is_said(graph: Graph) -> None:
    rig = Rig(graph, cameras=[""]).ready()
    for at_ms in (100, 200):
        rig.sense(at_ms)
        rig.answer(at_ms)
    assert rig.frames[1].sweeps == ()
    assert rig.frames[1].fixed_from_reference is None
    graph.await_status("fusion: output", lambda s: s.values.get("map") == "of its frame alone", "said")
    text = "earlier sweeps are left out: transform odom <- base_link"
    graph.await_status("fusion: calibration", lambda s: s.level == WARN and text in s.message, "WARN")


def test_jump_back_in_time_starts_anew_with_the_first_frame(graph: Graph) -> None:
    rig = Rig(graph).ready()
    for at_ms in (60_000, 60_100):
        rig.say_odometry(at_ms)
        rig.sense(at_ms)
        rig.answer(at_ms)
    resets = rig.node.detector.resets
    for at_ms in (0, 100):
        rig.say_odometry(at_ms)
        rig.sense(at_ms)
    assert rig.answer(100).sensors_missing == []
    times = [sweep.stamp_ns - START_NS for sweep in rig.frames[-1].sweeps]
    assert times == [0], "the one since the jump, none from before it"
    assert rig.node.detector.resets > resets
    assert graph.status("fusion: sync").count("time_jumps") > 0 or graph.await_status(
        "fusion: sync", lambda s: s.count("time_jumps") > 0, "the jump"
    )


def test_tracks_of_before_a_jump_back_are_not_waited_for(graph: Graph) -> None:
    rig = Rig(graph, cameras=[""]).ready()
    rig.say_odometry(60_000)
    rig.sense(60_000)
    assert rig.answer(60_000).objects[0].track_id == 0
    for at_ms in (0, 100):  # and no odometry any more
        rig.sense(at_ms)
    assert rig.answer(100).objects[0].track_id >= 0


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
