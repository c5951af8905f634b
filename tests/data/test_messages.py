# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.classes import DETECTION_CLASSES
from kestrel.data import messages, perception_messages, sensor_messages
from kestrel.data.bag import deserialize, serialize
from kestrel.data.camera_info import read_camera_info
from kestrel.data.cloud_layout import cloud_fields
from kestrel.data.cloud_reader import read_cloud
from kestrel.data.picture_reader import read_image
from kestrel.errors import CalibrationError, InputError
from kestrel.types import BevMap, Boxes3D, Calibration, PointCloud

STAMP = 1_700_000_001_050_000_000


def through_cdr(message):
    return deserialize(serialize(message), message.__msgtype__)


def some_boxes(count=3):
    random = np.random.default_rng(0)
    return Boxes3D(
        center=random.normal(size=(count, 3)).astype(np.float32),
        size=random.uniform(0.5, 5, (count, 3)).astype(np.float32),
        yaw=random.uniform(-math.pi, math.pi, count).astype(np.float32),
        velocity=np.full((count, 2), np.nan, np.float32),
        label=np.arange(count),
        score=random.uniform(size=count).astype(np.float32),
        class_names=DETECTION_CLASSES,
        frame_id="base_link",
        stamp_ns=STAMP,
        track_id=np.arange(count) + 7,
        num_points=np.arange(count) * 2,
    )


def test_cloud_round_trip_keeps_every_field():
    random = np.random.default_rng(0)
    cloud = PointCloud(
        random.uniform(0, 1, (100, 4)).astype(np.float32),
        STAMP,
        "lidar",
        random.integers(0, 32, 100).astype(np.uint16),
        random.uniform(0, 0.05, 100).astype(np.float32),
    )
    message = sensor_messages.cloud_message(cloud)
    assert message.point_step == 22
    back = read_cloud(through_cdr(message)).cloud
    assert np.array_equal(back.points, cloud.points)
    assert np.array_equal(back.ring, cloud.ring)
    assert np.array_equal(back.time_s, cloud.time_s)
    assert (back.stamp_ns, back.frame_id) == (STAMP, "lidar")


def test_what_a_sensor_does_not_give_is_not_made_up():
    cloud = PointCloud(np.ones((5, 4), np.float32), STAMP, "lidar")
    message = through_cdr(sensor_messages.cloud_message(cloud))
    assert [field.name for field in message.fields] == ["x", "y", "z", "intensity"]
    back = read_cloud(message).cloud
    assert back.ring is None
    assert back.time_s is None


def test_empty_cloud_round_trip():
    cloud = PointCloud(np.zeros((0, 4), np.float32), STAMP, "lidar")
    back = read_cloud(through_cdr(sensor_messages.cloud_message(cloud))).cloud
    assert len(back) == 0


def test_cloud_of_another_layout_is_read_by_field_name():
    dtype = np.dtype(
        {"names": ["z", "intensity", "x", "y"], "formats": ["<f8", "u1", "<f4", "<f4"],
         "offsets": [0, 9, 12, 16], "itemsize": 32}
    )  # fmt: skip
    points = np.zeros(4, dtype)
    points["x"], points["y"], points["z"], points["intensity"] = 1, 2, 3, 51
    points["x"][2] = np.nan
    message = sensor_messages.packed_cloud(points, STAMP, "lidar")
    back = read_cloud(message).cloud
    assert back.points.tolist() == [[1, 2, 3, np.float32(0.2)]] * 3


def test_intensity_beyond_one_is_clipped_as_in_the_nodes():
    points = np.zeros(4, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("intensity", "<f4")])
    points["intensity"] = [0.25, 200.0, np.inf, np.nan]
    back = read_cloud(sensor_messages.packed_cloud(points, STAMP, "lidar")).cloud
    assert back.points[:, 3].tolist() == [0.25, 1.0, 1.0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("kind", "ring"), [("<f4", None), ("<i4", [0, 1, 2]), ("u1", [0, 1, 2])])
def test_rings_are_those_of_integers_alone_as_in_the_nodes(kind, ring):
    points = np.zeros(3, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("ring", kind)])
    points["ring"] = range(3)
    if ring is None:
        points["ring"][:] = np.nan, -1, 1e30
    back = read_cloud(sensor_messages.packed_cloud(points, STAMP, "lidar")).cloud
    assert (back.ring if ring is None else back.ring.tolist()) == ring


