# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What a recording holds at one moment is found, and nothing that has no place."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("rerun")
pytest.importorskip("imageio")


from kestrel.data import perception_messages, sensor_messages
from kestrel.data.bag import BagWriter
from kestrel.errors import CalibrationError
from kestrel.eval.scene import Scene
from tests.show.recordings import EPOCH, FORWARD, LENS, boxes, mounted, record, show, sweep
from tests.train.recordings import START, STEP, Drive, landmarks_in, odom_from_base


def test_a_camera_is_where_it_was_when_it_took_the_picture(tmp_path):
    scene = Scene(record(tmp_path / "out.mcap", cameras=("a", "b"), late=4 * 10**7, speed=10.0))
    moving = scene.frame(EPOCH)
    assert [view.name for view in moving.cameras] == ["a", "b"]
    for number, view in enumerate(moving.cameras):
        assert view.stamp_ns == EPOCH + number * 4 * 10**7
        moved = view.calibration.reference_from_camera - FORWARD
        np.testing.assert_allclose(moved[0, 3], 0.4 * number, atol=1e-9)
        assert np.abs(moved).sum() == pytest.approx(0.4 * number)
    standing = Scene(record(tmp_path / "none.mcap", cameras=("a", "b"), late=4 * 10**7)).frame(EPOCH)
    assert [view.name for view in standing.cameras] == ["a", "b"]
    for view in standing.cameras:
        np.testing.assert_array_equal(view.calibration.reference_from_camera, FORWARD)


def test_frame_holds_the_answers_of_its_own_sweep(tmp_path):
    scene = Scene(record(tmp_path / "out.mcap"))
    frame = scene.frame(scene.stamps[1])
    assert frame.objects.stamp_ns == scene.stamps[1]
    assert frame.latencies_ms == {"fusion": pytest.approx(30.0), "video": pytest.approx(10.0)}
    assert frame.cameras[0].event == ("cut_in", 0.8)
    assert scene.rate_hz == pytest.approx(10.0)


def test_points_without_a_place_are_left_out_with_their_classes(tmp_path):
    """The node answers with as many points as the sensor sent, those of no return among them."""
    with BagWriter(tmp_path / "out.mcap") as bag:
        mounted(bag)
        cloud = sweep(EPOCH)
        values = cloud.data.copy().view(np.float32)
        values[4] = np.nan  # x of the second point
        cloud.data = values.view(np.uint8)
        bag.write("/lidar/points", cloud, EPOCH)
        answer = np.zeros(10, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("class_id", "u1")])
        answer["class_id"] = np.arange(10)
        bag.write("/segmentation/output/points", sensor_messages.packed_cloud(answer, EPOCH, "lidar"), EPOCH)
    frame = Scene(tmp_path / "out.mcap").frame(EPOCH)
    assert frame.classes.tolist() == [0, *range(2, 10)]
    assert len(frame.points) == 9


def test_a_broken_sweep_is_a_frame_without_points(tmp_path):
    with BagWriter(tmp_path / "out.mcap") as bag:
        mounted(bag)
        for index in range(3):
            cloud = sweep(EPOCH + index * 10**8)
            if index == 1:
                cloud.data = cloud.data[:7]
            bag.write("/lidar/points", cloud, EPOCH + index * 10**8)
    assert [frame.points is None for frame in Scene(tmp_path / "out.mcap").frames()] == [False, True, False]


@pytest.mark.parametrize("topic", ["/truth/objects", "/fusion/output/objects"])
def test_boxes_without_a_place_are_left_out(tmp_path, topic):
    with BagWriter(tmp_path / "out.mcap") as bag:
        mounted(bag)
        bag.write("/lidar/points", sweep(EPOCH), EPOCH)
        found = boxes([(np.nan, 0, 1), (10, 0, 1), (np.inf, 0, 1)])
        bag.write(topic, perception_messages.objects_message(found), EPOCH)
    result, out = show(tmp_path / "out.mcap", "--no-video")
    assert result.exit_code == 0, result.exception
    assert (out / "overview.png").exists()
    frame = Scene(tmp_path / "out.mcap").frame(EPOCH)
    assert [len(each) for each in (frame.objects, frame.truth) if each is not None] == [1]


