# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What plays and what records in `kestrel replay`, each by itself."""

from __future__ import annotations

import resource
import threading
import time
from typing import Any

import pytest

pytest.importorskip("rclpy")

from kestrel.data import messages
from kestrel.data.bag import BagReader, BagWriter, serialize
from kestrel.data.messages import Source, source_of
from kestrel.errors import SetupError
from kestrel_nodes.replay import player
from kestrel_nodes.replay.pacing import Answers
from kestrel_nodes.replay.recorder import Recorder
from tests.ros.replayed_drive import EPOCH, drive


def test_stamp_and_frame_are_read_from_the_bytes():
    message = messages.imu_message(EPOCH + 7, angular_velocity=(0, 0, 0), linear_acceleration=(0, 0, 0))
    assert source_of("sensor_msgs/msg/Imu", serialize(message)) == Source(EPOCH + 7, "imu")
    text = serialize(messages.new("std_msgs/msg/String", data="hello"))
    assert source_of("std_msgs/msg/String", text) is None


class Acknowledged:
    """A publisher whose subscribers have everything when it is asked for the third time, or never."""

    def __init__(self, *, ever: bool) -> None:
        self.ever, self.timeouts_ns = ever, []

    def wait_for_all_acked(self, timeout: Any) -> bool:
        self.timeouts_ns.append(timeout.nanoseconds)
        return self.ever and len(self.timeouts_ns) == 3


@pytest.mark.parametrize("ever", [True, False])
def test_the_end_is_awaited_with_the_interpreter_free_to_record_answers(monkeypatch, ever):
    monkeypatch.setattr(player, "ACKNOWLEDGE_S", 30.0 if ever else 0.1)
    publishers = [Acknowledged(ever=True), Acknowledged(ever=ever)]
    played = player.Player.__new__(player.Player)
    played._publishers = dict(enumerate(publishers))
    assert played.finish() is ever
    assert {each for publisher in publishers for each in publisher.timeouts_ns} == {0}
    assert len(publishers[0].timeouts_ns) == 3, "one that has everything is not asked again"


class Publishing:
    """Stands for the node of a replay; keeps what is published, and of /clock the time."""

    def __init__(self) -> None:
        self.published: list[tuple[str, Any]] = []

    def create_publisher(self, kind: type, topic: str, profile: object) -> Publisher:
        return Publisher(topic, self.published)


class Publisher:
    def __init__(self, topic: str, published: list[tuple[str, Any]]) -> None:
        self.topic, self.published = topic, published

    def publish(self, message: Any) -> None:
        stamp = message.clock.sec * 10**9 + message.clock.nanosec if self.topic == "/clock" else message
        self.published.append((self.topic, stamp))


def test_the_clock_is_told_for_what_nodes_answer_and_else_fifty_times_a_second(tmp_path):
    answers = Answers()
    answers.connect("echo", [("/lidar/points", False)])
    node, played = Publishing(), player.Played()
    reader = BagReader(drive(tmp_path / "drive", sweeps=10, points=10))
    times: dict[str, list[int]] = {topic: [] for topic in ("/lidar/points", "/imu")}
    for message in reader.messages(set(times)):
        times[message.topic].append(message.log_time_ns)
    assert all(times.values())
    playing = player.Player(
        node, reader, player.Selection(), answers, lambda *_: None, lambda _: True, threading.Event()
    )
    playing.play(1.0, lockstep=False, played=played, progress=lambda *_: None)
    clock, ticks = 0, 0
    for topic, value in node.published:
        if topic == "/clock":
            assert value >= clock
            clock, ticks = value, ticks + 1
        elif topic in times:
            late = times[topic].pop(0) - clock
            assert 0 <= late < (1 if topic == "/lidar/points" else 20_000_000)
    assert not any(times.values())
    assert ticks <= 1.3 * 50 * played.bag_s


def test_what_is_played_waits_for_room_in_the_recording_and_nothing_is_lost(tmp_path):
    node, asked = Publishing(), []

    def room(seconds: float) -> bool:
        asked.append((seconds, [topic for topic, _ in node.published if topic != "/clock"]))
        return len(asked) > 3

    reader = BagReader(drive(tmp_path / "drive", sweeps=1, points=10))
    played = player.Played()
    selection = player.Selection(publish_truth=True)
    playing = player.Player(node, reader, selection, Answers(), lambda *_: None, room, threading.Event())
    playing.play(100.0, lockstep=False, played=played, progress=lambda *_: None)
    assert asked[:4] == [(0.0, []), *[(player.CLOCK_SILENCE_S, [])] * 3]
    assert sum(played.counts.values()) == sum(topic.count for topic in reader.topics.values())


def test_recorder_says_when_more_waits_for_the_disk_than_may_and_takes_it_all_the_same(tmp_path, monkeypatch):
    disk, write = threading.Event(), BagWriter.write_raw

    def slow(*item: Any) -> None:
        assert disk.wait(30)
        write(*item)

    monkeypatch.setattr("kestrel_nodes.replay.recorder.MOST_WAITING_BYTES", 1000)
    monkeypatch.setattr(BagWriter, "write_raw", slow)
    recorder = Recorder(tmp_path / "out.mcap")
    recorder.write("/imu", "sensor_msgs/msg/Imu", EPOCH, bytes(1000))
    assert recorder.wait_for_room(0.0)
    for _ in range(3):
        recorder.write("/imu", "sensor_msgs/msg/Imu", EPOCH, bytes(1000))
    assert not recorder.wait_for_room(0.01)
    disk.set()
    assert recorder.wait_for_room(30.0)
    recorder.close()
    assert recorder.count == BagReader(tmp_path / "out.mcap").topics["/imu"].count == 4


def test_full_disk_is_said_at_once_and_what_was_written_before_can_be_read(tmp_path):
    """A limit on the size of files: like on a full disk, the last write comes to the disk in part."""
    said, out = [], tmp_path / "out.mcap"
    recorder = Recorder(out, said.append)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_500_000, before[1]))
    try:
        for number in range(20):
            recorder.write("/imu", "sensor_msgs/msg/Imu", EPOCH + number, bytes([number]) * 600_000)
        deadline = time.monotonic() + 30
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
        assert recorder.wait_for_room(30.0)
        with pytest.raises(SetupError, match=r"recording .*out\.mcap.*File too large"):
            recorder.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(said) == 1
    assert "File too large" in said[0]
    reader = BagReader(out)
    raws = [message.raw for message in reader.messages()]
    assert raws == [bytes([number]) * 600_000 for number in range(4)]
    assert out.stat().st_size < 3_000_000, "no part of a chunk is left"
