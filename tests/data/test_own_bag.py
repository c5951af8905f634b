# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A recording under the names of a vehicle becomes one that all commands read, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kestrel.cli import build_app
from kestrel.data import messages
from kestrel.data.bag import BagReader, BagWriter, topic_description
from kestrel.data.mcap_file import McapFile
from kestrel.data.topic_names import read_topic_names
from kestrel.errors import ConfigError, InputError
from kestrel.eval.scene import Scene
from tests.train.recordings import START, Drive

ROOT = Path(__file__).parents[2]
CAMERAS = {"front": 0, "back": 0}
OWN = {
    "/lidar/points": "/os/points",
    "/camera/front/image/compressed": "/cam0/image_raw/compressed",
    "/camera/front/camera_info": "/cam0/camera_info",
    "/camera/back/image/compressed": "/cams/rear/rear_image/compressed",
    "/camera/back/camera_info": "/cams/rear/rear_info",
}
TOPICS = """
fusion:
  ~/input/points: /os/points
  ~/input/{camera}/image/compressed: /cams/{camera}/{camera}_image/compressed
  ~/input/{camera}/camera_info: /cams/{camera}/{camera}_info
  ~/input/front/image/compressed: /cam0/image_raw/compressed
  ~/input/front/camera_info: cam0/camera_info
  ~/output/objects: /objects
"""


def written(path: Path, text: str = TOPICS) -> Path:
    path.write_text(text)
    return path


def own(path: Path, drive: Drive | None = None, extra: dict[str, Any] | None = None) -> Path:
    """Write a recording whose sensors have the names of a vehicle, with other messages beside them."""
    theirs = (drive or Drive(cameras=CAMERAS)).write(path.with_name(f"{path.stem}_theirs.mcap"))
    with BagWriter(path, latched=("/map_version",)) as bag:
        bag.write("/map_version", messages.new("std_msgs/msg/String", data="7"), START - 1)
        bag.announce("/never", "std_msgs/msg/String")
        for topic, message in (extra or {}).items():
            bag.write(topic, message, START)
        for message in BagReader(theirs).messages():
            topic = OWN.get(message.topic, message.topic)
            bag.write_raw(topic, message.msgtype, message.log_time_ns, message.raw)
    return path


def run(source: Path, topics: Path | None, out: Path) -> Any:
    options = [] if topics is None else ["--topics", str(topics)]
    return CliRunner().invoke(build_app(), ["import", "bag", str(source), *options, "--out", str(out)])


def content(path: Path) -> list[tuple[str, str, int, bytes]]:
    return [tuple(message) for message in BagReader(path).messages()]


@pytest.mark.parametrize(("source", "out"), [("own.mcap", "out.bag"), ("own.bag", "out.mcap")])
def test_the_same_bytes_come_under_the_names_that_all_commands_read(
    tmp_path: Path, source: str, out: str
) -> None:
    result = run(own(tmp_path / source), written(tmp_path / "topics.yaml"), tmp_path / out)
    assert result.exit_code == 0, result.output
    assert result.stderr.strip() == ""
    reader = BagReader(tmp_path / out)
    called = {theirs: name for name, theirs in OWN.items()} | {
        "/cams/rear/rear_image/compressed": "/camera/rear/image/compressed",
        "/cams/rear/rear_info": "/camera/rear/camera_info",
    }
    expected = [(called.get(topic, topic), *rest) for topic, *rest in content(tmp_path / source)]
    assert sorted(content(tmp_path / out)) == sorted(expected)
    assert result.stdout.strip().endswith(f"out{out[3:]}: {len(expected)} messages")
    assert {topic for topic, held in reader.topics.items() if held.latched} == {"/tf_static", "/map_version"}
    assert reader.topics["/never"].count == 0
    scene = Scene(tmp_path / out)
    assert scene.cameras == ["front", "rear"]
    views = scene.frame(START).cameras
    assert [view.calibration is not None for view in views] == [True, True]
    assert len(scene.stamps) == 12


