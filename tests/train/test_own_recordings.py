# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Recordings with true boxes become frames that say what they know, and no more."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from kestrel.classes import ATTRIBUTES, DETECTION_CLASSES, IGNORE, MAP_LAYERS, NO_ATTRIBUTE
from kestrel.cli import build_app
from kestrel.data import messages
from kestrel.data.bag import BagReader, BagWriter
from kestrel.data.nuscenes_samples import Sample, samples_message
from kestrel.errors import ConfigError, InputError
from kestrel.train import cache, drive_file
from kestrel.train.drive_file import Holds
from kestrel.train.own_recordings import import_recording, is_recording, rectified
from kestrel.types import Calibration, Image
from tests.train.recordings import (
    MATRIX,
    SIZE,
    START,
    STEP,
    Drive,
    base_from_camera,
    landmarks_in,
    odom_from_base,
)

RING = {"front": 40_000_000, "back": -20_000_000}


def imported(drive: Drive, folder: Path, classes: list[str] | None = None) -> Path:
    return import_recording(drive.write(folder / "mine.bag"), folder / "data", "train_lidar", classes)


def frames_of(drive: Path) -> list[cache.CachedFrame]:
    frames = [cache.read(cache.CachedFrame, path) for path in cache.key_frames(drive)]
    assert frames
    return frames


def test_key_frames_are_half_a_second_apart_with_sweeps_of_before(tmp_path: Path) -> None:
    drive = imported(Drive(), tmp_path)
    assert drive == tmp_path / "data" / "train_lidar" / "mine"
    assert [path.name for path in cache.key_frames(drive)] == [f"frame_{n:04d}.npz" for n in range(3)]
    ages = [frame.ages.tolist() for frame in frames_of(drive)]
    assert ages[0] == [0]  # before the first sweep there was none
    np.testing.assert_allclose(ages[1:], [[0, 0.2, 0.4]] * 2, atol=1e-6)


@pytest.mark.parametrize("measured_s", [0.0, 0.09])
def test_what_stands_is_in_one_place_in_all_sweeps(tmp_path: Path, measured_s: float) -> None:
    for number, frame in enumerate(frames_of(imported(Drive(measured_s=measured_s), tmp_path))):
        stamp = START + 5 * number * STEP
        np.testing.assert_allclose(frame.odom_from_base, odom_from_base(stamp), atol=1e-9)
        assert len(frame.ages) == (3 if number else 1)
        for sweep in range(len(frame.ages)):
            points = frame.cloud()[frame.sweep == sweep, :3]
            np.testing.assert_allclose(points, landmarks_in(odom_from_base(stamp)), atol=0.005)


def copy_without(source: Path, out: Path, *topics: str) -> Path:
    with BagWriter(out) as bag:
        for message in BagReader(source).messages():
            if message.topic not in topics:
                bag.write_raw(message.topic, message.msgtype, message.log_time_ns, message.raw)
    return out


def test_poses_may_come_as_odometry_alone(tmp_path: Path) -> None:
    both = Drive().write(tmp_path / "both.bag")
    only = copy_without(both, tmp_path / "only.bag", "/tf")
    drives = [import_recording(path, tmp_path / "data", "train_lidar") for path in (both, only)]
    one, other = (frames_of(drive)[2] for drive in drives)
    assert (one.points == other.points).all()
    assert len(other.ages) == 3


def test_without_poses_frames_have_one_sweep_and_no_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = copy_without(Drive().write(tmp_path / "all.bag"), tmp_path / "mine.mcap", "/tf", "/odometry")
    drive = import_recording(recording, tmp_path / "data", "train_lidar")
    assert drive.name == "mine"
    frames = frames_of(drive)
    assert [frame.ages.tolist() for frame in frames] == [[0]] * 3
    assert all(np.isnan(frame.odom_from_base).all() for frame in frames)
    assert "where the vehicle was is not known: 3 of 3 key frames" in capsys.readouterr().err


