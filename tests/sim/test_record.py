# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import re
import signal
from functools import partial
from multiprocessing import Pipe

import cv2
import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from kestrel.classes import MAP_LAYERS
from kestrel.cli import build_app
from kestrel.data.bag import BagReader
from kestrel.data.cloud_layout import cloud_fields
from kestrel.data.perception_messages import map_messages
from kestrel.errors import ConfigError, InputError, SetupError
from kestrel.sim.drive import simulate
from kestrel.sim.record import TRUTH_LAYOUT, encode, write_drive
from kestrel.sim.rig import load_rig, rig_names
from kestrel.sim.samples import CameraSample, LidarSample
from kestrel.sim.workers import Plan, Workers, _serve
from kestrel.sim.world.towns import SCENES, TOWNS
from kestrel.types import BevMap
from tests.sim.street import Street

RIG = load_rig("nuscenes").select(("front", "back"), 10.0)
encoded = partial(map, partial(encode, rig=RIG))


def samples(seconds=0.4):
    return list(simulate(Street(ego_speed=4.0), RIG, seconds=seconds, image_size=(352, 128), seed=1))


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bags") / "drive"
    made = samples()
    write_drive(encoded(made), folder, rig=RIG)
    messages = {}
    for message in BagReader(folder).messages():
        messages.setdefault(message.topic, []).append((message.log_time_ns, message.decode()))
    return folder, made, messages


def stamp_ns(message):
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def test_cloud_reads_back_as_it_was_measured(drive):
    _, made, messages = drive
    sweeps = [sample for sample in made if isinstance(sample, LidarSample)]
    assert len(messages["/lidar/points"]) == len(messages["/truth/points"]) == len(sweeps) == 4
    for sample, (_, cloud), (_, truth) in zip(
        sweeps, messages["/lidar/points"], messages["/truth/points"], strict=True
    ):
        assert [field.name for field in cloud.fields] == ["x", "y", "z", "intensity", "ring", "time"]
        assert cloud.point_step == 22
        assert stamp_ns(cloud) == stamp_ns(truth) == sample.stamp_ns
        points = cloud_fields(cloud)
        np.testing.assert_array_equal(points["z"], sample.cloud.points[:, 2])
        np.testing.assert_array_equal(points["ring"], sample.cloud.ring)
        labels = np.frombuffer(truth.data.tobytes(), TRUTH_LAYOUT)
        np.testing.assert_array_equal(labels["instance"], sample.instance)


def test_picture_and_semantics_read_back(drive):
    _, made, messages = drive
    fronts = [sample for sample in made if isinstance(sample, CameraSample) and sample.name == "front"]
    pairs = zip(
        fronts,
        messages["/camera/front/image/compressed"],
        messages["/truth/camera/front/semantics"],
        messages["/truth/event"],
        strict=True,
    )
    for sample, (_, picture), (_, labels), (_, event) in pairs:
        decoded = cv2.imdecode(picture.data, cv2.IMREAD_COLOR)[..., ::-1].astype(float)
        assert np.abs(decoded - sample.image.data).mean() < 4
        np.testing.assert_array_equal(cv2.imdecode(labels.data, cv2.IMREAD_UNCHANGED), sample.semantic)
        assert event.results[0].class_id == "clear"
        assert stamp_ns(picture) == stamp_ns(labels) == stamp_ns(event) == sample.stamp_ns


def test_calibration_and_mounts_read_back(drive):
    _, made, messages = drive
    calibration = next(
        sample for sample in made if isinstance(sample, CameraSample) and sample.name == "back"
    ).calibration
    info = messages["/camera/back/camera_info"][0][1]
    np.testing.assert_array_equal(info.k.reshape(3, 3), calibration.camera_matrix)
    assert (info.width, info.height, info.distortion_model) == (352, 128, "plumb_bob")
    mounts = {t.child_frame_id: t.transform for t in messages["/tf_static"][0][1].transforms}
    assert set(mounts) == {"lidar", "imu", "camera_front_optical", "camera_back_optical"}
    translation = mounts["camera_back_optical"].translation
    assert [translation.x, translation.y, translation.z] == list(calibration.reference_from_camera[:3, 3])


