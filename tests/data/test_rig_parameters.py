# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Recordings are read with what the fusion node is told: its file, and what scores and training see."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from typer.testing import CliRunner

from kestrel.cli import build_app
from kestrel.data.bag import BagReader, BagWriter
from kestrel.data.cloud_reader import read_cloud
from kestrel.data.messages import stamp_of
from kestrel.data.rig_parameters import ALL_THERE_IS, RigParameters, read_rig_parameters
from kestrel.data.sensor_messages import packed_cloud
from kestrel.errors import ConfigError, InputError, KestrelError, SetupError
from kestrel.eval.recorded_frames import RecordedFrames
from kestrel.eval.recording import read_recording
from kestrel.pipelines.detector import Detector
from kestrel.train import cache
from kestrel.train.calibration import recorded_frames
from kestrel.train.recorded_moments import RecordedMoments
from kestrel.types import SensorFrame
from tests.train.recordings import (
    LANDMARKS,
    START,
    STEP,
    Drive,
    base_from_camera,
    landmarks_in,
    odom_from_base,
)

BOTH = frozenset(("lidar", "camera"))
LIKE_FUSION = cast(Detector, SimpleNamespace(sweeps=2, sweep_s=0.2, remove_close_m=0.0))
RAW = np.array([3.0, 51.0, 102.0, 204.0, 250.0])
"""Intensities of a driver that counts to 255, one for each of LANDMARKS."""
CUT = "intensity above 1 is clipped: set intensity_max"


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_section_of_the_node_is_read_and_its_other_parameters_are_left_to_it(tmp_path: Path) -> None:
    text = """
/**:
  ros__parameters: {use_sim_time: true, intensity_max: 100, rectified: true}
video:
  ros__parameters: {cameras: [side], intensity_max: 7.0}
fusion:
  ros__parameters:
    cameras: [front, back]
    intensity_max: 255.0
    sensor_offsets_s: [0.01, 0.03, -0.02]
    own_vehicle_box_m: [-1, -1, 0, 3, 1, 2]
    window_s: 0.1
    nobody_knows_this: 3
"""
    found = read_rig_parameters(written(tmp_path / "rig.yaml", text))
    assert found == RigParameters(
        cameras=("front", "back"),
        intensity_max=255.0,
        rectified=True,
        sensor_offsets_s=(0.01, 0.03, -0.02),
        own_vehicle_box_m=(-1.0, -1.0, 0.0, 3.0, 1.0, 2.0),
    )
    assert [found.ahead_ns(name) for name in ("front", "back")] == [20_000_000, -30_000_000]
    assert read_rig_parameters(None) == ALL_THERE_IS
    alone = read_rig_parameters(written(tmp_path / "lidar.yaml", '/**: {ros__parameters: {cameras: [""]}}'))
    assert alone.cameras == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("fusion: {ros__parameters: {intensity_max: much}}", "intensity_max: expected double, found 'much'"),
        ("fusion: {ros__parameters: {intensity_max: -1.0}}", "intensity_max: expected 0 .. 1e\\+09"),
        ("fusion: {ros__parameters: {rectified: 1}}", "rectified: expected bool, found 1"),
        ("fusion: {ros__parameters: {cameras: front}}", "cameras: expected string\\[\\], found 'front'"),
        ("fusion: {ros__parameters: {cameras: [a, a]}}", "cameras: expected distinct names"),
        (
            "fusion: {ros__parameters: {own_vehicle_box_m: [1.0]}}",
            "own_vehicle_box_m: expected nothing, or x_m",
        ),
        (
            "fusion: {ros__parameters: {cameras: [a], sensor_offsets_s: [0.1]}}",
            "sensor_offsets_s: expected none or 2 values",
        ),
        ("fusion: {ros__parameters: {sensor_offsets_s: [0.1]}}", "expected the parameter cameras"),
        ("fusion: {intensity_max: 1.0}", "section fusion: expected ros__parameters below it"),
        ("video: {ros__parameters: {}}", "a section of the fusion node: .*found \\['video'\\]"),
        ("- 1", "a section of the fusion node"),
        ("a: [", "expected a ROS parameter file"),
    ],
)
def test_a_file_that_the_node_refuses_is_refused_by_its_name(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(KestrelError, match=f"--params.*{reason}") as caught:
        read_rig_parameters(written(tmp_path / "rig.yaml", text))
    assert isinstance(caught.value, InputError if text == "a: [" else ConfigError)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--params: expected a ROS parameter file, found .*none\.yaml"):
        read_rig_parameters(tmp_path / "none.yaml")


def ouster(recording: Path, out: Path) -> Path:
    """Copy a recording as a driver sends it: intensities up to 255 and nanoseconds in a field ``t``."""
    kind = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("intensity", "<f4"), ("t", "<u4")]
    with BagWriter(out) as bag:
        for message in BagReader(recording).messages():
            if message.topic != "/lidar/points":
                bag.write_raw(message.topic, message.msgtype, message.log_time_ns, message.raw)
                continue
            decoded = message.decode()
            cloud = read_cloud(decoded).cloud
            points = np.zeros(len(cloud), kind)
            points["x"], points["y"], points["z"] = cloud.points[:, :3].T
            points["intensity"] = RAW
            points["t"] = 0 if cloud.time_s is None else np.round(cloud.time_s * 1e9)
            bag.write(message.topic, packed_cloud(points, stamp_of(decoded), "lidar"), message.log_time_ns)
    return out