def test_key_frames_at_which_nobody_knows_where_the_vehicle_was_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with BagWriter(tmp_path / "mine.mcap") as bag:
        for message in BagReader(Drive().write(tmp_path / "all.bag")).messages():
            late = message.log_time_ns > START + 6 * STEP
            if not (late and message.topic in ("/tf", "/odometry")):
                bag.write_raw(message.topic, message.msgtype, message.log_time_ns, message.raw)
    drive = import_recording(tmp_path / "mine.mcap", tmp_path / "data", "train_lidar")
    assert [len(frame.ages) for frame in frames_of(drive)] == [1, 3, 1]
    told = "where the vehicle was is not known: 1 of 3 key frames have no earlier sweeps"
    assert told in capsys.readouterr().err


def test_boxes_are_where_they_were_labelled_and_what_nobody_knows_is_told_as_such(tmp_path: Path) -> None:
    recorded = Drive(cameras=RING)
    drive = imported(recorded, tmp_path)
    for number, frame in enumerate(frames_of(drive)):
        truth = recorded.truth(START + 5 * number * STEP)
        np.testing.assert_allclose(frame.boxes[:, :3], truth.center[:1])
        np.testing.assert_allclose(frame.boxes[:, 3:7], [[4, 2, 2, np.float32(0.3)]])
        assert np.isnan(frame.boxes[:, 7:]).all()
        assert frame.box_label.tolist() == [0]
        assert frame.box_points.tolist() == [1]
        assert frame.box_attribute.tolist() == [NO_ATTRIBUTE]
        np.testing.assert_allclose(frame.unlabelled, [[0, -30, 0, 60, 20, 10, 0]])
        assert [DETECTION_CLASSES[label] for label in np.flatnonzero(frame.labelled_classes)] == ["car"]
        assert (frame.label == IGNORE).all()
        assert not frame.has_map
        assert not frame.has_semantics
    told = drive_file.read(drive)
    assert drive_file.holds(told) == {Holds.BOXES, Holds.PICTURES}
    assert told["source"] == "recording mine.bag"
    assert (told["frames"], told["seconds"], told["frame_hz"]) == (3, 1.0, 2.0)


def test_velocities_are_kept_where_they_are_known(tmp_path: Path) -> None:
    drive = imported(Drive(velocity=(1.5, -0.5)), tmp_path)
    assert frames_of(drive)[0].boxes[:, 7:].tolist() == [[1.5, -0.5]]
    assert drive_file.holds(drive_file.read(drive)) == {Holds.BOXES, Holds.VELOCITIES}


def test_maps_are_kept_where_all_key_frames_have_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drive = imported(Drive(sweeps=6, maps={0: 200, 5: 200}), tmp_path)
    truth = frames_of(drive)[1].map_truth(len(MAP_LAYERS), 200)
    for number, layer in enumerate(truth):
        assert np.flatnonzero(layer.all(1)).tolist() == [*range(10 * number, 10 * number + 5)]
        assert layer.sum() == 5 * 200
    assert drive_file.holds(drive_file.read(drive)) == {Holds.BOXES, Holds.MAPS}
    assert "maps" not in capsys.readouterr().err
    partly = imported(Drive(sweeps=6, maps={5: 200}), tmp_path / "partly")
    assert not frames_of(partly)[1].has_map
    assert drive_file.holds(drive_file.read(partly)) == {Holds.BOXES}
    assert "maps are left out: 1 of 2 key frames have none" in capsys.readouterr().err


def test_attributes_and_racks_of_nuscenes_are_kept(tmp_path: Path) -> None:
    rack = (8.0, 4.0, 0.5, 3.0, 2.0, 1.0, 0.2)
    plain = Drive(sweeps=6).write(tmp_path / "plain.bag")
    with BagWriter(tmp_path / "mine.bag") as bag:
        samples = samples_message([Sample("a", START, {}, ("vehicle.moving", ""), (rack,))])
        bag.write("/truth/samples", samples, START)
        for message in BagReader(plain).messages():
            bag.write_raw(message.topic, message.msgtype, message.log_time_ns, message.raw)
    first, second = frames_of(import_recording(tmp_path / "mine.bag", tmp_path / "data", "test"))
    assert [ATTRIBUTES[index] for index in first.box_attribute] == ["vehicle.moving"]
    np.testing.assert_allclose(first.unlabelled[1:], [rack])
    assert second.box_attribute.tolist() == [NO_ATTRIBUTE]
    assert len(second.unlabelled) == 1


