# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What is drawn is where it belongs, and every kind of recording gives its files."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

pytest.importorskip("rerun")
pytest.importorskip("imageio")

from typer.testing import CliRunner

from kestrel.classes import DETECTION_CLASSES, DETECTION_COLOURS, MAP_LAYERS
from kestrel.cli import build_app
from kestrel.data import messages, perception_messages, sensor_messages
from kestrel.data.bag import BagWriter
from kestrel.errors import CalibrationError, InputError
from kestrel.eval.scene import CameraView, Frame, Scene
from kestrel.show import birdseye, camera, compose, draw
from kestrel.types import BevMap, Boxes3D, Calibration, PointCloud

EPOCH = 1_700_000_000 * 10**9
FORWARD = np.array([[0, 0, 1, 1.5], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]], float)
"""base_link from a camera that looks ahead, 1.5 m above the ground."""
LENS = Calibration(np.array([[200.0, 0, 160], [0, 200.0, 90], [0, 0, 1]]), 320, 180, FORWARD)


def boxes(centers, velocity=(0.0, 0.0), stamp=EPOCH):
    count = len(centers)
    return Boxes3D(
        center=np.array(centers, np.float32).reshape(count, 3),
        size=np.tile(np.array([4.0, 2.0, 1.5], np.float32), (count, 1)),
        yaw=np.zeros(count, np.float32),
        velocity=np.tile(np.array(velocity, np.float32), (count, 1)),
        label=np.zeros(count, np.int64),
        score=np.full(count, 0.9, np.float32),
        class_names=DETECTION_CLASSES,
        frame_id="base_link",
        stamp_ns=stamp,
    )


def blank(**parts):
    empty = dict.fromkeys(("points", "classes", "objects", "truth", "bev_map", "truth_event"))
    return Frame(EPOCH, 0.0, cameras=(), latencies_ms={}, **{**empty, **parts})


def record(path, *, cameras=("front",), lidar=True, frames=3, answers=True, late=0, lens=LENS, speed=None):
    """late: nanoseconds by which each camera in the list is behind the one before. speed: odometry, m/s."""
    with BagWriter(path) as bag:
        mounts = [messages.transform_message(np.eye(4), "base_link", "lidar", EPOCH)]
        mounts += [
            messages.transform_message(FORWARD, "base_link", f"{name}_optical", EPOCH) for name in cameras
        ]
        bag.write("/tf_static", messages.tf_message(mounts), EPOCH)
        for index in range(frames):
            stamp = EPOCH + index * 10**8
            if speed is not None:
                pose = np.eye(4)
                pose[0, 3] = speed * index / 10
                bag.write("/tf", messages.tf_message([pose_message(pose, stamp)]), stamp)
            if lidar:
                points = np.random.default_rng(index).uniform(-20, 20, (500, 4)).astype(np.float32)
                cloud = PointCloud(points, stamp, "lidar")
                bag.write("/lidar/points", sensor_messages.cloud_message(cloud), stamp)
            sweep = stamp
            for number, name in enumerate(cameras):
                stamp = sweep + number * late
                picture = np.full((180, 320, 3), 90, np.uint8)
                frame = f"{name}_optical"
                image = sensor_messages.compressed_image(picture, stamp, frame, jpeg_quality=80)
                bag.write(f"/camera/{name}/image/compressed", image, stamp)
                info = sensor_messages.camera_info_message(lens, stamp, frame)
                bag.write(f"/camera/{name}/camera_info", info, stamp)
                event = messages.classification_message({"cut_in": 0.8}, stamp, frame)
                bag.write(f"/video/output/{name}/event", event, stamp + 10**7)
            if answers:
                found = perception_messages.objects_message(boxes([(15, 0, 0.75)], (5.0, 0.0), stamp))
                bag.write("/fusion/output/objects", found, stamp + 3 * 10**7)
    return path


def pose_message(pose, stamp):
    return messages.transform_message(pose, "odom", "base_link", stamp)


def test_corners_turn_with_the_box():
    turned = replace(boxes([(10, 5, 1)]), yaw=np.array([np.pi / 2], np.float32))
    found = camera.corners(turned)[0]
    np.testing.assert_allclose(found.min(0), (9, 3, 0.25), atol=1e-5)
    np.testing.assert_allclose(found[list(camera.FRONT), 1], 7.0, atol=1e-5)


