# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A nuScenes scene becomes a bag with all its sweeps and pictures, and true boxes at its key frames."""

import math
from collections import Counter

import numpy as np
import pytest
from typer.testing import CliRunner

from kestrel.classes import ATTRIBUTES, DETECTION_CLASSES, NO_ATTRIBUTE
from kestrel.cli import build_app
from kestrel.data.bag import BagReader
from kestrel.data.cloud_reader import read_cloud
from kestrel.data.messages import stamp_of, transform_from_message
from kestrel.data.nuscenes_scene import CLASSES, annotated_boxes
from kestrel.data.nuscenes_tables import read_scene
from kestrel.data.perception_messages import boxes_from_message
from kestrel.data.picture_reader import read_image
from kestrel.errors import InputError
from kestrel.eval.scene import Scene
from kestrel.train.judged_bag import judged_sweeps
from tests.data.nuscenes_data_set import (
    CAMERAS,
    CAR_SIZE,
    EGO_TURN,
    EGO_YAW,
    LIDAR_AT,
    PICTURE_OFFSET_US,
    PICTURE_US,
    START_US,
    SWEEP_US,
    VERSION,
    DataSet,
    car,
    ego,
    picture_file,
    seen,
    turned,
    way,
)


@pytest.fixture
def data_set(tmp_path):
    return DataSet(tmp_path)


def of(stream, topic):
    return [message for _, name, message in stream if name == topic]


def truths(stream):
    return [boxes_from_message(message, DETECTION_CLASSES) for message in of(stream, "/truth/objects")]


def row_of(boxes, name):
    return boxes.label.tolist().index(DETECTION_CLASSES.index(name))


def test_messages_come_in_the_order_of_their_log_times_after_the_mounts(data_set):
    stream = data_set.messages()
    times = [at for at, _, _ in stream]
    assert times == sorted(times)
    assert times[0] == (START_US - PICTURE_OFFSET_US) * 1000
    assert [topic for _, topic, _ in stream].index("/tf_static") == 0
    stamped = [item for item in stream if not item[1].startswith(("/tf", "/truth/samples"))]
    assert {topic for _, topic, _ in stamped} >= {"/lidar/points", "/truth/objects", "/odometry"}
    assert all(stamp_of(message) == at for at, _, message in stamped)


def test_every_sweep_and_picture_of_the_scene_is_there_and_nothing_else(data_set):
    counts = Counter(topic for _, topic, _ in data_set.messages())
    pictures = dict.fromkeys(("back_left", "front"), 13)
    assert counts == {
        "/tf_static": 1,
        "/tf": 22,
        "/odometry": 21,
        "/lidar/points": 21,
        "/truth/objects": 3,
        "/truth/samples": 1,
        **{f"/camera/{name}/camera_info": count for name, count in pictures.items()},
        **{f"/camera/{name}/image/compressed": count for name, count in pictures.items()},
    }


def test_sweeps_and_pictures_have_their_own_stamps(data_set):
    stream = data_set.messages()
    sweeps = [stamp_of(message) for message in of(stream, "/lidar/points")]
    assert sweeps == [(START_US + number * SWEEP_US) * 1000 for number in range(21)]
    first_us = START_US - PICTURE_OFFSET_US
    for kind in ("camera_info", "image/compressed"):
        stamps = [stamp_of(message) for message in of(stream, f"/camera/front/{kind}")]
        assert stamps == [(first_us + number * PICTURE_US) * 1000 for number in range(13)]


def test_scene_is_chosen_by_its_name_and_else_the_first_one(data_set):
    assert len(data_set.messages(None)) == len(data_set.messages("scene-0061")) > 100
    other = data_set.messages("scene-0103")
    expected = ["/tf_static", "/truth/samples", "/tf", "/odometry", "/lidar/points"]
    assert [topic for _, topic, _ in other] == expected
    assert other[-1][0] == (START_US + 10**9) * 1000


def test_sweep_has_x_ahead_and_y_to_the_left(data_set):
    cloud = read_cloud(of(data_set.messages(), "/lidar/points")[0]).cloud
    np.testing.assert_allclose(cloud.points[-1], (0, -20, 0, 1), atol=1e-6)
    np.testing.assert_allclose(cloud.points[0, 3], 0.2)
    assert cloud.ring.tolist() == [3] * 5 + [31]
    assert cloud.frame_id == "lidar"