def test_what_has_another_class_is_a_place_of_which_nothing_is_known(tmp_path: Path) -> None:
    frame = frames_of(imported(Drive(class_names=("pedestrian", "tram")), tmp_path))[0]
    assert frame.box_label.tolist() == [DETECTION_CLASSES.index("pedestrian")]
    np.testing.assert_allclose(frame.unlabelled, [[0, -30, 0, 60, 20, 10, 0]])


def test_classes_that_were_labelled_but_never_there_can_be_told(tmp_path: Path) -> None:
    frame = frames_of(imported(Drive(), tmp_path, ["bus", "car"]))[0]
    assert [DETECTION_CLASSES[label] for label in np.flatnonzero(frame.labelled_classes)] == ["car", "bus"]


def test_pictures_show_things_where_their_calibration_says(tmp_path: Path) -> None:
    frame = frames_of(imported(Drive(cameras=RING), tmp_path))[1]
    for number in range(len(RING)):
        picture = frame.picture(number)
        assert picture.shape == (128, 352, 3)
        calibration = frame.calibration(number, picture.shape[:2])
        pose = odom_from_base(START + 5 * STEP) @ calibration.reference_from_camera
        rays = landmarks_in(pose) @ calibration.camera_matrix.T
        pixels = rays[:, :2] / rays[:, 2:]
        inside = ((pixels > 2) & (pixels < (349, 125))).all(1)
        assert inside.sum() >= 3
        for column, row in np.round(pixels[inside]).astype(int):
            assert picture[row, column].min() > 150
        assert (picture.min(2) > 150).mean() < 0.01
        assert abs(frame.base_from_picture[number][0, 3]) > 0.1


