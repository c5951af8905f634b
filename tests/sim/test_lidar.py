# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kestrel.classes import ATTRIBUTES
from kestrel.sim.drive import simulate
from kestrel.sim.rig import load_rig
from kestrel.sim.samples import LidarSample
from kestrel.sim.semantics import Semantic
from tests.sim.street import MOVING, PARKED, WALL_X, Street, daylight


def sweeps(world, rig="nuscenes", seconds=0.2, **options):
    samples = simulate(world, load_rig(rig), seconds=seconds, cameras=(), **options)
    return [sample for sample in samples if isinstance(sample, LidarSample)]


@pytest.mark.parametrize("rig", ["nuscenes", "kitti", "robotaxi"])
def test_points_of_a_ring_lie_on_its_elevation(rig):
    cloud = sweeps(Street(), rig)[0].cloud
    x, y, z = cloud.points[:, :3].astype(np.float64).T
    elevation = np.arctan2(z, np.hypot(x, y))
    np.testing.assert_allclose(elevation, load_rig(rig).lidar.elevation_rad[cloud.ring], atol=2e-5)


def test_beams_of_the_rigs_are_those_of_the_real_sensors():
    coarse, fine = load_rig("nuscenes").lidar, load_rig("kitti").lidar
    assert np.rad2deg(np.diff(coarse.elevation_rad)) == pytest.approx(np.full(31, 4 / 3), abs=0.01)
    steps = np.rad2deg(np.diff(fine.elevation_rad))
    assert len(fine.elevation_rad) == 64
    assert steps[:31] == pytest.approx(np.full(31, 0.515), abs=0.02)
    assert steps[32:] == pytest.approx(np.full(31, 1 / 3), abs=0.01)


def test_wall_and_ground_are_where_they_are_built():
    sample = sweeps(Street())[0]
    base = sample.cloud.points[:, :3] + sample.base_from_lidar[:3, 3]
    wall = base[sample.semantic == Semantic.BUILDING]
    near = wall[(np.abs(wall[:, 1]) < 5) & (wall[:, 2] < 11)]
    assert len(near) > 100
    assert np.mean(near[:, 0]) == pytest.approx(WALL_X, abs=0.01)
    assert 0.01 < np.std(near[:, 0]) < 0.05
    ground = base[sample.semantic == Semantic.ROAD]
    assert np.abs(ground[:, 2]).max() < 0.1


def test_labels_match_the_boxes_of_the_truth():
    sample = sweeps(Street(car_velocity=(0.0, 0.0)))[0]
    boxes = sample.truth
    base = sample.cloud.points[:, :3] + sample.base_from_lidar[:3, 3]
    assert set(boxes.track_id) == {MOVING, PARKED}
    for i, track in enumerate(boxes.track_id):
        offset = base - boxes.center[i]
        cosine, sine = np.cos(boxes.yaw[i]), np.sin(boxes.yaw[i])
        along, across = (
            offset[:, 0] * cosine + offset[:, 1] * sine,
            offset[:, 1] * cosine - offset[:, 0] * sine,
        )
        beyond = np.abs(np.stack([along, across, offset[:, 2]], 1)) - boxes.size[i] / 2
        mine = sample.instance == track
        assert mine.sum() == boxes.num_points[i] > 50
        assert beyond[mine].max() < 0.15
        assert not mine[(beyond < -0.1).all(1)].size or mine[(beyond < -0.1).all(1)].all()
    assert (sample.semantic[sample.instance > 0] == Semantic.CAR).all()


@pytest.mark.parametrize(
    ("speed", "kind", "parked", "expected"),
    [
        (2.0, Semantic.CAR, True, "vehicle.moving"),
        (0.1, Semantic.VAN, False, "vehicle.stopped"),
        (0.0, Semantic.TRAILER, True, "vehicle.parked"),
        (0.0, Semantic.PEDESTRIAN, True, "pedestrian.standing"),
        (1.0, Semantic.PEDESTRIAN, False, "pedestrian.moving"),
        (0.0, Semantic.BICYCLIST, False, "cycle.with_rider"),
        (3.0, Semantic.MOTORCYCLE, False, "cycle.without_rider"),
        (0.0, Semantic.TRAFFIC_CONE, True, None),
    ],
)
def test_boxes_say_whether_they_move_are_parked_or_ridden(speed, kind, parked, expected):
    class Someone(Street):
        def actor_states(self, time_s):
            first, other = super().actor_states(time_s)
            return [replace(first, parked=parked), other]

    street = Someone(car_velocity=(0.0, speed))
    street.actors[MOVING] = replace(street.actors[MOVING], semantic=kind)
    truth = sweeps(street)[0].truth
    attribute = dict(zip(truth.track_id, truth.attribute, strict=True))[MOVING]
    assert (ATTRIBUTES[attribute] if attribute >= 0 else None) == expected