def test_mounts_are_those_of_the_calibration_with_the_lidar_turned_ahead(data_set):
    transforms = of(data_set.messages(), "/tf_static")[0].transforms[1:]
    assert {item.header.frame_id for item in transforms} == {"base_link"}
    mounts = {item.child_frame_id: transform_from_message(item.transform) for item in transforms}
    assert sorted(mounts) == ["camera_back_left_optical", "camera_front_optical", "lidar"]
    np.testing.assert_allclose(mounts["lidar"][:3, :3], np.eye(3), atol=1e-9)
    np.testing.assert_allclose(mounts["lidar"][:3, 3], LIDAR_AT)
    np.testing.assert_allclose(mounts["camera_front_optical"][:3, :3] @ (0, 0, 1), (1, 0, 0), atol=1e-9)
    np.testing.assert_allclose(mounts["camera_front_optical"][:3, :3] @ (0, 1, 0), (0, 0, -1), atol=1e-9)
    ahead = (math.cos(math.radians(110)), math.sin(math.radians(110)), 0)
    np.testing.assert_allclose(mounts["camera_back_left_optical"][:3, :3] @ (0, 0, 1), ahead, atol=1e-9)
    np.testing.assert_allclose(mounts["camera_back_left_optical"][:3, 3], (1.7, 0.1, 1.5))


def test_picture_is_the_file_and_has_its_calibration(data_set):
    stream = data_set.messages()
    message, info = (
        of(stream, "/camera/front/image/compressed")[0],
        of(stream, "/camera/front/camera_info")[0],
    )
    file = next((data_set.root / "sweeps" / "CAM_FRONT").glob(f"{START_US - PICTURE_OFFSET_US}*"))
    assert bytes(message.data) == file.read_bytes()
    assert (info.width, info.height) == CAMERAS["CAM_FRONT"][:2]
    assert info.k.tolist() == [40, 0, 24, 0, 41, 13.5, 0, 0, 1]
    assert info.header.frame_id == message.header.frame_id == "camera_front_optical"


def test_poses_begin_at_the_origin_and_tell_the_way_of_the_vehicle(data_set):
    stream = data_set.messages()
    early, *sent = [message.transforms[0] for message in of(stream, "/tf")]
    assert stamp_of(early) == stream[0][0], "of the first picture"
    np.testing.assert_allclose(transform_from_message(early.transform)[:2, 3], (way(-0.02), 0), atol=1e-6)
    assert {(item.header.frame_id, item.child_frame_id) for item in sent} == {("odom", "base_link")}
    assert [stamp_of(item) for item in sent] == [stamp_of(item) for item in of(stream, "/lidar/points")]
    poses = [transform_from_message(item.transform) for item in sent]
    np.testing.assert_allclose(poses[0], np.eye(4), atol=1e-9)
    for number, (pose, odometry) in enumerate(zip(poses, of(stream, "/odometry"), strict=True)):
        seconds = number * 0.05
        np.testing.assert_allclose(pose[:3, 3], (way(seconds), 0, 0), atol=1e-6)
        yaw = EGO_TURN * seconds
        np.testing.assert_allclose(pose[:2, 0], (math.cos(yaw), math.sin(yaw)), atol=1e-6)
        at = odometry.pose.pose.position
        np.testing.assert_allclose((at.x, at.y, at.z), pose[:3, 3], atol=1e-9)


def test_odometry_tells_the_velocity_in_the_frame_of_the_vehicle(data_set):
    """By the difference to both sides, at the ends to one."""
    sent = of(data_set.messages(), "/odometry")
    assert len(sent) == 21
    for number, message in enumerate(sent):
        linear, angular = message.twist.twist.linear, message.twist.twist.angular
        start, end = max(number - 1, 0) * 0.05, min(number + 1, 20) * 0.05
        speed, yaw = (way(end) - way(start)) / (end - start), EGO_TURN * number * 0.05
        expected = (speed * math.cos(yaw), -speed * math.sin(yaw), 0)
        np.testing.assert_allclose((linear.x, linear.y, linear.z), expected, atol=1e-4)
        np.testing.assert_allclose((angular.x, angular.y, angular.z), (0, 0, EGO_TURN), atol=1e-4)


def test_velocity_is_unknown_where_there_is_one_pose_alone(data_set):
    (message,) = of(data_set.messages("scene-0103"), "/odometry")
    assert math.isnan(message.twist.twist.linear.x)
    assert math.isnan(message.twist.twist.angular.z)