def test_key_frames_lack_no_camera(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = frozenset({("back", number) for number in (4, 5, 6)})
    drive = imported(Drive(cameras=RING, lost=lost), tmp_path)
    assert [path.name for path in cache.key_frames(drive)] == ["frame_0000.npz", "frame_0002.npz"]
    assert "without a picture of every camera are left out: 1 of back" in capsys.readouterr().err


def test_labels_once_a_second_leave_gaps_over_which_no_picture_looks_back(tmp_path: Path) -> None:
    drive = imported(Drive(sweeps=21, labelled=10), tmp_path)
    files = cache.key_frames(drive)
    assert [path.name for path in files] == ["frame_0000.npz", "frame_0002.npz", "frame_0004.npz"]
    assert cache.earlier_frames(files[1], 0.5, 2) == []
    assert cache.earlier_frames(files[2], 1.0, 2) == files[:2]


@pytest.mark.parametrize(
    ("model", "distortion"),
    [("plumb_bob", [-0.2, 0.05, 0.001, 0.001, 0]), ("equidistant", [0.05, -0.01, 0.0, 0.0])],
)
def test_a_lens_is_undone_in_the_picture(model: str, distortion: list[float]) -> None:
    calibration = Calibration(MATRIX, SIZE[1], SIZE[0], base_from_camera(), model, np.array(distortion))
    place = np.array([[[0.35, -0.1, 1.0]]])
    still = np.zeros(3)
    project = cv2.fisheye.projectPoints if model == "equidistant" else cv2.projectPoints
    (column, row), *_ = np.round(
        project(place, still, still, MATRIX, calibration.distortion)[0].reshape(-1, 2)
    )
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[int(row) - 3 : int(row) + 4, int(column) - 3 : int(column) + 4] = 255
    shown, seen = rectified(Image(picture, 0, "camera"), calibration)
    found = np.argwhere(shown.min(2) > 128).mean(0)[::-1]
    np.testing.assert_allclose(found, (seen.camera_matrix @ place[0, 0])[:2], atol=0.8)


def test_the_command_tells_recordings_from_clouds(tmp_path: Path) -> None:
    recording = Drive().write(tmp_path / "mine.mcap")
    arguments = ["train", "import", str(recording), "--data", str(tmp_path / "data"), "--classes", "car,bus"]
    result = CliRunner().invoke(build_app(), arguments, catch_exceptions=False)
    drive = tmp_path / "data" / "train_lidar" / "mine"
    assert result.stdout == f"drive: {drive}\n"
    assert frames_of(drive)[0].labelled_classes.sum() == 2
    (tmp_path / "clouds").mkdir()
    assert not is_recording(tmp_path / "clouds")
    arguments[2] = str(tmp_path / "clouds")
    with pytest.raises(ConfigError, match="--classes: expected none for labelled clouds"):
        CliRunner().invoke(build_app(), arguments, catch_exceptions=False)


def test_what_is_no_split_or_no_class_is_refused(tmp_path: Path) -> None:
    recording = Drive().write(tmp_path / "mine.bag")
    for split in ("train", "validation", "train_video"):
        with pytest.raises(ConfigError, match=rf"--split: expected one of train_lidar.*found {split}"):
            import_recording(recording, tmp_path / "data", split)
    with pytest.raises(ConfigError, match=r"--classes: expected some of car.*found tram"):
        import_recording(recording, tmp_path / "data", "test", ["car", "tram"])
    assert not (tmp_path / "data").exists()


def test_a_drive_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    recording = Drive().write(tmp_path / "mine.bag")
    import_recording(recording, tmp_path / "data", "test")
    with pytest.raises(InputError, match=r"imported drive: expected a path that does not exist"):
        import_recording(recording, tmp_path / "data", "test")


@pytest.mark.parametrize(
    ("drive", "found"),
    [
        (Drive(without=("/truth",)), "the same stamp, found 12 sweeps and 0 messages of true boxes"),
        (Drive(without=("/lidar",)), "the same stamp, found 0 sweeps and 12 messages"),
        (Drive(without=("/tf_static",)), "transform base_link <- lidar: expected frame 'lidar' on /tf"),
        (Drive(class_names=("tram", "bird")), "/truth/objects: expected boxes of car, truck.*found none"),
        (
            Drive(cameras=RING, without=("/camera/back/camera_info",)),
            "/camera/back/image/compressed: expected its calibration",
        ),
        (
            Drive(sweeps=9, cameras={"front": 0}, lost=frozenset({("front", number) for number in range(8)})),
            "pictures: expected key frames with a picture of every camera.*found none of front in time",
        ),
        (
            Drive(maps={0: 100, 5: 100, 10: 100}),
            "6 layers of 200 x 200 cells of 0.5 m from -50 m on.*100, 100",
        ),
        (
            Drive(maps={0: 200, 5: 200, 10: 200}, unknown=True),
            "/truth/map/drivable_area: expected cells from 0",
        ),
        (Drive(length_m=0), "/truth/objects at 1000000000 ns: expected boxes of finite numbers, sizes"),
        (Drive(length_m=np.nan), "/truth/objects at 1000000000 ns: expected boxes of finite numbers, sizes"),
    ],
)
def test_a_recording_that_lacks_something_is_named_and_leaves_nothing(
    tmp_path: Path, drive: Drive, found: str
) -> None:
    recording = drive.write(tmp_path / "mine.bag")
    with pytest.raises(InputError, match=rf"mine\.bag: expected a recording with .*{found}"):
        import_recording(recording, tmp_path / "data", "train_lidar")
    assert not any((tmp_path / "data").rglob("*.npz"))


def test_damaged_and_foreign_recordings_are_named(tmp_path: Path) -> None:
    whole = Drive().write(tmp_path / "whole.mcap").read_bytes()
    (tmp_path / "cut.mcap").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mcap").write_bytes(b"no recording")
    with BagWriter(tmp_path / "other.mcap") as bag:
        text = messages.new("std_msgs/msg/String", data="a car")
        bag.write("/truth/objects", text, START)
    for name, found in {
        "cut": "a complete bag",
        "text": "a complete bag, found text.mcap ends at byte 8",
        "other": "type of /truth/objects: expected kestrel_msgs/msg/PerceivedObjects, found std_msgs/msg",
    }.items():
        with pytest.raises(InputError, match=rf"{name}\.mcap: expected a recording with.*{found}"):
            import_recording(tmp_path / f"{name}.mcap", tmp_path / "data", "train_lidar")
    assert not (tmp_path / "data").exists()


def test_an_interrupted_import_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def interrupted(path: Path, cached: cache.CachedFrame) -> None:
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(cache, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        imported(Drive(), tmp_path)
    assert not any((tmp_path / "data").rglob("*/*"))
