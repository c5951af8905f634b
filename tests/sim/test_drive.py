# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import yaml

from kestrel.classes import DETECTION_CLASSES, EVENTS
from kestrel.errors import ConfigError
from kestrel.sim.drive import Drive, simulate
from kestrel.sim.rig import load_rig, parse_size
from kestrel.sim.samples import EPOCH_NS, CameraSample, ImuSample, LidarSample, OdometrySample
from kestrel.sim.scene import EgoState
from kestrel.sim.splits import drives, scored_drives, split_names
from kestrel.sim.statistics import event_counts
from kestrel.sim.world import build_world
from tests.sim.street import Street


def drive(**options):
    return list(simulate(Street(ego_speed=4.0), load_rig("nuscenes"), image_size=(64, 32), **options))


def test_every_sensor_delivers_at_its_own_rate_in_the_order_of_stamps():
    samples = drive(seconds=1.0)
    stamps = [sample.stamp_ns for sample in samples]
    assert stamps == sorted(stamps)
    assert stamps[0] == EPOCH_NS
    count = {
        kind: sum(isinstance(s, kind) for s in samples) for kind in (LidarSample, OdometrySample, ImuSample)
    }
    assert count == {LidarSample: 20, OdometrySample: 51, ImuSample: 101}
    names = [sample.name for sample in samples if isinstance(sample, CameraSample)]
    assert {name: names.count(name) for name in names} == {
        camera.name: 12 for camera in load_rig("nuscenes").cameras
    }


def test_sweeps_may_be_made_in_bursts_and_turn_as_fast_as_ever():
    samples = drive(seconds=1.0, cameras=(), every_sweep=8, burst=3)
    stamps = [sample.stamp_ns for sample in samples if isinstance(sample, LidarSample)]
    turns = [round((stamp - EPOCH_NS) * 20 / 1e9) for stamp in stamps]
    assert turns == [0, 6, 7, 8, 14, 15, 16]


def test_the_sweeps_of_a_burst_may_lie_turns_apart():
    samples = drive(seconds=1.0, cameras=(), every_sweep=8, burst=3, burst_step=2)
    stamps = [sample.stamp_ns for sample in samples if isinstance(sample, LidarSample)]
    assert [round((stamp - EPOCH_NS) * 20 / 1e9) for stamp in stamps] == [0, 4, 6, 8, 12, 14, 16]


def test_samples_do_not_depend_on_those_made_before_by_the_same_sensors():
    fresh = Drive(Street(ego_speed=4.0), load_rig("nuscenes"), 0.1, (64, 32))
    samples = drive(seconds=0.1)
    assert {type(sample) for sample in samples} >= {CameraSample, LidarSample}
    for number, sample in reversed(list(enumerate(samples))):
        if isinstance(sample, CameraSample):
            assert fresh.make(number).image.data.tobytes() == sample.image.data.tobytes()
        if isinstance(sample, LidarSample):
            assert fresh.make(number).cloud.points.tobytes() == sample.cloud.points.tobytes()


def test_jobs_are_all_tasks_once_and_end_with_what_takes_time():
    made = Drive(Street(), load_rig("nuscenes"), 0.1, (64, 32))
    jobs = made.jobs()
    assert [number for job in jobs for number in job] == list(range(len(made.tasks)))
    assert len(jobs) > 1
    for job in jobs[:-1]:
        kinds = [type(made.make(number)) for number in job]
        assert set(kinds[:-1]) <= {OdometrySample, ImuSample}
        assert kinds[-1] in (CameraSample, LidarSample)


def test_odometry_starts_at_its_origin_and_follows_the_vehicle():
    poses = [sample for sample in drive(seconds=0.5, cameras=()) if isinstance(sample, OdometrySample)]
    np.testing.assert_allclose(poses[0].odom_from_base, np.eye(4))
    np.testing.assert_allclose(poses[-1].odom_from_base[:3, 3], [4.0 * 0.5, 0, 0], atol=1e-9)
    assert poses[-1].velocity[0] == pytest.approx(4.0, abs=0.1)


def test_imu_feels_gravity_and_the_acceleration_of_the_vehicle():
    class Braking(Street):
        def ego(self, time_s):
            return EgoState(np.eye(4), np.zeros(3), np.zeros(3), np.array([-3.0, 0.0, 0.0]))

    samples = simulate(Braking(), load_rig("kitti"), seconds=1.0, cameras=())
    force = np.array([s.linear_acceleration for s in samples if isinstance(s, ImuSample)])
    np.testing.assert_allclose(force.mean(0), [-3.0, 0.0, 9.80665], atol=0.02)
    assert 0.01 < force.std(0).min() < 0.1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"cameras": ("nose",)}, "nose"),
        ({"cameras": ("front", "front")}, "each of them once"),
        ({"lidar_hz": 0.0}, "lidar_hz"),
        ({"seconds": 0.0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"every_sweep": 3, "burst": 4}, "burst"),
    ],
)
def test_wrong_arguments_are_refused_by_name(options, named):
    with pytest.raises(ConfigError, match=named):
        simulate(Street(), load_rig("nuscenes"), **{"seconds": 1.0, **options})


@pytest.mark.parametrize("text", ["704", "704x", "0x256", "-1x2", "7.5x3", "axb"])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match="image size"):
        parse_size(text)