def test_boxes_are_where_they_are_as_of_the_vehicle_at_the_key_frame(data_set):
    found = truths(data_set.messages())
    assert [boxes.stamp_ns for boxes in found] == [at * 1000 for at in data_set.samples_us]
    for boxes, seconds in zip(found, (0.0, 0.5, 1.0), strict=True):
        index = row_of(boxes, "car")
        assert boxes.frame_id == "base_link"
        np.testing.assert_allclose(boxes.center[index], (*seen(*car(seconds), seconds), 1.0), atol=1e-4)
        np.testing.assert_allclose(boxes.size[index], CAR_SIZE)
        assert boxes.yaw[index] == pytest.approx(1.2 - EGO_YAW - EGO_TURN * seconds, abs=1e-5)
        assert boxes.num_points[index] == 5
    assert truths(data_set.messages())[0].yaw[row_of(found[0], "pedestrian")] == pytest.approx(math.pi / 2)


def test_boxes_of_the_ten_classes_alone_are_there_with_the_track_of_their_instance(data_set):
    found = truths(data_set.messages())
    names = [[DETECTION_CLASSES[label] for label in boxes.label] for boxes in found]
    assert [sorted(each) for each in names] == [
        *(["car", "pedestrian"], ["barrier", "car", "pedestrian"], ["car", "pedestrian"])
    ]
    tracks = [dict(zip(each, boxes.track_id, strict=True)) for each, boxes in zip(names, found, strict=True)]
    assert tracks[0] == tracks[2] == {key: tracks[1][key] for key in ("car", "pedestrian")}
    assert len(set(tracks[1].values())) == 3
    assert min(tracks[1].values()) >= 0


def test_categories_stand_for_all_detection_classes(data_set):
    assert set(CLASSES.values()) == set(DETECTION_CLASSES)
    names = ("vehicle.bus.bendy", "vehicle.construction", "human.pedestrian.police_officer")
    assert [CLASSES[name] for name in names] == ["bus", "construction_vehicle", "pedestrian"]
    left_out = ("animal", "vehicle.emergency.police", "human.pedestrian.wheelchair", "vehicle.ego")
    assert not CLASSES.keys() & set(left_out)


def test_velocity_of_a_box_is_the_centred_difference_in_the_frame_of_the_vehicle(data_set):
    """Which is that of one step at the ends; the car has 5, 7 and 9 m/s, by differences 6, 7 and 8."""
    for boxes, seconds, speed in zip(
        truths(data_set.messages()), (0.0, 0.5, 1.0), (6.0, 7.0, 8.0), strict=True
    ):
        yaw = ego(seconds)[2]
        np.testing.assert_allclose(boxes.velocity[row_of(boxes, "car")], turned(0, speed, yaw), atol=1e-4)
        np.testing.assert_allclose(boxes.velocity[row_of(boxes, "pedestrian")], turned(-1, 0, yaw), atol=1e-4)


def test_velocity_of_a_box_that_was_annotated_once_is_unknown(data_set):
    boxes = truths(data_set.messages())[1]
    assert np.isnan(boxes.velocity[row_of(boxes, "barrier")]).all()


@pytest.mark.parametrize(("step_us", "known"), [(1_500_000, True), (1_550_000, False)])
def test_velocity_of_a_box_is_unknown_where_samples_are_far_apart(tmp_path, step_us, known):
    found = truths(DataSet(tmp_path, step_us).messages())
    assert [bool(np.isfinite(each.velocity[row_of(each, "car")]).all()) for each in found] == [known] * 3


def test_boxes_have_the_attributes_of_the_annotations(data_set):
    record = read_scene(data_set.root, VERSION, None)
    key = next(item for item in record.measurements if item.key == "a1")
    boxes = annotated_boxes(record, key)
    assert boxes.attribute[row_of(boxes, "car")] == ATTRIBUTES.index("vehicle.moving")
    assert boxes.attribute[row_of(boxes, "pedestrian")] == NO_ATTRIBUTE


def test_truth_without_any_box_is_no_truth_unless_the_scene_has_some(data_set):
    data_set.tables["sample_annotation"] = [
        row for row in data_set.tables["sample_annotation"] if row["sample_token"] == "a1"
    ]
    for row in data_set.tables["sample_annotation"]:
        row["prev"] = row["next"] = ""
    data_set.write("sample_annotation")
    assert [len(boxes) for boxes in truths(data_set.messages())] == [0, 3, 0]
    data_set.tables["sample_annotation"] = []
    data_set.write("sample_annotation")
    assert truths(data_set.messages()) == []


