# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Where the vehicle was and where its sensors sit, of trees of frames as robots have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from kestrel.data import messages
from kestrel.data.bag import BagReader, BagWriter
from kestrel.data.recorded_transforms import RecordedTransforms
from kestrel.data.transform_buffer import TransformBuffer
from kestrel.errors import CalibrationError
from kestrel.types import Float64Array, PointCloud

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
PERIOD = SECOND // 50
NOW, THEN = START + 2 * SECOND, START + 2 * SECOND - 400_000_000


def moved_by(x: float = 0.0, z: float = 0.0, pitch_deg: float = 0.0) -> Float64Array:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("y", pitch_deg, degrees=True).as_matrix()
    pose[0, 3], pose[2, 3] = x, z
    return pose


def ahead(stamp: int) -> Float64Array:
    """Return a pose on a straight way at 10 m/s."""
    return moved_by(x=10 * (stamp - START) / SECOND)


def on_ground(stamp: int) -> Float64Array:
    """Return how base_link sits on its footprint."""
    return moved_by(z=0.3)


def rocking(stamp: int) -> Float64Array:
    return moved_by(z=0.3, pitch_deg=2 * np.sin(9 * (stamp - START) / SECOND))


def turning(stamp: int) -> Float64Array:
    """Return the pose of a head that nods at 45 degrees a second."""
    return moved_by(x=1, z=1, pitch_deg=45 * (stamp - START) / SECOND)


Way = Callable[[int], Float64Array]


@dataclass
class Told:
    """What a recording of 4 s tells: ways by (parent, child), 50 times a second; fixed ones once.

    silent: seconds between which nothing is told.
    """

    tf: dict[tuple[str, str], Way] = field(default_factory=dict)
    fixed: dict[tuple[str, str], Way] = field(default_factory=dict)
    odometry: dict[tuple[str, str], Way] = field(default_factory=dict)
    silent: tuple[float, float] = (0.0, 0.0)

    def read(self, folder: Path) -> RecordedTransforms:
        with BagWriter(folder / "told.mcap") as bag:
            fixed = [
                messages.transform_message(way(START), *frames, START) for frames, way in self.fixed.items()
            ]
            bag.write("/tf_static", messages.tf_message(fixed), START)
            for stamp in range(START, START + 4 * SECOND + 1, PERIOD):
                if self.silent[0] < (stamp - START) / SECOND < self.silent[1]:
                    continue
                for frames, way in self.tf.items():
                    transform = messages.transform_message(way(stamp), *frames, stamp)
                    bag.write("/tf", messages.tf_message([transform]), stamp)
                for frames, way in self.odometry.items():
                    bag.write("/odometry", odometry(way(stamp), *frames, stamp), stamp)
        return RecordedTransforms(BagReader(folder / "told.mcap"))


def odometry(pose: Float64Array, frame: str, child: str, stamp: int) -> Any:
    message = messages.odometry_message(pose, stamp)
    message.header.frame_id, message.child_frame_id = frame, child
    return message


FOOT = ("odom", "base_footprint")
BODY = ("base_footprint", "base_link")


@pytest.mark.parametrize(
    "told",
    [
        Told(tf={("odom", "base_link"): ahead}),
        Told(tf={FOOT: ahead}, fixed={BODY: on_ground}),
        Told(tf={FOOT: ahead, BODY: on_ground}, odometry={("odom", "base_link"): ahead}),
        Told(tf={FOOT: ahead, BODY: on_ground, ("map", "odom"): rocking}),
        Told(tf={("map", "odom"): ahead}, fixed={("odom", "base_link"): on_ground}),
        Told(tf={("base_link", "odom"): lambda stamp: np.linalg.inv(ahead(stamp))}),
        Told(tf={("/world", "/base_link"): ahead}),
        Told(fixed={BODY: on_ground}, odometry={("odom", "base_link"): ahead}),
        Told(fixed={BODY: on_ground}, odometry={("odom", "base_footprint"): ahead}),
        Told(tf={BODY: on_ground}, odometry={("odom", "base_footprint"): ahead}),
        Told(fixed={("odom", "base_link"): on_ground}, odometry={("odom", "base_link"): ahead}),
        Told(fixed={("base_link", "lidar"): on_ground}, odometry={("/odom", "/base_link"): ahead}),
        Told(fixed={BODY: on_ground}, tf={("odom", "base_link"): ahead}),
    ],
    ids=lambda told: f"{[*told.tf]} {[*told.fixed]} {[*told.odometry]}",
)
def test_the_way_of_the_vehicle_is_that_of_base_link_through_all_frames(told: Told, tmp_path: Path) -> None:
    found = told.read(tmp_path)
    np.testing.assert_allclose(found.motion(NOW, THEN), moved_by(x=-4), atol=1e-6)
    assert found.vehicle_at(NOW) is not None
    assert found.vehicle_at(START - SECOND) is None


