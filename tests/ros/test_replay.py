# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`kestrel replay` through real ROS: what is published arrives, what is recorded can be read."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy")

from kestrel.data import messages, sensor_messages
from kestrel.data.bag import BagReader, BagWriter, serialize, topic_description
from kestrel.data.mcap_file import McapFile
from kestrel.data.messages import source_of
from kestrel.errors import SetupError
from kestrel.eval.recording import read_recording
from kestrel.eval.score import unanswered
from kestrel_nodes.replay.recorder import Recorder
from tests.ros.replayed_drive import EPOCH, drive

ECHO = Path(__file__).with_name("echo_node.py")
KESTREL = [sys.executable, "-m", "kestrel"]


def start_echo(work_s: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, ECHO, str(work_s)], stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )


def finish(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    return output


def replay(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*KESTREL, "replay", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ.copy())


def test_everything_published_arrives_at_rate_one_and_is_recorded(tmp_path, ros_domain):
    bag = drive(tmp_path / "bag", sweeps=20, points=30000)
    echo = start_echo(0.0)
    done = replay(bag, "--record", tmp_path / "out.mcap", "--wait-for", "echo")
    received, answered = map(int, finish(echo).split())
    assert done.returncode == 0, done.stderr
    assert received == 20
    assert "published 221 messages on 3 topics" in done.stdout
    topics = BagReader(tmp_path / "out.mcap").topics
    counts = {name: topic.count for name, topic in topics.items()}
    assert counts == {
        "/tf_static": 1,
        "/lidar/points": 20,
        "/imu": 200,
        "/truth/event": 20,
        "/echo/output/echo": answered,
        "/echo/output/never": 0,
    }
    lacking = unanswered(read_recording(tmp_path / "out.mcap"))
    assert lacking == ["echo (never): asked 20 by /lidar/points, answered 0"]
    assert topics["/tf_static"].latched


def test_recording_replayed_again_holds_each_answer_once(tmp_path, ros_domain):
    first, second, third = (tmp_path / f"{name}.mcap" for name in ("first", "second", "third"))
    echo = start_echo(0.0)
    assert replay(drive(tmp_path / "bag", 4, 100), "--record", first, "--wait-for", "echo").returncode == 0
    again = replay(first, "--record", second, "--wait-for", "echo")
    _, answered = map(int, finish(echo).split())
    assert again.returncode == 0, again.stderr
    assert "not replayed, since nodes publish it: /echo/output/echo" in again.stderr
    alone = replay(second, "--record", third)
    assert "not replayed" not in alone.stderr
    counts = [BagReader(path).topics["/echo/output/echo"].count for path in (first, second, third)]
    assert counts == [answered - counts[1], 4, 4]
    assert counts[0] == 4


def test_excluded_output_is_not_subscribed_to(tmp_path, ros_domain):
    bag = drive(tmp_path / "bag", sweeps=3, points=100)
    echo = start_echo(0.0)
    done = replay(bag, "--record", tmp_path / "out.mcap", "--wait-for", "echo", "--exclude", "output/ec")
    received, _ = map(int, finish(echo).split())
    assert done.returncode == 0, done.stderr
    assert received == 3
    assert "/echo/output/echo" not in BagReader(tmp_path / "out.mcap").topics


def test_recording_holds_the_bytes_of_the_bag_in_the_time_of_the_replay(tmp_path, ros_domain):
    bag = drive(tmp_path / "bag", sweeps=5, points=100)
    before = time.time_ns()
    assert replay(bag, "--record", tmp_path / "out.mcap", "--rate", 2).returncode == 0
    recorded = list(BagReader(tmp_path / "out.mcap").messages(["/lidar/points"]))
    assert [item.raw for item in recorded] == [
        item.raw for item in BagReader(bag).messages(["/lidar/points"])
    ]
    times = [before, *(item.log_time_ns for item in recorded), time.time_ns()]
    assert times == sorted(times)


def test_max_rate_waits_for_a_slow_node_which_then_answers_everything(tmp_path, ros_domain):
    bag = drive(tmp_path / "bag", sweeps=10, points=100)
    echo = start_echo(0.2)
    done = replay(bag, "--rate", "max", "--record", tmp_path / "out.mcap", "--wait-for", "echo")
    assert finish(echo).split() == ["10", "10"]
    assert "/echo answered 10 of 10" in done.stdout
    rate = float(re.search(r"rate ([0-9.]+)", done.stdout)[1])
    assert 0.0 < rate < 0.62


def test_fixed_rate_does_not_wait_and_counts_what_a_slow_node_misses(tmp_path, ros_domain):
    bag = drive(tmp_path / "bag", sweeps=10, points=100)
    echo = start_echo(0.35)
    done = replay(bag, "--wait-for", "echo")
    received, answered = map(int, finish(echo).split())
    assert received == 10
    assert answered < 10, "waiting for it, the replay would have had all of them"
    assert f"/echo answered {answered} of 10" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_recording_is_complete(tmp_path, ros_domain, number):
    bag = drive(tmp_path / "bag", sweeps=10, points=20000)
    out = tmp_path / "out.mcap"
    command = [*KESTREL, "replay", str(bag), "--loop", "--record", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    await_size(out, 1_500_000)
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    reader = BagReader(out)
    assert reader.damage is None
    assert f"recorded {sum(topic.count for topic in reader.topics.values())} messages" in output


def test_what_a_slow_disk_writes_last_is_counted(tmp_path, ros_domain):
    bag, out = drive(tmp_path / "bag", sweeps=2, points=100), tmp_path / "out.mcap"
    slow = (
        "import time\n"
        "from kestrel.cli import main\n"
        "from kestrel.data.bag import BagWriter\n"
        "write = BagWriter.write_raw\n"
        "BagWriter.write_raw = lambda *item: (time.sleep(0.08), write(*item))\n"
        "main()\n"
    )
    command = [sys.executable, "-c", slow, "replay", str(bag), "--record", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    count = sum(topic.count for topic in BagReader(out).topics.values())
    assert f"recorded {count} messages" in done.stdout


def test_disk_that_is_full_for_a_moment_ends_the_recording_with_its_error(tmp_path, monkeypatch):
    full = threading.Event()

    def flush(_: BagWriter) -> None:
        full.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kestrel_nodes.replay.recorder.FLUSH_S", 0.01)
    monkeypatch.setattr(BagWriter, "flush", flush)
    recorder = Recorder(tmp_path / "out.mcap")
    assert full.wait(30)
    with pytest.raises(SetupError, match=r"recording .*out\.mcap.*No space left on device"):
        recorder.close()


@pytest.mark.parametrize("options", [[], ["--publish-truth"]])
def test_truth_of_a_type_that_nobody_knows_is_left_out_and_named(tmp_path, ros_domain, options):
    bag, out = McapFile(tmp_path / "bag.mcap", compress=False), tmp_path / "out.mcap"
    bag.add_topic("/truth/thing", "custom_msgs/msg/Thing", "int32 value\n", "[]")
    bag.add_topic("/imu", "sensor_msgs/msg/Imu", *topic_description("sensor_msgs/msg/Imu", latched=False))
    for step in range(5):
        stamp = EPOCH + step * 10**7
        imu = messages.imu_message(stamp, angular_velocity=(0, 0, 0), linear_acceleration=(0, 0, 9.8))
        bag.write("/truth/thing", stamp, bytes(8))
        bag.write("/imu", stamp, serialize(imu))
    bag.close()
    done = replay(tmp_path / "bag.mcap", "--record", out, *options)
    assert done.returncode == 0, done.stderr
    assert {name: topic.count for name, topic in BagReader(out).topics.items()} == {"/imu": 5}
    assert done.stderr.count("/truth/thing: custom_msgs/msg/Thing is not known, not recorded") == 1


def in_process(bag: Path, options: str, progress: str, then: str) -> str:
    """Call `replay` in a process of its own and return what it prints."""
    code = (
        "import os, signal, sys, threading, time\n"
        "from pathlib import Path\n"
        "from kestrel_nodes import transport\n"
        "from kestrel_nodes.replay.player import Selection\n"
        "from kestrel_nodes.replay.session import Options, replay\n"
        "transport.prepare()\n"
        "def say(text): pass\n"
        f"def progress(done_s, total_s, rate):\n    {progress}\n"
        "times, outcome = [], None\n"
        "try:\n"
        f"    outcome = replay(Options(Path({str(bag)!r}){options}), say=say, progress=progress)\n"
        "except RuntimeError as error:\n    print(error)\n"
        f"{then}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_loop_of_one_message_goes_on_without_flooding_and_says_that_it_was_interrupted(tmp_path, ros_domain):
    bag = drive(tmp_path / "bag.mcap", sweeps=1, points=1)  # and one message of the truth
    sixth = "times.append(time.monotonic()); len(times) < 6 or os.kill(os.getpid(), signal.SIGTERM)"
    options = ", loop=True, selection=Selection(frozenset(['/lidar/points']))"
    told = in_process(bag, options, sixth, "print(outcome.interrupted, times[-1] - times[0])")
    interrupted, took_s = told.split()
    assert interrupted == "True"
    assert float(took_s) > 0.15


def test_nothing_of_a_replay_that_failed_goes_on(tmp_path, ros_domain):
    bag = drive(tmp_path / "bag.mcap", sweeps=1, points=1)
    left = "print([thread.name for thread in threading.enumerate() if thread.name in ('graph', 'receiver')])"
    told = in_process(bag, "", "raise RuntimeError('a node has ended')", left)
    assert told.splitlines() == ["a node has ended", "[]"]


def test_killed_recording_keeps_its_finished_chunks(tmp_path, ros_domain):
    bag = drive(tmp_path / "bag", sweeps=10, points=20000)
    out = tmp_path / "out.mcap"
    command = [*KESTREL, "replay", str(bag), "--loop", "--record", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    await_size(out, 2_500_000)
    process.kill()
    process.wait(timeout=20)
    reader = BagReader(out)
    assert reader.topics["/lidar/points"].count >= 4
    assert reader.damage is not None


def await_size(path: Path, size: int) -> None:
    deadline = time.monotonic() + 120
    waiting = threading.Event()
    while not path.exists() or path.stat().st_size < size:
        assert time.monotonic() < deadline, "the recording does not grow"
        waiting.wait(0.05)


def test_part_of_a_bag_starts_with_what_is_latched(tmp_path, ros_domain):
    bag = drive(tmp_path / "bag", sweeps=10, points=100)
    out = tmp_path / "out.mcap"
    options = ("--start", 0.5, "--duration", 0.3, "--topics", "/lidar/points", "--topics", "/tf_static")
    assert replay(bag, "--record", out, *options).returncode == 0
    stamps = [source_of(item.msgtype, item.raw) for item in BagReader(out).messages(["/lidar/points"])]
    assert [source.stamp_ns - EPOCH for source in stamps] == [500_000_000, 600_000_000, 700_000_000]
    assert BagReader(out).topics["/tf_static"].count == 1
    assert "/imu" not in BagReader(out).topics


def test_label_images_come_from_the_truth_at_their_own_rate(tmp_path, ros_domain):
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    with BagWriter(tmp_path / "bag") as bag:
        for index in range(12):
            stamp = EPOCH + index * 10**8
            truth = sensor_messages.compressed_image(ids, stamp, "camera_front_optical", jpeg_quality=None)
            bag.write("/truth/camera/front/semantics", truth, stamp)
    out = tmp_path / "out.mcap"
    assert replay(tmp_path / "bag", "--record", out, "--labels", "front", "--rate", 5).returncode == 0
    assert BagReader(out).topics["/truth/camera/front/semantics"].count == 12
    published = [item.decode() for item in BagReader(out).messages(["/augment/input/labels"])]
    assert [(messages.stamp_of(image) - EPOCH) // 10**8 for image in published] == [0, 5, 10]
    assert (published[0].encoding, published[0].data.tolist()) == ("mono8", list(range(12)))
    refused = replay(tmp_path / "bag", "--labels", "back")
    assert refused.returncode == 2
    assert "/truth/camera/back/semantics" in refused.stderr.replace("\n", "")


def test_damaged_bag_is_replayed_up_to_the_damage_and_fails(tmp_path, ros_domain):
    bag = drive(tmp_path / "bag", sweeps=10, points=20000)
    data = next(bag.glob("*.mcap"))
    os.truncate(data, data.stat().st_size // 2)
    done = replay(bag, "--rate", 10)
    assert done.returncode == 2
    assert "published" in done.stdout
    assert data.name in done.stderr.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--rate", "0"], "--rate"),
        (["--rate", "fast"], "--rate"),
        (["--record", "out.bag"], ".mcap"),
        (["--wait-for", "nobody", "--wait-timeout", "0.3"], "nobody"),
        (["--exclude", "("], "--exclude"),
    ],
)
def test_wrong_use_is_said_in_one_line(tmp_path, ros_domain, arguments, text):
    done = replay(drive(tmp_path / "bag", sweeps=1, points=1), *arguments)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_replay_that_never_begins_leaves_no_recording_in_the_way_of_the_next(tmp_path, ros_domain):
    bag, out = drive(tmp_path / "bag", sweeps=1, points=1), tmp_path / "out.mcap"
    failed = replay(bag, "--record", out, "--wait-for", "nobody", "--wait-timeout", "0.3")
    assert failed.returncode == 2
    assert not out.exists()
    assert replay(bag, "--record", out).returncode == 0
    assert out.exists()