def test_bag_is_read_by_the_scene_reader_and_boxes_hold_the_points_of_the_sweep(data_set, tmp_path):
    out = tmp_path / "out" / "bag.mcap"
    arguments = ["import", "nuscenes", str(data_set.root), "--out", str(out), "--scene", "scene-0061"]
    result = CliRunner().invoke(build_app(), arguments, catch_exceptions=False)
    assert result.exit_code == 0
    reader = BagReader(out)
    assert reader.topics["/lidar/points"].count == 21
    assert reader.topics["/tf_static"].latched
    scene = Scene(out)
    assert scene.stamps == [(START_US + number * SWEEP_US) * 1000 for number in range(21)]
    frames = {frame.stamp_ns: frame for frame in scene.frames()}
    key = frames[data_set.samples_us[1] * 1000]
    assert [view.name for view in key.cameras] == ["front", "back_left"]
    assert {frame.stamp_ns for frame in frames.values() if frame.truth is not None} == {
        at * 1000 for at in data_set.samples_us
    }
    judged = judged_sweeps(out)
    assert [sweep.truth.stamp_ns // 1000 for sweep in judged] == data_set.samples_us
    for sweep in judged:
        inside = sweep.truth.contain(sweep.cloud.points[:, :3]).sum(1)
        assert inside[row_of(sweep.truth, "car")] == 5
        assert inside.sum() == 5


def test_pictures_are_placed_where_the_vehicle_was_when_they_were_taken(data_set, tmp_path):
    out = tmp_path / "bag"
    arguments = ["import", "nuscenes", str(data_set.root), "--out", str(out)]
    CliRunner().invoke(build_app(), arguments, catch_exceptions=False)
    frame = Scene(out).frame(data_set.samples_us[1] * 1000)
    view = frame.cameras[0]
    seconds = (view.stamp_ns - frame.stamp_ns) * 1e-9
    assert seconds != 0
    then = ego(0.5 + seconds)
    back = then[2] - math.pi / 2 - EGO_TURN * 0.5
    corner = seen(then[0], then[1], 0.5)
    mount = (1.7 * math.cos(back) - 0.1 * math.sin(back), 1.7 * math.sin(back) + 0.1 * math.cos(back))
    np.testing.assert_allclose(
        view.calibration.reference_from_camera[:2, 3], np.add(corner, mount), atol=5e-3
    )
    assert read_image(next(BagReader(out).messages(["/camera/front/image/compressed"])).decode())


@pytest.mark.parametrize("size", [0, 118, 100 + 2])
def test_sweep_that_was_cut_off_is_refused(data_set, size):
    path = data_set.root / "sweeps" / "LIDAR_TOP" / f"{START_US + SWEEP_US}.pcd.bin"
    path.write_bytes(path.read_bytes()[:size])
    assert data_set.error() == f"sweep {path}: expected points of 20 bytes, found {size} bytes"


def test_sweep_with_numbers_that_are_none_is_refused(data_set):
    path = data_set.root / "samples" / "LIDAR_TOP" / f"{START_US}.pcd.bin"
    np.full(10, np.nan, np.float32).tofile(path)
    assert data_set.error() == f"sweep {path}: expected finite numbers, found NaN or Inf"


@pytest.mark.parametrize("ring", [-1.0, 1e30])
def test_sweep_with_rings_that_no_sensor_has_is_refused(data_set, ring):
    path = data_set.root / "samples" / "LIDAR_TOP" / f"{START_US}.pcd.bin"
    np.array([0, 0, 0, 0, ring], np.float32).tofile(path)
    found = f"{ring:g} to {ring:g}"
    assert data_set.error() == f"rings of sweep {path}: expected 0 to 65535, found {found}"


@pytest.mark.parametrize(
    ("name", "kind"), [("LIDAR_TOP", "nuScenes sweep"), ("CAM_BACK_LEFT", "nuScenes picture")]
)
def test_file_that_is_missing_is_named(data_set, name, kind):
    path = sorted((data_set.root / "sweeps" / name).iterdir())[3]
    path.unlink()
    assert data_set.error() == f"{kind}: expected {path}, found no such file"


def test_picture_of_another_size_than_its_calibration_is_refused(data_set):
    path = sorted((data_set.root / "sweeps" / "CAM_FRONT").iterdir())[0]
    picture_file(path, 24, 13)
    text = data_set.error()
    assert text.startswith(f"picture {path}: expected 48x27 as in ")
    assert text.endswith("sample_data.json, found 24x13")


def test_scene_of_which_a_part_is_missing_leaves_no_bag(data_set, tmp_path):
    next((data_set.root / "sweeps" / "LIDAR_TOP").iterdir()).unlink()
    arguments = ["import", "nuscenes", str(data_set.root), "--out", str(tmp_path / "out" / "bag")]
    result = CliRunner().invoke(build_app(), arguments)
    assert isinstance(result.exception, InputError)
    assert list((tmp_path / "out").iterdir()) == []