def test_rig_files_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="nuscenes"):
        load_rig("no-such-rig")
    broken = tmp_path / "rig.yaml"
    broken.write_text("name: mine\nlidar: {position: [0, 0, 1]}\n")
    with pytest.raises(ConfigError, match="blocks"):
        load_rig(broken)
    broken.write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match=r"rig\.yaml: expected"):
        load_rig(broken)


@pytest.mark.parametrize(
    ("part", "entry", "value", "named"),
    [
        ("lidar", "phase_s", float("nan"), "phase_s must be finite"),
        ("lidar", "columns", 0.5, "columns must be a whole number"),
        ("lidar", "hz", 1000, "hz of the lidar must be at most 100"),
        ("lidar", "blocks", [{"lowest_deg": -9, "highest_deg": 9, "beams": 0}], "beams must be positive"),
        ("lidar", "range_m", [100, 1], "range_m"),
        ("lidar", "range_noise_m", -0.1, "range_noise_m must not be negative"),
        ("lidar", "position", 1.5, "position must be three"),
        ("lidar", "position", [0, 0, float("nan")], "position must be three"),
        ("lidar", "yaw", 20.0, r"lidar has no entry \['yaw'\]"),
        ("front", "yaw_degrees", 20.0, r"camera front has no entry \['yaw_degrees'\]"),
        ("front", "width", 0.5, "width must be a whole number"),
        ("front", "delivered", [0, 36], "delivered must be"),
        ("front", "yaw_deg", float("nan"), "yaw_deg must be finite"),
        ("front", "principal_px", [float("nan"), 1], "camera matrix"),
        ("front", "distortion_model", "fish", "distortion model"),
        ("front", "distortion", [0.1], "distortion coefficients"),
    ],
)
def test_a_wrong_entry_of_a_rig_is_named(tmp_path, part, entry, value, named):
    rig = yaml.safe_load((resources.files("kestrel.sim") / "rigs" / "kitti.yaml").read_text())
    {"lidar": rig["lidar"], **rig["cameras"]}[part][entry] = value
    changed = tmp_path / "rig.yaml"
    changed.write_text(yaml.safe_dump(rig))
    with pytest.raises(ConfigError, match=named):
        load_rig(changed)


def test_what_a_rig_lacks_is_named(tmp_path):
    fragment = tmp_path / "rig.yaml"
    fragment.write_text("cameras: {front: {focal_px: 700.0}}")
    with pytest.raises(ConfigError, match="found no entry 'name'"):
        load_rig(fragment)


@pytest.mark.parametrize("name", [1, "front/left", "front left", ""])
def test_a_camera_has_a_name_that_a_topic_may_have(tmp_path, name):
    rig = yaml.safe_load((resources.files("kestrel.sim") / "rigs" / "kitti.yaml").read_text())
    rig["cameras"] = {name: rig["cameras"]["front"]}
    changed = tmp_path / "rig.yaml"
    changed.write_text(yaml.safe_dump(rig))
    with pytest.raises(ConfigError, match="name of a camera"):
        load_rig(changed)


@pytest.mark.parametrize("name", ["hz: 20", "columns: 1086", "focal_px: 1266.0", "imu_hz: 100"])
def test_numbers_of_a_rig_must_be_positive(tmp_path, name):
    text = (resources.files("kestrel.sim") / "rigs" / "nuscenes.yaml").read_text()
    assert name in text
    changed = tmp_path / "rig.yaml"
    changed.write_text(text.replace(name, name.split(":")[0] + ": -1", 1))
    with pytest.raises(ConfigError, match=name.split(":")[0]):
        load_rig(changed)


def test_no_town_and_no_seed_is_in_two_splits():
    splits = [
        [drive for name in split_names(purpose, sensors) for drive in drives(name, 500)]
        for purpose, sensors in (("train", "lidar"), ("validation", "lidar"))
    ] + [[*scored_drives(), *drives("test_robotaxi", 500)]]
    assert all(splits)
    for number, one in enumerate(splits):
        for other in splits[number + 1 :]:
            assert {d.town for d in one}.isdisjoint(d.town for d in other)
            assert {d.seed for d in one}.isdisjoint(d.seed for d in other)
    assert {d.weather for d in scored_drives()} == {"day", "dusk", "fog", "rain"}
    assert len({d.name for d in splits[2]}) == len(splits[2])


def test_every_split_is_named_where_there_is_none_of_a_name():
    with pytest.raises(ConfigError, match=r"split: expected one of train, .*validation.*test, found nosplit"):
        drives("nosplit", 1)
    assert drives("test", 64) == scored_drives()
    assert drives("test", 2) == scored_drives()[:2]


@pytest.mark.parametrize("number", [1, 6])
def test_scored_drives_are_still_those_of_the_published_statistics(number):
    published = json.loads((Path(__file__).parents[2] / "docs/data/test_drives.json").read_text())
    assert [entry["name"] for entry in published["drives"]] == [drive.name for drive in scored_drives()]
    entry = published["drives"][number]
    assert (
        event_counts(
            build_world(*(entry[key] for key in ("scene", "town", "seed", "seconds", "weather"))), 10.0
        )
        == entry["events"]
    )
    assert set(published["total"]["events"]) == set(EVENTS)
    assert set(published["total"]["objects"]) == set(DETECTION_CLASSES)