def test_velocity_and_yaw_of_boxes_are_in_the_vehicle_axes():
    class Turned(Street):
        def ego(self, time_s):
            ego = super().ego(time_s)
            ego.map_from_base[:2, :2] = [[0.0, -1.0], [1.0, 0.0]]
            return ego

    boxes = sweeps(Turned(car_velocity=(0.0, -2.0)))[0].truth
    moving = int(np.flatnonzero(boxes.track_id == MOVING)[0])
    np.testing.assert_allclose(boxes.center[moving, :2], [4.0, -12.0], atol=1e-5)
    np.testing.assert_allclose(boxes.velocity[moving], [-2.0, 0.0], atol=1e-6)
    assert abs(boxes.yaw[moving]) == pytest.approx(np.pi, abs=1e-5)


def test_ego_motion_pulls_points_measured_later_closer():
    still = sweeps(Street(), lidar_hz=5.0, seconds=0.5)[0]
    driving = sweeps(Street(ego_speed=10.0), lidar_hz=5.0, seconds=0.5)[0]
    for sample, speed in ((still, 0.0), (driving, 10.0)):
        wall = (sample.semantic == Semantic.BUILDING) & (np.abs(sample.cloud.points[:, 1]) < 20)
        x, time_s = sample.cloud.points[wall, 0], sample.cloud.time_s[wall]
        slope = np.polyfit(time_s, x, 1)[0]
        assert slope == pytest.approx(-speed, abs=0.3)


def test_sweep_turns_clockwise_from_the_back_within_one_period():
    cloud = sweeps(Street())[0].cloud
    azimuth = np.arctan2(cloud.points[:, 1], cloud.points[:, 0])
    inner = np.abs(azimuth) < 3.0
    slope, start = np.polyfit(cloud.time_s[inner], azimuth[inner], 1)
    assert slope == pytest.approx(-2 * np.pi * 20, rel=1e-3)
    assert start == pytest.approx(np.pi, abs=0.01)
    assert cloud.time_s.min() >= 0
    assert cloud.time_s.max() < 0.05


def test_moving_car_is_seen_where_it_is_when_the_beam_meets_it():
    fast = Street(car=(12.0, 0.0), car_velocity=(20.0, 0.0))
    sample = sweeps(fast, lidar_hz=5.0, seconds=0.5)[0]
    mine = sample.instance == MOVING
    rear = sample.cloud.points[mine, 0] + sample.base_from_lidar[0, 3]
    expected = 12.0 - 2.0 + 20.0 * sample.cloud.time_s[mine]
    on_rear = np.abs(rear - expected) < 0.2
    assert on_rear.sum() > 30
    assert np.median(rear[on_rear] - expected[on_rear]) == pytest.approx(0.0, abs=0.02)


def test_car_in_front_hides_what_is_behind_it():
    sample = sweeps(Street(car=(8.0, 0.0), car_velocity=(0.0, 0.001)))[0]
    x, y, z = sample.cloud.points[:, :3].T
    shadowed = (np.abs(np.arctan2(y, x)) < 0.05) & (z / np.hypot(x, y) < -0.12) & (x > 10)
    assert not shadowed.any()


def test_fog_shortens_the_range_and_rain_scatters():
    def far(world):
        sample = sweeps(world, "kitti")[0]
        return int((np.linalg.norm(sample.cloud.points[:, :3], axis=1) > 50).sum()), sample

    clear, _ = far(Street())
    foggy, fog = far(Street(weather=daylight(fog_per_m=0.03)))
    assert foggy < 0.5 * clear
    _, rain = far(Street(weather=daylight(rain=1.0)))
    for sample in (fog, rain):
        drops = sample.semantic == Semantic.VOID
        assert drops.sum() > 20
        assert (sample.instance[drops] == 0).all()


def test_same_seed_gives_the_same_sweep_and_another_seed_does_not():
    first, again, other = (sweeps(Street(), seed=seed)[1] for seed in (3, 3, 4))
    assert first.cloud.points.tobytes() == again.cloud.points.tobytes()
    assert first.cloud.points.tobytes() != other.cloud.points.tobytes()