def test_boxes_read_back_with_velocity_and_track(drive):
    _, made, messages = drive
    first = next(sample for sample in made if isinstance(sample, LidarSample)).truth
    objects = messages["/truth/objects"][0][1]
    assert objects.header.frame_id == "base_link"
    assert [item.track_id for item in objects.objects] == list(first.track_id)
    assert [item.num_points for item in objects.objects] == list(first.num_points)
    assert objects.objects[0].twist.twist.linear.y == pytest.approx(first.velocity[0, 1])


def test_messages_are_logged_when_a_driver_could_deliver_them(drive):
    _, _, messages = drive
    for log_time_ns, cloud in messages["/lidar/points"]:
        assert log_time_ns == stamp_ns(cloud) + 100_000_000
    for log_time_ns, picture in messages["/camera/front/image/compressed"]:
        assert log_time_ns == stamp_ns(picture)


def test_map_cells_keep_their_place():
    layers = np.zeros((len(MAP_LAYERS), 200, 200), np.float32)
    layers[0, 150, 20] = 1.0
    message = map_messages(BevMap(layers, MAP_LAYERS, (-50.0, -50.0), 0.5, "base_link", 0))[MAP_LAYERS[0]]
    cell = int(np.flatnonzero(message.data)[0])
    x = message.info.origin.position.x + (cell % message.info.width) * message.info.resolution
    y = message.info.origin.position.y + (cell // message.info.width) * message.info.resolution
    assert (x, y, message.data[cell]) == (25.0, -40.0, 100)


def test_the_bytes_do_not_depend_on_the_number_of_processes(drive, tmp_path):
    folder, _, _ = drive
    again = tmp_path / "drive"
    with Workers(2) as workers:
        made = workers.drive(Plan(Street(ego_speed=4.0), RIG, 0.4, (352, 128), seed=1))
        write_drive(made, again, rig=RIG)
    for path in sorted(folder.iterdir()):
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_a_plan_that_makes_no_sense_is_refused_by_name():
    with Workers(1) as workers, pytest.raises(ConfigError, match="image size"):
        list(workers.drive(Plan(Street(), RIG, 0.4, (0, 128))))


def test_a_killed_process_is_said_and_none_is_left(tmp_path):
    with Workers(1) as workers:
        made = workers.drive(Plan(Street(), RIG, 60.0, (64, 32)))
        next(made)
        (process,) = workers.processes
        os.kill(process.pid, signal.SIGINT)  # ignored: it is meant for the one who started it
        next(made)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(SetupError, match="exit code -9"):
            list(made)
    assert not process.is_alive()


def test_a_process_that_nobody_listens_to_any_more_ends_quietly():
    ours, theirs = Pipe()
    theirs.send(Plan(Street(), RIG, 0.4, (0, 128)))
    theirs.close()
    threads = cv2.getNumThreads()
    try:
        _serve(ours)
    finally:
        cv2.setNumThreads(threads)


class Heavy(Street):
    """A street for which there is no memory."""

    def actor_states(self, time_s):
        raise MemoryError(f"for second {time_s}")


def test_want_of_memory_is_said():
    with (
        Workers(1) as workers,
        pytest.raises(SetupError, match=r"simulation: expected memory .* found for second 0\.0"),
    ):
        list(workers.drive(Plan(Heavy(), RIG, 0.4, (64, 32))))


def test_an_existing_folder_is_left_alone(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        write_drive([], tmp_path, rig=RIG)


@pytest.mark.parametrize("reason", [KeyboardInterrupt, InputError])
def test_an_interrupted_drive_leaves_nothing_behind(tmp_path, reason):
    def stream():
        yield from samples(0.1)
        raise reason

    with pytest.raises(reason):
        write_drive(encoded(stream()), tmp_path / "drive", rig=RIG)
    assert list(tmp_path.iterdir()) == []


def test_command_writes_a_bag_of_a_town(tmp_path):
    out = tmp_path / "drive"
    options = [
        "--seconds",
        "0.3",
        "--image-size",
        "64x32",
        "--lidar-hz",
        "10",
        "--cameras",
        "front",
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(build_app(), ["sim", "--rig", "kitti", *options])
    assert result.exit_code == 0, result.output
    assert BagReader(out).topics["/lidar/points"].count == 3


def test_help_names_every_scene_town_and_rig():
    told = {parameter.name: parameter.help for parameter in get_command(build_app()).commands["sim"].params}
    for option, names in (("scene", SCENES), ("town", TOWNS), ("rig", rig_names())):
        assert names
        for name in names:
            assert re.search(rf"\b{name}\b", told[option]), name