def test_cloud_of_a_driver_with_its_own_names_is_read_as_in_the_nodes():
    """Of Ouster: floats far above 1, and nanoseconds that 32 bits count from the stamp."""
    points = np.zeros(3, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("intensity", "<f4"), ("t", "<u4")])
    points["x"], points["intensity"], points["t"] = range(3), [3, 51, 250], [0, 50_000_000, 99_000_000]
    message = through_cdr(sensor_messages.packed_cloud(points, STAMP, "lidar"))
    told = read_cloud(message, intensity_max=255.0)
    assert told.cloud.points[:, 3] == pytest.approx([3 / 255, 0.2, 250 / 255])
    assert told.cloud.time_s == pytest.approx([0, 0.05, 0.099])
    assert told.notes == ()
    assert read_cloud(message).notes == ("intensity above 1 is clipped: set intensity_max",)


def test_rows_padded_at_their_end_are_read():
    message = sensor_messages.packed_cloud(np.arange(6, dtype="<f4").view([("x", "<f4")]), STAMP, "lidar")
    message.height, message.width, message.row_step = 2, 2, 12
    assert cloud_fields(message)["x"].tolist() == [0, 1, 3, 4]


def test_cloud_that_is_too_short_is_refused():
    message = sensor_messages.cloud_message(PointCloud(np.ones((5, 4), np.float32), STAMP, "lidar"))
    message.data = message.data[:-1]
    with pytest.raises(InputError, match="80 bytes"):
        read_cloud(message)


def test_boxes_round_trip_keeps_every_field():
    boxes = some_boxes()
    message = perception_messages.objects_message(boxes, modality="lidar", sensors_used=["lidar"])
    back = perception_messages.boxes_from_message(through_cdr(message), DETECTION_CLASSES)
    assert message.sensors_used == ["lidar"]
    for name in ("center", "size", "yaw", "velocity", "score"):
        np.testing.assert_allclose(getattr(back, name), getattr(boxes, name), atol=1e-6)
    for name in ("label", "track_id", "num_points"):
        assert np.array_equal(getattr(back, name), getattr(boxes, name))


def test_no_boxes_is_an_empty_message():
    boxes = some_boxes(0)
    back = perception_messages.boxes_from_message(
        through_cdr(perception_messages.objects_message(boxes)), DETECTION_CLASSES
    )
    assert len(back) == 0
    assert back.center.shape == (0, 3)


def test_class_that_the_list_lacks_is_appended():
    message = perception_messages.objects_message(some_boxes(2))
    message.objects[0].class_id = "dont_care"
    back = perception_messages.boxes_from_message(message, DETECTION_CLASSES)
    assert back.class_names[back.label[0]] == "dont_care"
    assert back.class_names[: len(DETECTION_CLASSES)] == DETECTION_CLASSES


def test_map_round_trip_keeps_axes():
    probability = np.zeros((2, 4, 6), np.float32)
    probability[0, 3, 1] = 1.0  # x cell 3, y cell 1
    probability[1, :, 5] = 0.5
    bev = BevMap(probability, ("drivable_area", "divider"), (-2.0, -3.0), 1.0, "base_link", STAMP)
    grids = {name: through_cdr(grid) for name, grid in perception_messages.map_messages(bev).items()}
    grid = grids["drivable_area"]
    assert (grid.info.width, grid.info.height) == (4, 6)
    assert grid.data[1 * 4 + 3] == 100  # REP-103 grids are row-major with x along a row
    back = perception_messages.map_from_messages(grids)
    np.testing.assert_allclose(back.probability, probability)
    assert (back.lower, back.resolution, back.layer_names) == (bev.lower, 1.0, bev.layer_names)


def test_unknown_cells_count_as_not_there():
    bev = BevMap(np.ones((1, 2, 2), np.float32), ("divider",), (0.0, 0.0), 1.0, "base_link", STAMP)
    grids = perception_messages.map_messages(bev)
    grids["divider"].data[:] = -1
    assert not perception_messages.map_from_messages(grids).probability.any()