def test_config_topics_leaves_recordings_of_kestrel_as_they_are(tmp_path: Path) -> None:
    bag = Drive(cameras=CAMERAS).write(tmp_path / "drive.bag")
    assert run(bag, ROOT / "config" / "topics.yaml", tmp_path / "same.bag").exit_code == 0
    assert content(tmp_path / "same.bag") == content(bag)


def test_a_camera_that_is_named_comes_before_the_pattern(tmp_path: Path) -> None:
    text = """
fusion:
  ~/input/{camera}/image: /{camera}/image
  ~/input/front/image: /cam0/image
  ~/input/left/camera_info: /stereo/info
  ~/input/right/camera_info: /stereo/info
"""
    names = read_topic_names(written(tmp_path / "topics.yaml", text))
    assert names.of("/cam0/image") == ("/camera/front/image",)
    assert names.of("/cam1/image") == ("/camera/cam1/image",)
    assert names.of("/front/image") == (), "the picture of front is another"
    assert names.of("/stereo/info") == ("/camera/left/camera_info", "/camera/right/camera_info")
    for topic in ("/0cam/image", "/a/b/image", "/image", "/cam1/image/compressed", "/x/cam1/image"):
        assert names.of(topic) == ()


def test_the_same_name_stands_wherever_the_pattern_has_it(tmp_path: Path) -> None:
    text = "fusion: {'~/input/{camera}/image': '/{camera}/driver.{camera}/image'}"
    names = read_topic_names(written(tmp_path / "topics.yaml", text))
    assert names.of("/rear_2/driver.rear_2/image") == ("/camera/rear_2/image",)
    assert names.of("/rear/driver.front/image") == ()
    assert names.of("/rear/driverxrear/image") == (), "a point is a point"


def test_what_does_not_come_along_is_named(tmp_path: Path) -> None:
    text = messages.new("std_msgs/msg/String", data="no cloud")
    extra = {"/lidar/points": text, "/camera/color/image": text, "/cam0/image_raw": text}
    source = own(tmp_path / "own.mcap", Drive(), extra)
    topics = TOPICS.replace("/cam0/image_raw/compressed", "/cam0/image_raw")
    result = run(source, written(tmp_path / "topics.yaml", topics), tmp_path / "out.mcap")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[:3] == [
        "left out, named like sensors that --topics finds elsewhere or not at all: "
        "/camera/color/image, /lidar/points",
        "named in --topics, but of other types: /cam0/image_raw (std_msgs/msg/String)",
        "named in --topics, but not recorded: /cam0/camera_info",
    ]
    found = BagReader(tmp_path / "out.mcap").topics
    assert found["/lidar/points"].msgtype == "sensor_msgs/msg/PointCloud2"
    assert found["/cam0/image_raw"].msgtype == "std_msgs/msg/String"
    assert "/camera/color/image" not in found