def test_the_moment_of_most_objects_is_not_that_of_most_regions_of_which_nothing_is_known(tmp_path):
    with BagWriter(tmp_path / "out.mcap") as bag:
        mounted(bag)
        for index, objects in enumerate((1, 1, 2, 0)):
            stamp = EPOCH + index * 10**8
            bag.write("/lidar/points", sweep(stamp), stamp)
            truth = perception_messages.objects_message(boxes([(10, 0, 1)] * 4, stamp=stamp))
            for item in truth.objects[objects:]:
                item.class_id = perception_messages.DONT_CARE
            bag.write("/truth/objects", truth, stamp)
    scene = Scene(tmp_path / "out.mcap")
    assert scene.best_stamp() == EPOCH + 2 * 10**8
    assert [len(frame.truth) for frame in scene.frames()] == [1, 1, 2, 0]


def test_a_transform_that_is_no_rotation_is_said(tmp_path):
    with BagWriter(tmp_path / "out.mcap") as bag:
        mounted(bag, {"x": 0.0, "y": 0.0, "z": 0.0, "w": 0.0})
        bag.write("/lidar/points", sweep(EPOCH), EPOCH)
    with pytest.raises(CalibrationError, match=r"transform: expected .* quaternion that is not zero"):
        Scene(tmp_path / "out.mcap")


def test_without_lidar_frames_are_those_of_the_camera_that_was_answered(tmp_path):
    """Cameras of a vehicle fire one after the other; the answer has the stamp of one of them."""
    path = record(tmp_path / "out.mcap", cameras=("front_left", "front"), lidar=False, late=4 * 10**6)
    frames = list(Scene(path).frames())
    assert [frame.stamp_ns for frame in frames] == [EPOCH + 4 * 10**6 + index * 10**8 for index in range(3)]
    assert all(frame.objects is not None for frame in frames)


def test_frames_go_on_with_the_cameras_while_the_lidar_is_silent(tmp_path):
    path = tmp_path / "out.mcap"
    silent = range(10, 25)
    with BagWriter(path) as bag:
        mounted(bag)
        for index in range(30):
            stamp = EPOCH + index * 10**8
            picture = np.full((18, 32, 3), index, np.uint8)
            image = sensor_messages.compressed_image(picture, stamp + 10**7, "front_optical", jpeg_quality=80)
            bag.write("/camera/front/image/compressed", image, stamp)
            if index not in silent:
                bag.write("/lidar/points", sweep(stamp), stamp)
    scene = Scene(path)
    sweeps = [EPOCH + index * 10**8 for index in range(30) if index not in silent]
    pictures = [EPOCH + index * 10**8 + 10**7 for index in silent]
    assert set(sweeps) <= set(scene.stamps)
    assert set(scene.stamps) - set(sweeps) <= set(pictures)
    assert len(scene.stamps) >= len(sweeps) + len(pictures) - 4
    assert scene.frame(pictures[12]).points is None
    assert len(scene.frame(pictures[12]).cameras) == 1


def test_boxes_are_not_drawn_with_the_camera_info_of_another_picture(tmp_path):
    path = record(tmp_path / "out.mcap", lens=replace(LENS, width=640, height=360))
    assert [view.calibration for view in Scene(path).frame(EPOCH).cameras] == [None]
    assert Scene(record(tmp_path / "own.mcap")).frame(EPOCH).cameras[0].calibration is not None


def test_a_sensor_on_a_roof_that_is_on_the_vehicle_is_shown_where_it_is(tmp_path):
    frame = Scene(Drive().write(tmp_path / "drive.bag")).frame(START + 5 * STEP)
    np.testing.assert_allclose(frame.points[:, :3], landmarks_in(odom_from_base(START + 5 * STEP)), atol=1e-4)