@pytest.mark.parametrize(
    ("corner", "resolution"), [((math.nan, 0.0), 1.0), ((0.0, -math.inf), 1.0), ((0.0, 0.0), 0.0)]
)
def test_a_map_without_a_place_is_refused(corner, resolution):
    bev = BevMap(np.ones((1, 2, 2), np.float32), ("divider",), corner, resolution, "base_link", STAMP)
    with pytest.raises(InputError, match="place of map layer divider: expected a finite corner"):
        perception_messages.map_from_messages(perception_messages.map_messages(bev))


def test_a_map_without_cells_is_refused():
    bev = BevMap(np.ones((1, 2, 0), np.float32), ("divider",), (0.0, 0.0), 1.0, "base_link", STAMP)
    with pytest.raises(InputError, match=r"map layer divider: expected at least one cell, found \(0, 2\)"):
        perception_messages.map_from_messages(perception_messages.map_messages(bev))


@settings(deadline=None, max_examples=50)
@given(st.floats(-math.pi, math.pi), st.floats(-1.5, 1.5), st.floats(-math.pi, math.pi))
def test_transform_round_trip(yaw, pitch, roll):
    from scipy.spatial.transform import Rotation

    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("zyx", (yaw, pitch, roll)).as_matrix()
    matrix[:3, 3] = 1.0, -2.0, 3.0
    message = messages.tf_message([messages.transform_message(matrix, "odom", "base_link", STAMP)])
    back = messages.transform_from_message(through_cdr(message).transforms[0].transform)
    np.testing.assert_allclose(back, matrix, atol=1e-9)


@pytest.mark.parametrize("number", [0.0, 5e-324, 1e-200, 1e200, math.nan, math.inf])
def test_a_quaternion_without_a_length_is_no_rotation(number):
    message = messages.transform_message(np.eye(4), "odom", "base_link", STAMP)
    message.transform.rotation.w = number
    with pytest.raises(CalibrationError, match="a quaternion that is not zero"):
        messages.transform_from_message(message.transform)


def test_calibration_round_trip():
    matrix = np.array([[500.0, 0, 320], [0, 510.0, 180], [0, 0, 1]])
    distortion = np.array([0.1, -0.05, 0.001, 0.002, 0.0])
    calibration = Calibration(matrix, 640, 360, np.eye(4), "plumb_bob", distortion)
    message = through_cdr(sensor_messages.camera_info_message(calibration, STAMP, "camera_front_optical"))
    back = read_camera_info("front", message).calibration(np.eye(4))
    np.testing.assert_array_equal(back.camera_matrix, matrix)
    np.testing.assert_array_equal(back.distortion, distortion)
    assert (back.width, back.height, back.distortion_model) == (640, 360, "plumb_bob")


def test_camera_without_distortion_stays_without():
    calibration = Calibration(np.diag([500.0, 500.0, 1.0]), 640, 360, np.eye(4))
    message = sensor_messages.camera_info_message(calibration, STAMP, "camera_front_optical")
    assert message.distortion_model == "plumb_bob"
    assert read_camera_info("front", message).calibration(np.eye(4)).distortion_model == "none"


def test_png_is_lossless_and_jpeg_keeps_colour_order():
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    message = sensor_messages.compressed_image(ids, STAMP, "camera", jpeg_quality=None)
    assert np.array_equal(sensor_messages.grey_from_message(through_cdr(message)), ids)
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    message = sensor_messages.compressed_image(red, STAMP, "camera", jpeg_quality=90)
    picture = read_image(through_cdr(message)).data
    assert picture[..., 0].min() > 240
    assert picture[..., 2].max() < 15


def test_broken_jpeg_is_refused():
    red = np.zeros((16, 16, 3), np.uint8)
    message = sensor_messages.compressed_image(red, STAMP, "camera", jpeg_quality=90)
    message.data = message.data[:20]
    with pytest.raises(InputError, match="JPEG"):
        read_image(message)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (read_image, "expected a JPEG or PNG, found bytes b''"),
        (sensor_messages.grey_from_message, "found jpeg"),
    ],
)
def test_compressed_image_without_a_byte_is_refused(read, text):
    message = sensor_messages.stored_image(b"", STAMP, "camera")
    with pytest.raises(InputError, match=text):
        read(message)


