# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""KITTI as it is distributed; the folders are made here, with calibrations that turn every axis."""

from collections import defaultdict

import cv2
import numpy as np
import pytest

from kestrel.classes import DETECTION_CLASSES
from kestrel.data.camera_info import read_camera_info
from kestrel.data.cloud_reader import read_cloud
from kestrel.data.kitti import raw_messages, tracking_messages
from kestrel.data.kitti_files import EARTH_RADIUS_M, read_stamps
from kestrel.data.messages import stamp_of, transform_from_message
from kestrel.data.perception_messages import DONT_CARE, boxes_from_message
from kestrel.data.picture_reader import read_image
from kestrel.errors import InputError

PROJECTION = np.array([[720.0, 0, 610, 45], [0, 720, 172, -0.3], [0, 0, 1, 0.005]])
POINTS = np.array([[12.0, 3.0, -1.0, 0.25], [20.0, -4.0, 0.5, 0.75], [8.0, 0.0, -1.5, 0.0]], np.float32)
SECONDS = ("02.951199337", "03.054549255", "03.158")
SHOWN = ("02.964389445", "03.067", "03.171")
MEASURED = ("02.96", "03.06", "03.16")
LATITUDE, LONGITUDE, STEP_M, HEADING = 49.0, 8.4, 1.2, np.pi / 2