def test_box_straight_ahead_is_drawn_around_the_principal_point():
    lines = camera.box_lines(boxes([(15, 0, 1.5)]), LENS)
    assert len(lines) == 12
    pixels = np.concatenate([line for _, line in lines])
    np.testing.assert_allclose((pixels.min(0) + pixels.max(0)) / 2, (160, 90), atol=1e-6)
    # The near face is 11.5 m from the camera and 2 m wide.
    assert np.ptp(pixels[:, 0]) == pytest.approx(200 * 2 / 11.5)


def test_what_is_behind_the_camera_is_not_drawn_and_what_reaches_there_is_cut():
    assert camera.box_lines(boxes([(-15, 0, 1.5)]), LENS) == []
    beside = camera.box_lines(boxes([(2.5, 0, 1.5)]), LENS)
    assert 0 < len(beside) < 12 or np.isfinite(np.concatenate([line for _, line in beside])).all()


def test_lens_distortion_moves_the_box():
    barrel = replace(LENS, distortion_model="plumb_bob", distortion=np.array([-0.3, 0.05, 0, 0, 0]))
    straight = np.concatenate([line for _, line in camera.box_lines(boxes([(12, 4, 1)]), LENS)])
    bent = np.concatenate([line for _, line in camera.box_lines(boxes([(12, 4, 1)]), barrel)])
    assert (np.abs(bent - (160, 90)) < np.abs(straight - (160, 90)) + 1e-9).all()


def test_a_camera_is_where_it_was_when_it_took_the_picture(tmp_path):
    scene = Scene(record(tmp_path / "out.mcap", cameras=("a", "b"), late=4 * 10**7, speed=10.0))
    for number, view in enumerate(scene.frame(EPOCH).cameras):
        assert view.stamp_ns == EPOCH + number * 4 * 10**7
        moved = view.calibration.reference_from_camera - FORWARD
        np.testing.assert_allclose(moved[0, 3], 0.4 * number, atol=1e-9)
        assert np.abs(moved).sum() == pytest.approx(0.4 * number)
    standing = Scene(record(tmp_path / "none.mcap", cameras=("a", "b"), late=4 * 10**7)).frame(EPOCH)
    for view in standing.cameras:
        np.testing.assert_array_equal(view.calibration.reference_from_camera, FORWARD)


def test_what_moves_is_drawn_where_it_is_by_the_time_of_the_picture():
    moving = boxes([(15, 0, 1.5), (20, 1, 1)], (10.0, np.nan))
    later = moving.at(EPOCH + 5 * 10**7)
    np.testing.assert_allclose(later.center, moving.center + np.array((0.5, 0, 0)), rtol=1e-6)
    assert later.stamp_ns == EPOCH + 5 * 10**7
    view = CameraView("front", EPOCH + 5 * 10**7, np.zeros((180, 320, 3), np.uint8), None, LENS, None)
    drawn = camera.annotate(view, moving, 320, 180)
    np.testing.assert_array_equal(drawn, camera.annotate(view, later, 320, 180))
    assert (drawn != camera.annotate(replace(view, stamp_ns=EPOCH), moving, 320, 180)).any()


def test_camera_picture_shows_the_box_in_the_colour_of_its_class():
    view = CameraView("front", 0, np.zeros((180, 320, 3), np.uint8), None, LENS, ("cut_in", 0.8))
    picture = camera.annotate(view, boxes([(15, 0, 1.5)]), 320, 180)
    near = picture[70:110, 140:180].reshape(-1, 3)
    assert (np.abs(near.astype(int) - DETECTION_COLOURS["car"]).sum(1) < 60).any()
    assert not camera.annotate(replace(view, event=None), None, 320, 180)[70:110, 140:180].any()


def test_view_from_above_has_ahead_to_the_right_and_left_at_the_top():
    window = birdseye.Window(200, 100, 2.0, 30.0)
    spots = window.place(np.array([(0.0, 0.0), (10.0, 5.0)]))
    np.testing.assert_allclose(spots, [(60, 50), (80, 40)])


def test_map_layer_is_painted_where_its_cells_are():
    probability = np.zeros((len(MAP_LAYERS), 200, 200), np.float32)
    probability[MAP_LAYERS.index("drivable_area"), 120:, 120:] = 1.0  # ahead and to the left
    bev = BevMap(probability, MAP_LAYERS, (-50.0, -50.0), 0.5, "base_link", EPOCH)
    window = birdseye.Window(200, 160, 2.0, 50.0)
    options = {"with_map": True, "with_points": False, "with_boxes": False}
    changed = np.any(
        birdseye.paint(blank(bev_map=bev), window, **options) != birdseye.paint(blank(), window, **options), 2
    )
    columns, rows = np.flatnonzero(changed.any(0)), np.flatnonzero(changed.any(1))
    assert 118 <= columns.min() <= 122
    assert columns.max() == 199
    assert rows.min() == 0
    assert 58 <= rows.max() <= 62