def test_topics_of_unknown_types_are_named_and_left_out(tmp_path: Path) -> None:
    source = tmp_path / "own.mcap"
    definition, qos = topic_description("sensor_msgs/msg/PointCloud2", latched=False)
    file = McapFile(source, compress=False)
    file.add_topic("/odometry", "our_msgs/msg/Odometry", "float64 speed", qos)
    file.add_topic("/os/points", "sensor_msgs/msg/PointCloud2", definition, qos)
    for message in BagReader(Drive().write(tmp_path / "theirs.mcap")).messages(
        ["/odometry", "/lidar/points"]
    ):
        topic = OWN.get(message.topic, message.topic)
        file.write(topic, message.log_time_ns, message.raw)
    file.close()
    result = run(source, written(tmp_path / "topics.yaml"), tmp_path / "out.mcap")
    assert "left out, of types that Kestrel does not know: /odometry (our_msgs/msg/Odometry)" in result.stderr
    found = BagReader(tmp_path / "out.mcap").topics
    assert "/odometry" not in found
    assert found["/lidar/points"].count == 12


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "--topics: expected a file like config/topics.yaml, found .*No such file"),
        ("fusion: [", "--topics: expected a file like config/topics.yaml, found while parsing"),
        ("video: {'~/input/front/image': /a}", r"expected a section fusion, found \['video'\]"),
        ("- fusion", "expected a section fusion, found list"),
        ("fusion:", r"expected a section fusion, found \['fusion'\]"),
        ("fusion: {'~/input/points': 7}", "fusion: expected inputs and topics, found ~/input/points: 7"),
        ("fusion: {'~/input/points': }", "fusion: expected inputs and topics, found ~/input/points: None"),
        ("fusion: {'~/input/cloud': /a}", "fusion: expected ~/input/points or .*found ~/input/cloud"),
        ("fusion: {'~/output/objects': /a}", "fusion: expected inputs of sensors .*found none"),
        ("fusion: {'~/input/{camera}/image': /a}", "expected {camera} in both, or in neither, found /a"),
        ("fusion: {'~/input/front/image': '/{camera}/a'}", "expected {camera} in both, or in neither"),
    ],
)
def test_a_file_of_topics_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, text: str | None, expected: str
) -> None:
    topics = tmp_path / "topics.yaml"
    if text is not None:
        written(topics, text)
    with pytest.raises(ConfigError, match=expected) as error:
        read_topic_names(topics)
    assert "\n" not in str(error.value)


def test_a_recording_without_any_of_the_topics_says_which_sensors_it_has(tmp_path: Path) -> None:
    source = own(tmp_path / "own.mcap")
    text = "fusion: {'~/input/points': /velodyne}"
    result = run(source, written(tmp_path / "topics.yaml", text), tmp_path / "out.bag")
    assert isinstance(result.exception, InputError)
    told = str(result.exception)
    assert "expected topics that" in told
    assert "/os/points (sensor_msgs/msg/PointCloud2)" in told
    assert "/cam0/camera_info (sensor_msgs/msg/CameraInfo)" in told
    assert "/odometry" not in told
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == []


def test_of_a_damaged_recording_comes_what_is_readable_and_then_the_damage(tmp_path: Path) -> None:
    whole, cut = own(tmp_path / "whole.mcap"), tmp_path / "cut.mcap"
    with BagWriter(tmp_path / "large.mcap") as bag:  # in several chunks, each of which is readable alone
        for message in BagReader(whole).messages():
            bag.write_raw(message.topic, message.msgtype, message.log_time_ns, message.raw)
            bag.write(
                "/padding", messages.new("std_msgs/msg/String", data=" " * 100_000), message.log_time_ns
            )
    large = (tmp_path / "large.mcap").read_bytes()
    cut.write_bytes(large[: len(large) * 2 // 3])
    result = run(cut, written(tmp_path / "topics.yaml"), tmp_path / "out.mcap")
    assert isinstance(result.exception, InputError)
    assert "cut.mcap: expected a complete bag" in str(result.exception)
    copied = BagReader(tmp_path / "out.mcap")
    assert copied.damage is None
    assert 2 < copied.topics["/lidar/points"].count < 12


def test_what_is_missing_or_there_already_is_refused(tmp_path: Path) -> None:
    topics = written(tmp_path / "topics.yaml")
    source = own(tmp_path / "own.mcap")
    for result, told in (
        (
            run(source, None, tmp_path / "a.bag"),
            "--topics: expected a file like config/topics.yaml, found none",
        ),
        (run(tmp_path / "no.mcap", topics, tmp_path / "a.bag"), "bag: expected a rosbag2 folder"),
        (run(source, topics, source), "--out: expected a path that does not exist"),
    ):
        assert told in str(result.exception)
    assert not (tmp_path / "a.bag").exists()
