# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Every kind of recording gives its files."""

import cv2
import numpy as np
import pytest

pytest.importorskip("rerun")
pytest.importorskip("imageio")

from typer.testing import CliRunner

from kestrel.cli import build_app
from kestrel.data import messages, sensor_messages
from kestrel.data.bag import BagWriter
from kestrel.errors import InputError
from kestrel.eval.scene import Scene
from kestrel.show import compose
from tests.show.recordings import EPOCH, mounted, record, show, sweep


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


def test_rerun_recording_gets_pictures_that_its_viewer_knows(tmp_path):
    from rerun.chunk import RrdReader

    from kestrel.show.viewer import write_rerun

    path = tmp_path / "out.mcap"
    with BagWriter(path) as bag:
        image = messages.new(
            "sensor_msgs/msg/Image",
            header=messages.header(EPOCH, "front_optical"),
            height=18,
            width=32,
            encoding="mono8",
            is_bigendian=0,
            step=32,
            data=np.full(18 * 32, 90, np.uint8),
        )
        bag.write("/camera/front/image", image, EPOCH)
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