def test_base_link_that_rocks_is_where_the_buffer_of_the_nodes_has_it(tmp_path: Path) -> None:
    found = Told(tf={FOOT: ahead, BODY: rocking}).read(tmp_path)
    nodes = TransformBuffer()
    for stamp in range(START, START + 4 * SECOND + 1, PERIOD):
        for (parent, child), way in {FOOT: ahead, BODY: rocking}.items():
            transform = messages.transform_message(way(stamp), parent, child, stamp).transform
            nodes.add(parent, child, stamp, *messages.pose_from_message(transform))
    for stamp in (THEN + 7_000_000, NOW, START + 4 * SECOND + 100_000_000):
        np.testing.assert_allclose(
            found.vehicle_at(stamp), nodes.lookup("odom", "base_link", stamp), atol=1e-9
        )
    tilt = found.motion(NOW, THEN)[2, 0]
    assert abs(tilt) > 0.01


def test_odometry_of_the_footprint_is_carried_to_base_link_as_it_sits_then(tmp_path: Path) -> None:
    found = Told(tf={BODY: rocking}, odometry={("odom", "base_footprint"): ahead}).read(tmp_path)
    np.testing.assert_allclose(found.vehicle_at(NOW), ahead(NOW) @ rocking(NOW), atol=1e-6)


@pytest.mark.parametrize(
    "told",
    [
        Told(fixed={BODY: on_ground}),
        Told(tf={BODY: on_ground}),
        Told(tf={BODY: rocking}),
        Told(fixed={("map", "base_link"): on_ground}),
        Told(odometry={("odom", "base_footprint"): ahead}),
        Told(odometry={("odom", "imu"): ahead}),
    ],
    ids=lambda told: f"{[*told.tf]} {[*told.fixed]} {[*told.odometry]}",
)
def test_what_does_not_tell_the_way_of_the_vehicle_is_not_taken_for_it(told: Told, tmp_path: Path) -> None:
    found = told.read(tmp_path)
    assert found.fixed_frame is None
    assert found.vehicle_at(NOW) is None
    expected = "a transform or /odometry around that time"
    with pytest.raises(CalibrationError, match=rf"pose of base_link at .*: expected {expected}, found none"):
        found.pose(NOW, "odom")


def test_what_stands_says_so_once(tmp_path: Path) -> None:
    found = Told(fixed={FOOT: on_ground, BODY: on_ground}).read(tmp_path)
    np.testing.assert_allclose(found.vehicle_at(NOW), moved_by(z=0.6))
    np.testing.assert_array_equal(found.motion(NOW, THEN), np.eye(4))


@pytest.mark.parametrize("by", ["tf", "odometry"])
def test_across_a_long_silence_nobody_knows_where_the_vehicle_was(tmp_path: Path, by: str) -> None:
    ways = {("odom", "base_link"): ahead}
    for end, known in ((1.9, True), (2.2, False)):
        folder = tmp_path / str(end)
        folder.mkdir()
        found = (
            Told(tf=ways, silent=(1.0, end)) if by == "tf" else Told(odometry=ways, silent=(1.0, end))
        ).read(folder)
        assert (found.vehicle_at(START + round(1.5 * SECOND)) is not None) == known
        assert found.vehicle_at(START + SECOND) is not None
        assert found.vehicle_at(START + 3 * SECOND) is not None


def test_a_sensor_that_moves_is_where_it_was_at_the_stamp_or_refused(tmp_path: Path) -> None:
    moving = Told(
        tf={("base_link", "head"): turning, ("base_link", "roof"): on_ground},
        fixed={("head", "lidar"): on_ground},
        silent=(1.0, 2.5),
    ).read(tmp_path)
    for stamp in (START + SECOND // 2, START + 3 * SECOND):
        np.testing.assert_allclose(moving.mount("lidar", stamp), turning(stamp) @ on_ground(0), atol=1e-6)
    with pytest.raises(CalibrationError, match=r"transform base_link <- lidar.*'base_link' <- 'head'"):
        moving.mount("lidar", START + round(1.75 * SECOND))
    for stamp in (START - 60 * SECOND, START + round(1.75 * SECOND)):
        np.testing.assert_allclose(moving.mount("roof", stamp), on_ground(0), atol=1e-9)
    np.testing.assert_array_equal(moving.mount("base_link", NOW), np.eye(4))


def test_a_sweep_of_a_head_that_nods_is_undone_with_it(tmp_path: Path) -> None:
    found = Told(tf={("odom", "base_link"): ahead, ("base_link", "head"): turning}).read(tmp_path)
    thing = np.array([40.0, 3.0, 2.0, 1.0])
    times = np.array([-0.1, -0.03, 0.0], np.float32)
    stamps = [NOW + round(float(time) * 1e9) for time in times]
    measured = [np.linalg.inv(ahead(stamp) @ turning(stamp)) @ thing for stamp in stamps]
    points = np.array([[*place[:3], 0.5] for place in measured], np.float32)
    deskewed = found.deskewed(PointCloud(points, NOW, "head", None, times))
    np.testing.assert_allclose(deskewed.points[:, :3], np.tile(measured[-1][:3], (3, 1)), atol=0.02)
    assert np.abs(points[0, :3] - measured[-1][:3]).max() > 1