def test_moving_object_has_an_arrow_and_a_standing_one_has_none():
    window = birdseye.Window(200, 100, 2.0, 30.0)
    options = {"with_map": False, "with_points": False, "with_boxes": True}
    still = birdseye.paint(blank(objects=boxes([(10, 5, 0)])), window, **options)
    moving = birdseye.paint(blank(objects=boxes([(10, 5, 0)], velocity=(20.0, 0.0))), window, **options)
    changed = np.flatnonzero((still != moving).any(2).any(0))
    assert changed.max() == pytest.approx(120, abs=3)


def test_dark_colours_are_lightened_and_bright_ones_kept():
    assert draw.visible((255, 158, 0)) == (255, 158, 0)
    dark = draw.visible((0, 0, 230))
    assert 0.3 * dark[0] + 0.59 * dark[1] + 0.11 * dark[2] >= 119
    assert dark[2] > dark[0]


def test_text_outside_of_the_picture_is_cut_off():
    picture = draw.canvas(20, 10)
    draw.write(picture, "outside", (-500, -500))
    assert (picture == draw.canvas(20, 10)).all()
    draw.write(picture, "wide", (10, -4))
    assert (picture != draw.canvas(20, 10)).any()


@pytest.mark.parametrize(
    ("cameras", "lidar"), [(("front",), True), ((), True), (("front", "back"), False)], ids=str
)
def test_every_kind_of_recording_gives_pictures_video_and_rerun(tmp_path, cameras, lidar):
    path = record(tmp_path / "out.mcap", cameras=cameras, lidar=lidar)
    result = CliRunner().invoke(build_app(), ["show", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    picture = cv2.imread(str(tmp_path / "out" / "overview.png"))
    assert picture.shape[1] == 1920
    video = cv2.VideoCapture(str(tmp_path / "out" / "overview.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert (tmp_path / "out" / "kestrel.rrd").stat().st_size > 5000
    assert (tmp_path / "out" / "cameras.png").exists() == bool(cameras)


def test_rerun_recording_holds_what_was_seen(tmp_path):
    from rerun.chunk import RrdReader

    from kestrel.show.viewer import write_rerun

    write_rerun(Scene(record(tmp_path / "out.mcap")), tmp_path / "out.rrd")
    paths = {str(chunk.entity_path) for chunk in RrdReader(tmp_path / "out.rrd").stream()}
    expected = (
        "points",
        "objects",
        "objects/velocity",
        "camera/front",
        "camera/front/image",
        "camera/front/boxes",
    )
    assert {f"/world/{name}" for name in expected} <= paths
    assert {"/events/front", "/latency_ms/fusion"} <= paths


def test_frame_holds_the_answers_of_its_own_sweep(tmp_path):
    scene = Scene(record(tmp_path / "out.mcap"))
    frame = scene.frame(scene.stamps[1])
    assert frame.objects.stamp_ns == scene.stamps[1]
    assert frame.latencies_ms == {"fusion": pytest.approx(30.0), "video": pytest.approx(10.0)}
    assert frame.cameras[0].event == ("cut_in", 0.8)
    assert scene.rate_hz == pytest.approx(10.0)


def sweep(stamp, points=None):
    return sensor_messages.cloud_message(
        PointCloud(np.ones((10, 4), np.float32) if points is None else points, stamp, "lidar")
    )


def mounted(bag, rotation=None):
    mount = messages.transform_message(np.eye(4), "base_link", "lidar", EPOCH)
    if rotation is not None:
        mount.transform.rotation = messages.new("geometry_msgs/msg/Quaternion", **rotation)
    bag.write("/tf_static", messages.tf_message([mount]), EPOCH)


def show(path, *options):
    out = path.with_suffix("")
    return CliRunner().invoke(build_app(), ["show", str(path), "--out", str(out), *options]), out


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


def test_a_video_that_begins_without_cameras_shows_the_views_from_above_to_its_end(tmp_path):
    path = tmp_path / "out.mcap"
    with BagWriter(path) as bag:
        mounted(bag)
        for index in range(12):
            stamp = EPOCH + index * 10**8
            bag.write("/lidar/points", sweep(stamp), stamp)
            if index > 8:
                picture = np.full((180, 320, 3), 90, np.uint8)
                image = sensor_messages.compressed_image(picture, stamp, "front_optical", jpeg_quality=80)
                bag.write("/camera/front/image/compressed", image, stamp)
    result, out = show(path, "--no-rerun")
    assert result.exit_code == 0, result.exception
    video = cv2.VideoCapture(str(out / "overview.mp4"))
    with_camera = compose.overview(Scene(path).frame(EPOCH + 10 * 10**8), "out")
    assert video.get(cv2.CAP_PROP_FRAME_HEIGHT) == len(with_camera)


@pytest.mark.parametrize("shape", [(3000, 1), (1, 3000)])
def test_pictures_of_any_shape_are_shown(shape):
    views = [CameraView(name, 0, np.full((*shape, 3), 90, np.uint8), None, None, None) for name in "abc"]
    assert compose.cameras(replace(blank(), cameras=tuple(views))).any()


def test_pictures_keep_their_proportions_beside_higher_ones():
    shapes = {"square": (100, 100), "wide": (100, 400), "other": (100, 400)}
    views = [
        CameraView(name, 0, np.full((*shape, 3), 90, np.uint8), None, None, None)
        for name, shape in shapes.items()
    ]
    row = compose.cameras(replace(blank(), cameras=tuple(views)))
    width = (compose.WIDTH - 2 * compose.GAP) // 3
    column = row[:, width + compose.GAP + width // 2]
    assert len(row) == 480
    assert (column == 90).all(1).sum() == pytest.approx(width / 4, abs=1)


def test_rerun_recording_gets_pictures_that_its_viewer_knows(tmp_path):
    from rerun.chunk import RrdReader

    from kestrel.show.viewer import write_rerun

    path = tmp_path / "out.mcap"
    with BagWriter(path) as bag:
        encoded = cv2.imencode(".webp", np.full((18, 32, 3), 90, np.uint8))[1].reshape(-1)
        image = messages.new(
            "sensor_msgs/msg/CompressedImage",
            header=messages.header(EPOCH, "front_optical"),
            format="webp",
            data=encoded,
        )
        bag.write("/camera/front/image/compressed", image, EPOCH)
    write_rerun(Scene(path), tmp_path / "out.rrd")
    chunks = [
        chunk
        for chunk in RrdReader(tmp_path / "out.rrd").stream()
        if str(chunk.entity_path) == "/world/camera/front/image"
    ]
    batch = chunks[0].to_record_batch()
    blob = batch.column("EncodedImage:blob").to_pylist()[0][0]
    assert bytes(blob).startswith(b"\xff\xd8")


def test_where_the_folder_is_a_file_that_is_said(tmp_path):
    path = record(tmp_path / "out.mcap")
    (tmp_path / "out").write_text("not a folder")
    result, _ = show(path)
    assert isinstance(result.exception, InputError)
    assert "--out: expected a folder" in str(result.exception)


def test_a_file_that_broke_off_before_any_picture_is_called_damaged(tmp_path):
    whole = record(tmp_path / "whole.mcap").read_bytes()
    (tmp_path / "out.mcap").write_bytes(whole[:100])
    with pytest.raises(InputError, match="expected a complete recording"):
        Scene(tmp_path / "out.mcap")


@pytest.mark.parametrize("before", [None, b"of an earlier drive"])
def test_a_video_and_a_rerun_recording_that_were_interrupted_do_not_appear(tmp_path, monkeypatch, before):
    path = record(tmp_path / "out.mcap")
    out = tmp_path / "out"
    out.mkdir()
    names = ["kestrel.rrd", "overview.mp4"]
    if before is not None:
        for name in names:
            (out / name).write_bytes(before)
    whole = Scene.frames

    def interrupted(scene):
        for number, frame in enumerate(whole(scene)):
            if number == 2:
                raise KeyboardInterrupt
            yield frame

    monkeypatch.setattr(Scene, "frames", interrupted)
    for options in ([], ["--no-rerun"]):
        result = CliRunner().invoke(build_app(), ["show", str(path), "--out", str(out), *options])
        assert result.exit_code != 0
    left = {entry.name: entry.read_bytes() for entry in out.iterdir() if entry.suffix != ".png"}
    assert left == ({} if before is None else dict.fromkeys(names, before))


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "out" / "overview.png").mkdir(parents=True)
    path = record(tmp_path / "out.mcap")
    result = CliRunner().invoke(build_app(), ["show", str(path), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, InputError)
    assert "overview.png" in str(result.exception)