def turned(*angles):
    """Rotations about x, y and z, one after the other."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        vector = np.zeros(3)
        vector[axis] = angle
        matrix = cv2.Rodrigues(vector)[0] @ matrix
    return matrix


CAMERA_FROM_LIDAR = np.eye(4)
CAMERA_FROM_LIDAR[:3] = np.c_[
    turned(0.01, 0.02, 0) @ [[0, -1, 0], [0, 0, -1], [1, 0, 0]], (0.06, -0.08, -0.27)
]
RECTIFIED = turned(0.003, -0.01, 0.02)
LIDAR_FROM_IMU = np.eye(4)
LIDAR_FROM_IMU[:3] = np.c_[turned(0, 0, 0.01), (-0.8, 0.32, -0.8)]


def numbers(values):
    return " ".join(f"{value:.12e}" for value in np.ravel(values))


def rigid(matrix):
    return f"calib_time: 15-Mar-2012 11:37:16\nR: {numbers(matrix[:3, :3])}\nT: {numbers(matrix[:3, 3])}\n"


def oxts(step):
    """A line of what was measured: on the way north, turning slowly to the left."""
    latitude = LATITUDE + np.degrees(step * STEP_M / EARTH_RADIUS_M)
    row = np.zeros(30)
    row[:6] = latitude, LONGITUDE, 112.0, 0, 0, HEADING
    row[8:11] = 12.0, 0.5, 0.1
    row[20:23] = 0, 0, 0.2
    return numbers(row)


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((375, 1242, 3), 90, np.uint8))


def sweep(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    POINTS.tofile(path)


@pytest.fixture
def raw(tmp_path):
    """A raw recording of three frames."""
    day = tmp_path / "2011_09_26"
    drive = day / "2011_09_26_drive_0001_sync"
    drive.mkdir(parents=True)
    (day / "calib_cam_to_cam.txt").write_text(
        "calib_time: 09-Jan-2012 13:57:47\ncorner_dist: 9.95e-02\n"
        f"R_rect_00: {numbers(RECTIFIED)}\nP_rect_02: {numbers(PROJECTION)}\n"
    )
    (day / "calib_velo_to_cam.txt").write_text(rigid(CAMERA_FROM_LIDAR))
    (day / "calib_imu_to_velo.txt").write_text(rigid(LIDAR_FROM_IMU))
    for number in range(3):
        name = f"{number:010d}"
        sweep(drive / "velodyne_points" / "data" / f"{name}.bin")
        picture(drive / "image_02" / "data" / f"{name}.png")
        (drive / "oxts" / "data").mkdir(parents=True, exist_ok=True)
        (drive / "oxts" / "data" / f"{name}.txt").write_text(oxts(number) + "\n")
    for name, stamps in (("velodyne_points", SECONDS), ("image_02", SHOWN), ("oxts", MEASURED)):
        text = "".join(f"2011-09-26 13:02:{second}\n" for second in stamps)
        (drive / name / "timestamps.txt").write_text(text)
    return drive


@pytest.fixture
def training(tmp_path):
    """A tracking sequence of three frames, one sweep of which is missing, with one car."""
    root = tmp_path / "training"
    for number in (0, 1, 2):
        if number != 1:
            sweep(root / "velodyne" / "0004" / f"{number:06d}.bin")
        picture(root / "image_02" / "0004" / f"{number:06d}.png")
    for name in ("calib", "oxts", "label_02"):
        (root / name).mkdir()
    (root / "calib" / "0004.txt").write_text(
        f"P2: {numbers(PROJECTION)}\nR_rect {numbers(RECTIFIED)}\n"
        f"Tr_velo_cam {numbers(CAMERA_FROM_LIDAR[:3])}\nTr_imu_velo {numbers(LIDAR_FROM_IMU[:3])}\n"
    )
    (root / "oxts" / "0004.txt").write_text("".join(oxts(number) + "\n" for number in range(3)))
    rectified = np.eye(4)
    rectified[:3, :3] = RECTIFIED
    bottom = (rectified @ CAMERA_FROM_LIDAR @ (12.0, 3.0, -1.73, 1))[:3]
    car = f"Car 0 0 -1.5 100 100 200 200 1.5 1.7 4.2 {numbers(bottom)} -1.6"
    (root / "label_02" / "0004.txt").write_text(f"0 7 {car}\n2 7 {car}\n")
    return root


def by_topic(stream):
    topics = defaultdict(list)
    for at, topic, message in stream:
        topics[topic].append((at, message))
    return topics


def mounts(topics):
    (_, message) = topics["/tf_static"][0]
    return {item.child_frame_id: transform_from_message(item.transform) for item in message.transforms}


def test_a_raw_recording_keeps_its_stamps_and_their_order(raw):
    stream = list(raw_messages(raw))
    assert [at for at, _, _ in stream] == sorted(at for at, _, _ in stream)
    topics = by_topic(stream)
    stamps = [stamp_of(message) for _, message in topics["/lidar/points"]]
    assert np.diff(stamps).tolist() == [103_349_918, 103_450_745]
    shown = [stamp_of(message) for _, message in topics["/camera/front/image/compressed"]]
    assert shown[0] - stamps[0] == 13_190_108
    assert [at for at, _ in topics["/lidar/points"]] == stamps


def test_points_are_where_the_published_calibration_puts_them_in_the_picture(raw):
    topics = by_topic(raw_messages(raw))
    mount = mounts(topics)["camera_front_optical"]
    calibration = read_camera_info("front", topics["/camera/front/camera_info"][0][1]).calibration(mount)
    cloud = read_cloud(topics["/lidar/points"][0][1]).cloud
    np.testing.assert_array_equal(cloud.points, POINTS)
    places = np.c_[cloud.points[:, :3], np.ones(3)] @ mounts(topics)["lidar"].T
    optical = places @ np.linalg.inv(mount).T
    pixel = optical[:, :3] @ calibration.camera_matrix.T
    rectified = np.eye(4)
    rectified[:3, :3] = RECTIFIED
    expected = np.c_[POINTS[:, :3], np.ones(3)] @ (PROJECTION @ rectified @ CAMERA_FROM_LIDAR).T
    np.testing.assert_allclose(pixel[:, :2] / pixel[:, 2:], expected[:, :2] / expected[:, 2:], atol=1e-3)
    assert read_image(topics["/camera/front/image/compressed"][0][1]).data.shape == (375, 1242, 3)
    assert topics["/camera/front/image/compressed"][0][1].format == "png"


@pytest.mark.parametrize("kind", ["raw", "training"])
def test_poses_begin_at_the_origin_and_go_ahead(request, kind):
    folder = request.getfixturevalue(kind)
    topics = by_topic(raw_messages(folder) if kind == "raw" else tracking_messages(folder, "0004"))
    poses = [transform_from_message(message.transforms[0].transform) for _, message in topics["/tf"]]
    np.testing.assert_allclose(poses[0], np.eye(4), atol=1e-9)
    # The IMU stands turned by 0.01 in the vehicle, which goes where the IMU looks.
    ahead = STEP_M * np.array([np.cos(0.01), np.sin(0.01)])
    np.testing.assert_allclose(poses[1][:2, 3], ahead, atol=2e-3)
    np.testing.assert_allclose(poses[2][:2, 3], 2 * ahead, atol=4e-3)
    np.testing.assert_allclose(poses[2][:3, :3], np.eye(3), atol=1e-9)


def test_velocities_are_those_of_base_link(raw):
    topics = by_topic(raw_messages(raw))
    twist = topics["/odometry"][0][1].twist.twist
    # Of the IMU 12.0 ahead and 0.5 to the left, turned by 0.01; base_link is 0.8 m ahead of it and turns at
    # 0.2 about it.
    assert twist.linear.x == pytest.approx(12 * np.cos(0.01) - 0.5 * np.sin(0.01) + 0.2 * 0.32, abs=1e-6)
    assert twist.linear.y == pytest.approx(12 * np.sin(0.01) + 0.5 * np.cos(0.01) + 0.2 * 0.8, abs=1e-6)
    assert twist.angular.z == pytest.approx(0.2)


def test_a_tracking_sequence_has_pictures_and_boxes_of_its_sweeps(training):
    topics = by_topic(tracking_messages(training, "0004"))
    assert len(topics["/lidar/points"]) == len(topics["/camera/front/image/compressed"]) == 2
    stamps = [stamp_of(message) for _, message in topics["/truth/objects"]]
    assert stamps[1] - stamps[0] == 200_000_000
    boxes = boxes_from_message(topics["/truth/objects"][1][1], DETECTION_CLASSES)
    (car,) = (index for index, label in enumerate(boxes.label) if boxes.class_names[label] == "car")
    np.testing.assert_allclose(boxes.center[car], (12.0, 3.0, 0.75), atol=0.05)
    np.testing.assert_allclose(boxes.size[car], (4.2, 1.7, 1.5), atol=1e-6)
    assert boxes.track_id[car] == 7
    assert boxes.num_points[car] == 1


def without_pictures(training):
    for path in (training / "image_02" / "0004").iterdir():
        path.unlink()
    (training / "image_02" / "0004").rmdir()


def test_a_tracking_sequence_may_have_no_pictures(training):
    without_pictures(training)
    topics = by_topic(tracking_messages(training, "0004"))
    assert "/camera/front/image/compressed" not in topics
    assert set(mounts(topics)) == {"lidar"}


def unlabelled(training, *regions):
    """Return what the truth of frame 0 says nothing of, the labels having regions of these columns."""
    lines = "".join(
        f"0 -1 DontCare -1 -1 -10 {left} 150 {right} 190" + " -1000" * 7 + "\n" for left, right in regions
    )
    (training / "label_02" / "0004.txt").write_text(lines)
    (_, message), *_ = by_topic(tracking_messages(training, "0004"))["/truth/objects"]
    boxes = boxes_from_message(message, DETECTION_CLASSES)
    return boxes.chosen(boxes.label == boxes.class_names.index(DONT_CARE))


def columns_of(places):
    """Return the columns of the picture at which places in base_link are, by the published calibration."""
    rectified = np.eye(4)
    rectified[:3, :3] = RECTIFIED
    pixels = (
        np.c_[places - (0, 0, 1.73), np.ones(len(places))] @ (PROJECTION @ rectified @ CAMERA_FROM_LIDAR).T
    )
    return np.where(pixels[:, 2] > 0, pixels[:, 0] / pixels[:, 2], -np.inf)


def around(step=0.25, reach=40.0, height=1.65):
    """Return places (N, 3) in base_link within a reach, as high as the camera sits."""
    side = np.arange(-reach, reach, step) + step / 2
    x, y = (each.ravel() for each in np.meshgrid(side, side))
    return np.c_[x, y, np.full(len(x), height)][np.hypot(x, y) < reach]


def covered(boxes, places):
    return boxes.contain(places.astype(np.float32)).any(0)


REGIONS = ((40, 180), (300, 340), (900, 1100))


def test_regions_are_unknown_in_their_directions_from_the_camera_on_and_nowhere_else(training):
    boxes, places = unlabelled(training, *REGIONS), around()
    columns = columns_of(places)
    seen = (columns > 0) & (columns < 1241)
    directions = np.logical_or.reduce([(left < columns) & (columns < right) for left, right in REGIONS])
    found = covered(boxes, places)
    assert directions.sum() == pytest.approx((found & seen).sum(), rel=0.03)
    assert ((found != directions) & seen).sum() < 0.07 * directions.sum(), "half of it beyond the edges"


def test_what_is_beside_a_narrow_region_is_known_however_near(training):
    boxes, places = unlabelled(training, (300, 340)), around()
    columns, away = columns_of(places), np.hypot(*places[:, :2].T)
    for metres in (5, 10, 20, 39):
        here = abs(away - metres) < 0.5
        within, beside = abs(columns - 320) < 15, abs(columns - 320) < 20 + 720 / metres
        assert covered(boxes, places[here & within]).all(), metres
        others = here & ~beside & (columns > 10) & (columns < 1230)
        assert others.sum() > 50
        assert not covered(boxes, places[others]).any(), f"a metre beside it at {metres} m"


@pytest.mark.parametrize(("pictures", "last"), [(True, 1241), (False, 1219)])
def test_beside_the_view_of_the_camera_nothing_is_known(training, pictures, last):
    """Without a picture as much is taken for seen to the right as to the left."""
    if not pictures:
        without_pictures(training)
    places = around()
    columns = columns_of(places)
    beyond = (columns < 0) | (columns > last)
    assert (covered(unlabelled(training), places) != beyond).mean() < 1e-3


def test_a_region_without_a_width_is_none(training):
    assert len(unlabelled(training, (300, 300))) == len(unlabelled(training))


def test_stamps_are_counted_in_utc(tmp_path):
    path = tmp_path / "timestamps.txt"
    path.write_text("1970-01-02 00:00:01.5\n")
    assert read_stamps(path) == [86_401_500_000_000]


BREAKS = {
    "sweep": ("velodyne_points/data/0000000001.bin", b"\0" * 20, "4 numbers a point"),
    "stamps": ("velodyne_points/timestamps.txt", b"2011-09-26 13:02:02.9\n", "expected 2, found 1 of sweeps"),
    "stamp": ("image_02/timestamps.txt", b"yesterday\n", "YYYY-MM-DD"),
    "oxts": ("oxts/data/0000000001.txt", b"1 2 3\n", "30 columns"),
    "times": ("oxts/timestamps.txt", b"2011-09-26 13:02:02.9\n", "expected 3, found 1"),
    "picture": ("image_02/data/0000000001.png", b"text", "a JPEG or PNG"),
    "camera": ("../calib_cam_to_cam.txt", b"P_rect_02: 1 2 3\n", "P2 with 12 numbers, found 3 numbers"),
    "lidar": ("../calib_velo_to_cam.txt", b"T: 1 2 3\n", "R with 9 numbers"),
}


@pytest.mark.parametrize("broken", list(BREAKS))
def test_what_is_broken_is_named(raw, broken):
    name, content, message = BREAKS[broken]
    (raw / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        list(raw_messages(raw))
    assert any(part in str(error.value) for part in ((raw / name).stem, "stamps for", "stamps in"))


@pytest.mark.parametrize("missing", ["image_02/data/0000000002.png", "../calib_imu_to_velo.txt"])
def test_what_is_missing_is_named(raw, missing):
    (raw / missing).unlink()
    with pytest.raises(InputError, match=missing.split("/")[-1]):
        list(raw_messages(raw))


def test_a_sequence_that_is_not_there_is_named(training):
    with pytest.raises(InputError, match=r"calib/0011\.txt"):
        list(tracking_messages(training, "0011"))