def raw_image(encoding, width, height, step, data):
    return messages.new(
        "sensor_msgs/msg/Image",
        header=messages.header(STAMP, "camera"),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=step,
        data=np.asarray(data, np.uint8),
    )


@pytest.mark.parametrize(
    ("encoding", "size", "text"),
    [
        ("rgb9", 6, "image encoding: .* found 'rgb9'"),
        ("rgb8", 5, "height \\* step = 6 bytes, found 5"),
        ("rgb8", 0, "height \\* step = 6 bytes, found 0"),
    ],
)
def test_raw_image_of_an_unknown_encoding_or_cut_off_is_refused(encoding, size, text):
    with pytest.raises(InputError, match=text):
        read_image(raw_image(encoding, 2, 1, 6, np.zeros(size)))


@pytest.mark.parametrize(
    ("encoding", "width", "height", "step"),
    [("mono8", 0, 6, 0), ("rgb8", 4, 0, 12), ("rgb8", 0, 0, 0), ("yuv422", 3, 2, 6)],
)
def test_raw_image_of_a_size_that_none_has_is_refused(encoding, width, height, step):
    with pytest.raises(InputError, match=r"at least one pixel|an even number"):
        read_image(raw_image(encoding, width, height, step, np.zeros(step * height)))


def test_orientation_that_a_jpeg_tells_does_not_turn_its_pixels():
    """Calibrations are of the stored pixels, which is what nodes look at as well."""
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:, :16] = 255
    stored = bytes(sensor_messages.compressed_image(picture, STAMP, "camera", jpeg_quality=90).data)
    # APP1 of one entry: 0x0112 (orientation), one SHORT, 6: to be turned by a quarter.
    exif = b"Exif\0\0MM\0*" + bytes.fromhex("00000008 0001 0112 0003 00000001 00060000 00000000")
    turned = stored[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + stored[2:]
    read = read_image(sensor_messages.stored_image(turned, STAMP, "camera")).data
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (32, 16, 3)
    assert read.shape == (16, 32, 3)
    assert read[:, :14].min() > 240


def test_raw_image_is_read_as_rgb():
    message = raw_image("bgr8", 2, 1, 6, [1, 2, 3, 4, 5, 6])
    assert read_image(message).data.tolist() == [[[3, 2, 1], [6, 5, 4]]]


def test_scores_are_sorted_and_the_best_is_found():
    message = messages.classification_message({"clear": 0.2, "cut_in": 0.7, "stopped": 0.1}, STAMP, "camera")
    assert [item.class_id for item in message.results] == ["cut_in", "clear", "stopped"]
    assert messages.best_class(through_cdr(message)) == ("cut_in", 0.7)
    assert messages.best_class(messages.classification_message({}, STAMP, "camera")) is None


def test_motion_messages_carry_what_was_given():
    odometry = through_cdr(messages.odometry_message(np.eye(4), STAMP, linear=(5.0, 0, 0)))
    assert (odometry.header.frame_id, odometry.child_frame_id) == ("odom", "base_link")
    assert odometry.twist.twist.linear.x == 5.0
    imu = through_cdr(
        messages.imu_message(STAMP, angular_velocity=(0, 0, 0.1), linear_acceleration=(0, 0, 9.81))
    )
    assert imu.orientation_covariance[0] == -1
    assert imu.linear_acceleration.z == 9.81


def wrong(name, value):
    def change(message):
        setattr(message.fields[0], name, value)

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (wrong("datatype", 99), "cloud field 'x': expected datatype 1 .. 8, found 99"),
        (wrong("offset", 4096), "cloud field 'x': expected to end within point_step 16"),
        (wrong("name", "y"), "cloud fields: expected unique names"),
        (wrong("count", 2), "cloud fields: expected fields that do not overlap"),
        (lambda message: setattr(message, "row_step", 5), "cloud row_step: expected at least"),
    ],
)
def test_cloud_of_a_layout_that_cannot_be_is_refused(change, text):
    cloud = PointCloud(np.ones((6, 4), np.float32), STAMP, "lidar")
    message = sensor_messages.cloud_message(cloud)
    message.height, message.width = 2, 3
    message.row_step = 3 * message.point_step
    assert len(read_cloud(message).cloud.points) == 6
    change(message)
    with pytest.raises(InputError, match=text):
        read_cloud(message)