def scored(recording: Path, rig: RigParameters) -> list[SensorFrame]:
    """Return the frames that a score of weights sees."""
    stamps = [START + number * STEP for number in range(4, 8)]
    return list(RecordedFrames(read_recording(recording), stamps, LIKE_FUSION, BOTH, rig))


def test_scores_and_training_scale_intensity_and_undo_motion_as_the_node_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = ouster(Drive(measured_s=0.09).write(tmp_path / "plain.bag"), tmp_path / "ouster.bag")
    rig = RigParameters(intensity_max=255.0)
    clouds = [frame.cloud for frame in scored(recording, rig)]
    clouds += [moment.sweeps[0] for moment in RecordedMoments(recording, rig).read()]
    assert len(clouds) > 5
    for cloud in clouds:
        assert cloud is not None
        np.testing.assert_allclose(cloud.points[:, 3], RAW / 255, rtol=1e-6)
        still = landmarks_in(odom_from_base(cloud.stamp_ns))
        np.testing.assert_allclose(cloud.points[:, :3], still, atol=5e-3)
    assert "intensity" not in capsys.readouterr().err


def test_intensities_that_are_cut_off_are_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = ouster(Drive().write(tmp_path / "plain.bag"), tmp_path / "ouster.bag")
    frames = scored(recording, ALL_THERE_IS)
    assert frames[0].cloud is not None
    assert frames[0].cloud.points[:, 3].tolist() == [1.0] * len(LANDMARKS)
    assert capsys.readouterr().err.count(f"{recording}: /lidar/points: {CUT}") == 1
    list(RecordedMoments(recording).read())
    assert capsys.readouterr().err.count(CUT) == 1
    for read in recorded_frames(recording, 2, 0.0):
        read()
    assert capsys.readouterr().err.count(CUT) == 1


def test_points_of_the_vehicle_itself_take_no_part(tmp_path: Path) -> None:
    """The box is around the third landmark where it is at the fifth sweep; it moves with the vehicle."""
    recording = Drive().write(tmp_path / "drive.bag")
    now = START + 4 * STEP
    place = landmarks_in(odom_from_base(now))[2]
    rig = RigParameters(own_vehicle_box_m=(*(place - 0.4), *(place + 0.4)))
    frame = scored(recording, rig)[0]
    assert frame.cloud is not None
    assert [len(cloud) for cloud in (frame.cloud, *frame.sweeps)] == [4, 5, 5]
    learned = {
        moment.sweeps[0].stamp_ns: len(moment.sweeps[0]) for moment in RecordedMoments(recording, rig).read()
    }
    assert learned == {stamp: 4 if stamp == now else 5 for stamp in learned}
    counts = {
        frames[-1].stamp_ns: frames[-1].cloud
        for frames in (r() for r in recorded_frames(recording, 2, 0, rig))
    }
    assert {stamp: len(cast(Any, cloud)) for stamp, cloud in counts.items()} == {
        stamp: 4 if stamp == now else 5 for stamp in counts
    }


def test_only_the_named_cameras_count_and_those_that_are_not_there_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = Drive(cameras={"front": 0, "back": 0, "side": 0}).write(tmp_path / "drive.bag")
    rig = RigParameters(cameras=("side", "front", "roof"))
    said = f"{recording}: no pictures of these of the parameter cameras: roof"
    assert [list(frame.images) for frame in scored(recording, rig)] == [["side", "front"]] * 4
    assert said in capsys.readouterr().err
    assert RecordedMoments(recording, rig).cameras == ["side", "front"]
    assert said in capsys.readouterr().err
    first = recorded_frames(recording, 2, 0, rig)[0]()[-1]
    assert sorted(first.images) == ["front", "side"]


