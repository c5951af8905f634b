# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Public recordings become bags whose sensors agree with each other; needs KESTREL_DATA."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from kestrel.classes import DETECTION_CLASSES
from kestrel.cli import build_app
from kestrel.data.bag import BagReader, serialize
from kestrel.data.camera_info import read_camera_info
from kestrel.data.cloud_reader import read_cloud
from kestrel.data.kitti import tracking_messages
from kestrel.data.kitti_files import read_sweep
from kestrel.data.kitti_recordings import tracking_recording
from kestrel.data.messages import stamp_of, transform_from_message
from kestrel.data.perception_messages import DONT_CARE, boxes_from_message
from kestrel.data.picture_reader import read_image
from kestrel.errors import ConfigError, InputError

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("KESTREL_DATA", ROOT.parent / "shared" / "data"))


def folder(name):
    if not (DATA / name).is_dir():
        pytest.skip(f"no folder {DATA / name}")
    return DATA / name


def imported(kind, name, out, *options):
    arguments = ["import", kind, str(folder(name)), "--out", str(out), *options]
    result = CliRunner().invoke(build_app(), arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return BagReader(out)


def mounts(reader):
    message = next(reader.messages(["/tf_static"])).decode()
    return {item.child_frame_id: transform_from_message(item.transform) for item in message.transforms}


def first(reader, topic):
    return next(reader.messages([topic])).decode()


def in_base(reader, cloud):
    base_from_lidar = mounts(reader)["lidar"]
    return cloud.points[:, :3] @ base_from_lidar[:3, :3].T + base_from_lidar[:3, 3]


def ground_height(points):
    near = points[(np.abs(points[:, 1]) < 3) & (points[:, 0] > 4) & (points[:, 0] < 15)]
    return np.percentile(near[:, 2], 20)


def points_in(boxes, index, points):
    offset = points - boxes.center[index]
    cos, sin = np.cos(boxes.yaw[index]), np.sin(boxes.yaw[index])
    along, across = offset[:, 0] * cos + offset[:, 1] * sin, offset[:, 1] * cos - offset[:, 0] * sin
    half = boxes.size[index] / 2
    return int(
        ((np.abs(along) < half[0]) & (np.abs(across) < half[1]) & (np.abs(offset[:, 2]) < half[2])).sum()
    )


@pytest.fixture(scope="module")
def keyframe(tmp_path_factory):
    out = tmp_path_factory.mktemp("nuscenes") / "bag.mcap"
    return imported("nuscenes-sample", "nuscenes_sample", out, "--repeat", "3", "--rate", "5")


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    return imported("kitti-tracking", "kitti_tracking_0000", tmp_path_factory.mktemp("tracking") / "bag")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return imported("kitti-raw", "kitti_raw_0926", tmp_path_factory.mktemp("raw") / "bag")


def test_keyframe_is_repeated_with_six_cameras(keyframe):
    names = ("front", "front_right", "back_right", "back", "back_left", "front_left")
    for name in names:
        assert keyframe.topics[f"/camera/{name}/image/compressed"].count == 3
        assert keyframe.topics[f"/camera/{name}/camera_info"].count == 3
    stamps = [stamp_of(item.decode()) for item in keyframe.messages(["/lidar/points"])]
    assert np.diff(stamps).tolist() == [200_000_000, 200_000_000]


def test_keyframe_cloud_has_x_ahead_and_the_road_at_zero(keyframe):
    cloud = read_cloud(first(keyframe, "/lidar/points")).cloud
    assert cloud.ring.max() == 31
    assert cloud.points[:, 3].max() <= 1
    assert abs(ground_height(in_base(keyframe, cloud))) < 0.25
    np.testing.assert_allclose(mounts(keyframe)["lidar"][:3, :3], np.eye(3), atol=0.03)


def test_keyframe_boxes_hold_the_points_that_the_data_set_counted(keyframe):
    points = in_base(keyframe, read_cloud(first(keyframe, "/lidar/points")).cloud)
    boxes = boxes_from_message(first(keyframe, "/truth/objects"), DETECTION_CLASSES)
    counted = [points_in(boxes, index, points) for index in range(len(boxes))]
    many = boxes.num_points > 20
    assert many.sum() >= 5
    ratio = np.array(counted)[many] / boxes.num_points[many]
    assert np.median(ratio) == pytest.approx(1.0, abs=0.15)


def test_keyframe_front_camera_looks_ahead(keyframe):
    camera = mounts(keyframe)["camera_front_optical"]
    np.testing.assert_allclose(camera[:3, 2], (1, 0, 0), atol=0.05)
    back = mounts(keyframe)["camera_back_optical"]
    np.testing.assert_allclose(back[:3, 2], (-1, 0, 0), atol=0.05)


def test_keyframe_cameras_are_where_they_took_their_picture(keyframe):
    """Which is where they are on the vehicle, less its way from there to the sweep: all tell one speed."""
    frame = json.loads((folder("nuscenes_sample") / "frame.json").read_text())["frame"]
    speeds = []
    for name, entry in frame["images"].items():
        camera = mounts(keyframe)[f"camera_{name.removeprefix('CAM_').lower()}_optical"]
        early = frame["timestamp"] - entry["timestamp"]
        if early > 0.005:
            speeds.append((np.array(entry["cam2ego"])[0, 3] - camera[0, 3]) / early)
    assert len(speeds) == 5
    np.testing.assert_allclose(speeds, 9.3, atol=0.1)


def test_raw_recording_has_camera_and_lidar_with_one_stamp_and_no_poses(raw):
    assert raw.topics["/lidar/points"].count == raw.topics["/camera/front/image/compressed"].count == 78
    assert "/tf" not in raw.topics
    stamps = {
        topic: [stamp_of(item.decode()) for item in raw.messages([topic])]
        for topic in ("/lidar/points", "/camera/front/image/compressed")
    }
    assert len(set(map(tuple, stamps.values()))) == 1


def test_raw_picture_fits_its_calibration_and_the_road_is_at_zero(raw):
    picture = read_image(first(raw, "/camera/front/image/compressed"))
    mount = mounts(raw)["camera_front_optical"]
    calibration = read_camera_info("front", first(raw, "/camera/front/camera_info")).calibration(mount)
    assert picture.data.shape[:2] == (calibration.height, calibration.width) == (375, 1242)
    np.testing.assert_allclose(mount[:3, 2], (1, 0, 0), atol=0.03)
    assert 1.5 < mount[2, 3] < 1.8
    cloud = read_cloud(first(raw, "/lidar/points")).cloud
    assert abs(ground_height(in_base(raw, cloud))) < 0.25
    assert cloud.ring is None


def test_tracked_boxes_hold_points_and_keep_their_tracks(tracking):
    message = first(tracking, "/truth/objects")
    boxes = boxes_from_message(message, DETECTION_CLASSES)
    points = in_base(tracking, read_cloud(first(tracking, "/lidar/points")).cloud)
    names = [boxes.class_names[label] for label in boxes.label]
    found = {name: index for index, name in enumerate(names) if name != DONT_CARE}
    assert {"car", "bicycle", "pedestrian"} == set(found)
    assert points_in(boxes, found["car"], points) == boxes.num_points[found["car"]] > 200
    assert boxes.num_points[found["bicycle"]] > 50
    assert boxes.track_id[found["car"]] == 0


def test_regions_without_labels_surround_the_view_of_the_camera(tracking):
    truth = boxes_from_message(first(tracking, "/truth/objects"), DETECTION_CLASSES)
    assert [truth.class_names[label] for label in truth.label][:2] == [DONT_CARE] * 2
    beside = truth.chosen(np.arange(len(truth)) < 2)
    places = np.array([(-10, 3, 0), (5, 20, 0), (5, -20, 0), (20, 0, 0), (20, 14, 0)], np.float32)
    assert beside.contain(places).any(0).tolist() == [True, True, True, False, False]


def test_within_40_m_as_much_of_the_view_is_unknown_as_the_labels_say(tracking):
    recording = tracking_recording(folder("kitti_tracking_0000"), "0000")
    camera = recording.calibrations.base_from_camera
    side = np.arange(-40, 40, 0.25) + 0.125
    x, y = (each.ravel() for each in np.meshgrid(side, side))
    places = np.stack((x, y, np.full(len(x), camera[2, 3])), 1)[np.hypot(x, y) < 40]
    pixels = (places - camera[:3, 3]) @ camera[:3, :3] @ recording.calibrations.camera_matrix.T
    columns = np.where(pixels[:, 2] > 0, pixels[:, 0] / pixels[:, 2], -np.inf)
    seen = (columns > 0) & (columns < 1218)
    found, wanted = [], []
    for number, message in enumerate(tracking.messages(["/truth/objects"])):
        if number % 10 == 0:
            truth = boxes_from_message(message.decode(), DETECTION_CLASSES)
            regions = truth.chosen(truth.label == truth.class_names.index(DONT_CARE))
            found.append(regions.contain(places[seen].astype(np.float32)).any(0).mean())
            edges = [np.array(row[5:8:2], float) for row in recording.labels[number] if row[1] == "DontCare"]
            within = [(left < columns[seen]) & (columns[seen] < right) for left, right in edges]
            wanted.append(np.logical_or.reduce(within).mean())
    np.testing.assert_allclose(found, wanted, rtol=0.05)
    assert 0.05 < np.mean(found) < 0.15


def test_poses_begin_at_the_origin_and_move_ahead(tracking):
    poses = [
        transform_from_message(item.decode().transforms[0].transform) for item in tracking.messages(["/tf"])
    ]
    np.testing.assert_allclose(poses[0], np.eye(4), atol=1e-6)
    assert poses[10][0, 3] > 2.0
    assert abs(poses[10][1, 3]) < 0.5
    assert abs(poses[10][2, 3]) < 0.3


@pytest.mark.parametrize("kind", ["kitti-raw", "kitti-tracking", "nuscenes-sample"])
def test_folder_without_the_recording_is_refused_and_leaves_nothing(tmp_path, kind):
    (tmp_path / "empty").mkdir()
    arguments = ["import", kind, str(tmp_path / "empty"), "--out", str(tmp_path / "bag")]
    result = CliRunner().invoke(build_app(), arguments)
    assert isinstance(result.exception, InputError)
    assert not (tmp_path / "bag").exists()


def copied(name, tmp_path, *, frames):
    """Copy a KITTI recording with some of its sweeps."""
    source, copy = folder(name), tmp_path / name
    skipped = shutil.ignore_patterns("velodyne")
    shutil.copytree(source, copy, ignore=skipped)
    (copy / "velodyne").mkdir()
    for path in sorted((source / "velodyne").iterdir()):
        if int(path.stem) in frames:
            shutil.copy(path, copy / "velodyne")
    return copy


def test_truth_and_poses_stay_with_their_sweep_where_sweeps_are_missing(tracking, tmp_path):
    stream = list(tracking_messages(copied("kitti_tracking_0000", tmp_path, frames=(0, 1, 20))))
    topics = ("/lidar/points", "/odometry", "/truth/objects")
    last = {topic: message for _, topic, message in stream}
    whole = {topic: [item.decode() for item in tracking.messages([topic])][20] for topic in topics}
    assert all(stamp_of(last[topic]) == stamp_of(whole[topic]) for topic in topics)
    assert last["/odometry"].pose.pose.position == whole["/odometry"].pose.pose.position
    found, wanted = (
        boxes_from_message(each["/truth/objects"], DETECTION_CLASSES).center for each in (last, whole)
    )
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", ["bag", "bag.mcap"])
def test_recording_of_which_a_part_is_missing_leaves_nothing(tmp_path, name):
    source = copied("kitti_raw_0926", tmp_path, frames=(0, 1, 2))
    first_three = sorted((source / "image_02").iterdir())[:3]
    first_three[2].unlink()
    result = CliRunner().invoke(
        build_app(), ["import", "kitti-raw", str(source), "--out", str(tmp_path / "out" / name)]
    )
    assert isinstance(result.exception, InputError)
    assert list((tmp_path / "out").iterdir()) == []


def test_unknown_kind_is_refused(tmp_path):
    arguments = ["import", "waymo", str(tmp_path), "--out", str(tmp_path / "bag")]
    result = CliRunner().invoke(build_app(), arguments)
    assert isinstance(result.exception, ConfigError)


def test_the_distributed_form_of_a_sequence_has_the_sweeps_and_boxes_of_the_compact_one(tmp_path):
    """The same numbers, as they lie in the archives; poses are of a vehicle that stands."""
    compact, training = copied("kitti_tracking_0000", tmp_path, frames=(0, 1, 20)), tmp_path / "training"
    for name in ("calib", "label_02", "oxts", "velodyne/0000"):
        (training / name).mkdir(parents=True)
    for name in ("calib", "label_02"):
        shutil.copy(next(compact.glob(f"{name}_*.txt")), training / name / "0000.txt")
    imu = " ".join(map(str, np.eye(4)[:3].ravel()))
    with (training / "calib" / "0000.txt").open("a") as calibration:
        calibration.write(f"\nTr_imu_velo {imu}\n")
    (training / "oxts" / "0000.txt").write_text("49 8.4 110" + " 0" * 27 + "\n")
    for path in (compact / "velodyne").iterdir():
        points = read_sweep(path, 0).points
        points.tofile(training / "velodyne" / "0000" / f"{path.stem}.bin")
    streams = [list(tracking_messages(folder)) for folder in (compact, training)]
    for topic in ("/lidar/points", "/truth/objects"):
        first, second = ([message for _, name, message in stream if name == topic] for stream in streams)
        assert len(first) == len(second) == 3
        for one, other in zip(first, second, strict=True):
            assert serialize(one) == serialize(other)