def test_stamps_that_are_ahead_choose_and_place_pictures_by_when_they_were_taken(tmp_path: Path) -> None:
    """Pictures are stamped 0.06 s later than sweeps: each belongs to the one before the nearest."""
    late, lidar = 80_000_000, 20_000_000
    recording = Drive(cameras={"front": late - lidar}).write(tmp_path / "drive.bag")
    rig = RigParameters(cameras=("front",), sensor_offsets_s=(lidar * 1e-9, late * 1e-9))
    for frame in scored(recording, rig):
        assert frame.images["front"].stamp_ns == frame.stamp_ns + late - lidar
        np.testing.assert_allclose(
            frame.calibrations["front"].reference_from_camera, base_from_camera(), atol=1e-9
        )
    for moment in RecordedMoments(recording, rig).read():
        np.testing.assert_allclose(moment.base_from_picture["front"], np.eye(4), atol=1e-9)
    frame = recorded_frames(recording, 2, 0, rig)[3]()[-1]
    np.testing.assert_allclose(
        frame.calibrations["front"].reference_from_camera, base_from_camera(), atol=1e-9
    )
    untold = scored(recording, ALL_THERE_IS)[0].calibrations["front"].reference_from_camera
    assert abs(untold - base_from_camera()).max() > 0.1


def other_lens(recording: Path, out: Path) -> Path:
    """Copy a recording whose pictures are rectified: its K and D are of another picture than P."""
    with BagWriter(out) as bag:
        for message in BagReader(recording).messages():
            if not message.topic.endswith("/camera_info"):
                bag.write_raw(message.topic, message.msgtype, message.log_time_ns, message.raw)
                continue
            info = message.decode()
            info.distortion_model, info.d = "fisheye", np.array([0.1, 0.0, 0.0, 0.0, 0.0, 0.0])
            info.k = np.array([300.0, 0, 352, 0, 300, 128, 0, 0, 1])
            bag.write(message.topic, info, message.log_time_ns)
    return out


def test_of_rectified_pictures_the_projection_counts(tmp_path: Path) -> None:
    plain = Drive(cameras={"front": 0}).write(tmp_path / "plain.bag")
    recording = other_lens(plain, tmp_path / "rectified.bag")
    wanted = scored(plain, ALL_THERE_IS)[0]
    told, untold = (scored(recording, RigParameters(rectified=flag))[0] for flag in (True, False))
    calibrated = recorded_frames(recording, 2, 0, RigParameters(rectified=True))[4]()[-1]
    for frame in (told, calibrated):
        assert (frame.images["front"].data == wanted.images["front"].data).all()
        matrix = frame.calibrations["front"].camera_matrix
        np.testing.assert_allclose(matrix, wanted.calibrations["front"].camera_matrix)
    assert untold.calibrations["front"].camera_matrix[0, 0] == 300.0
    assert (untold.images["front"].data != wanted.images["front"].data).any()


def test_commands_take_the_file_of_the_node(tmp_path: Path) -> None:
    recording = ouster(Drive().write(tmp_path / "plain.bag"), tmp_path / "ouster.bag")
    params = written(tmp_path / "rig.yaml", "fusion: {ros__parameters: {intensity_max: 255.0}}")
    bad = written(tmp_path / "bad.yaml", "fusion: {ros__parameters: {intensity_max: much}}")

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(build_app(), [str(each) for each in arguments])

    result = run("train", "import", recording, "--data", tmp_path / "data", "--params", params)
    assert result.exit_code == 0, result.output
    assert CUT not in result.stderr
    frame = cache.read(cache.CachedFrame, min((tmp_path / "data").rglob("frame_*.npz")))
    assert np.unique(frame.intensity).tolist() == RAW.tolist()
    score = ("eval", recording, "--weights", "kestrel-fusion", "--sensors", "lidar", "--json")
    told, untold = run(*score, "--params", params), run(*score)
    assert told.exit_code == untold.exit_code == 0, told.output
    assert (told.stderr.count(CUT), untold.stderr.count(CUT)) == (0, 1)
    (tmp_path / "drives" / "one").mkdir(parents=True)
    (tmp_path / "drives" / "one" / cache.DONE).touch()
    drives = run("calibrate", tmp_path / "drives", "--out", tmp_path / "int8", "--params", params)
    refused = [
        run("train", "import", recording, "--data", tmp_path / "other", "--params", bad),
        run(*score, "--params", bad),
        run("calibrate", recording, "--out", tmp_path / "int8", "--params", bad),
    ]
    for each in refused:
        assert isinstance(each.exception, ConfigError)
        assert "intensity_max: expected double, found 'much'" in str(each.exception)
    if not isinstance(drives.exception, SetupError):  # without the libraries of int8 nothing is read
        assert "--params: expected none for drives" in str(drives.exception)
    alone = run("eval", recording, "--params", params)
    assert "--params: expected --weights beside it" in str(alone.exception)
    (tmp_path / "clouds").mkdir()
    clouds = run("train", "import", tmp_path / "clouds", "--data", tmp_path / "other", "--params", params)
    assert "--params: expected none for labelled clouds" in str(clouds.exception)
