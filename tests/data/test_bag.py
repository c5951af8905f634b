# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import numpy as np
import pytest

from kestrel.data import messages
from kestrel.data.bag import BagReader, BagWriter, deserialize, serialize, typestore
from kestrel.errors import InputError

ROOT = Path(__file__).parents[2]
PACKAGED = ROOT / "src/kestrel/data/msg"
SOURCES = {
    "kestrel_msgs": ROOT / "ros_ws/src/kestrel_msgs/msg",
    "vision_msgs": ROOT / "ros_ws/src/interfaces/vision_msgs/msg",
}


def filled(path, count=3000, **options):
    with BagWriter(path, **options) as bag:
        bag.write("/tf_static", messages.tf_message([]), 5)
        for index in range(count):
            bag.write(
                "/pictures", messages.new("std_msgs/msg/String", data=f"{index:04d}" + "x" * 1000), index
            )
    return path


@pytest.mark.parametrize("package", sorted(SOURCES))
def test_packaged_definitions_are_those_the_workspace_builds(package):
    packaged = {path.name: path.read_text() for path in (PACKAGED / package).iterdir()}
    built = {path.name: path.read_text() for path in SOURCES[package].iterdir()}
    assert packaged == built


def test_detection_type_hash_is_the_upstream_one():
    expected = "RIHS01_793f5eab9595ac1c0da07873cc859db42eae51f0ee76056db8562515d830e018"
    assert typestore().hash_rihs01("vision_msgs/msg/Detection3DArray") == expected


@pytest.mark.parametrize("name", ["folder", "file.mcap"])
@pytest.mark.parametrize("compress", [False, True])
def test_what_is_written_is_read(tmp_path, name, compress):
    path = filled(tmp_path / name, count=20, compress=compress, latched=["/pictures"])
    reader = BagReader(path)
    assert reader.damage is None
    assert (reader.start_ns, reader.end_ns) == (0, 19)
    assert reader.topics["/pictures"].count == 20
    assert reader.topics["/pictures"].latched
    assert reader.topics["/tf_static"].latched
    some = list(reader.messages(["/pictures"], start_ns=4, stop_ns=7))
    assert [item.log_time_ns for item in some] == [4, 5, 6]
    assert [item.decode().data[:4] for item in some] == ["0004", "0005", "0006"]


def test_single_file_opens_with_the_mcap_library_and_knows_its_qos(tmp_path):
    from mcap.reader import make_reader

    with filled(tmp_path / "file.mcap", count=2).open("rb") as stream:
        summary = make_reader(stream).get_summary()
    channels = {channel.topic: channel for channel in summary.channels.values()}
    assert summary.statistics.message_count == 3
    assert "transient_local" in channels["/tf_static"].metadata["offered_qos_profiles"]
    assert "volatile" in channels["/pictures"].metadata["offered_qos_profiles"]


@pytest.mark.parametrize("name", ["folder", "file.mcap"])
def test_a_topic_that_is_announced_is_there_without_a_message(tmp_path, name):
    with BagWriter(tmp_path / name) as bag:
        bag.announce("/silent", "std_msgs/msg/String")
        bag.announce("/kept", "std_msgs/msg/String", latched=True)
        bag.announce("/said", "std_msgs/msg/String")
        bag.write("/said", messages.new("std_msgs/msg/String", data="x"), 5)
    reader = BagReader(tmp_path / name)
    found = {topic: (held.count, held.latched) for topic, held in reader.topics.items()}
    assert found == {"/silent": (0, False), "/kept": (0, True), "/said": (1, False)}
    assert reader.damage is None
    assert [message.topic for message in reader.messages()] == ["/said"]
    assert list(reader.messages(["/silent"])) == []


def test_writing_twice_gives_the_same_bytes(tmp_path):
    first = filled(tmp_path / "a" / "bag", count=50)
    second = filled(tmp_path / "b" / "bag", count=50)
    one, other = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (first, second))
    assert "metadata.yaml" in one
    assert one == other


@pytest.mark.parametrize("name", ["folder", "file.mcap"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.8, 0.999])
def test_cut_off_bag_is_read_up_to_the_damage_and_says_so(tmp_path, name, compress, kept):
    path = filled(tmp_path / name, compress=compress)
    data = path if path.is_file() else next(path.glob("*.mcap"))
    os.truncate(data, int(data.stat().st_size * kept))
    reader = BagReader(path)
    found = [item.log_time_ns for item in reader.messages(["/pictures"])]
    assert found == list(range(len(found)))
    assert len(found) >= int(3000 * kept) - 1100  # at most the chunk that was cut is lost
    with pytest.raises(InputError, match=data.name):
        reader.raise_if_damaged()


def test_broken_chunk_in_a_complete_file_is_said(tmp_path):
    path = filled(tmp_path / "file.mcap", compress=False)
    raw = bytearray(path.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 64] = bytes(64)
    path.write_bytes(raw)
    reader = BagReader(path)
    found = [item.log_time_ns for item in reader.messages(["/pictures"])]
    assert found == list(range(len(found)))
    assert len(found) < 3000
    with pytest.raises(InputError):
        reader.raise_if_damaged()


def test_recording_of_a_killed_writer_keeps_its_finished_chunks(tmp_path):
    bag = BagWriter(tmp_path / "file.mcap")
    for index in range(3000):
        bag.write("/pictures", messages.new("std_msgs/msg/String", data="x" * 1000), index)
    reader = BagReader(tmp_path / "file.mcap")  # the writer has not been closed
    assert reader.topics["/pictures"].count > 1800
    assert reader.damage is not None
    bag.close()
    assert BagReader(tmp_path / "file.mcap").topics["/pictures"].count == 3000


def test_parts_of_a_split_bag_without_metadata_are_read_in_their_order(tmp_path):
    folder = tmp_path / "split"
    for part in range(12):
        with BagWriter(folder / f"split_{part}.mcap") as bag:
            bag.write("/text", messages.new("std_msgs/msg/String", data=str(part)), part)
    reader = BagReader(folder)  # what is left of a recorder that was killed: no metadata.yaml
    assert reader.damage is not None
    assert [message.log_time_ns for message in reader.messages()] == list(range(12))


@pytest.mark.parametrize("content", [b"", b"\x89MCAP0\r\n", b"not a bag" * 100])
def test_file_that_is_no_bag_holds_nothing_and_says_so(tmp_path, content):
    path = tmp_path / "file.mcap"
    path.write_bytes(content)
    reader = BagReader(path)
    assert list(reader.messages()) == []
    with pytest.raises(InputError):
        reader.raise_if_damaged()


def test_missing_path_and_foreign_file_are_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        BagReader(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="notes"):
        BagReader(tmp_path / "notes.txt")


def test_existing_output_is_never_overwritten(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="does not exist"):
        BagWriter(tmp_path / "there")


def test_bytes_of_another_type_are_refused_by_name():
    raw = serialize(messages.new("std_msgs/msg/String", data="hello"))
    with pytest.raises(InputError, match="/camera"):
        deserialize(raw, "sensor_msgs/msg/PointCloud2", topic="/camera")
    with pytest.raises(InputError, match="acme_msgs"):
        deserialize(raw, "acme_msgs/msg/Rocket", topic="/rocket")


def test_big_array_survives_the_round_trip():
    message = messages.new(
        "sensor_msgs/msg/CompressedImage",
        header=messages.header(1_700_000_000_123_456_789, "camera"),
        format="jpeg",
        data=np.arange(100_000, dtype=np.uint32).astype(np.uint8),
    )
    back = deserialize(serialize(message), "sensor_msgs/msg/CompressedImage")
    assert messages.stamp_of(back) == 1_700_000_000_123_456_789
    assert np.array_equal(back.data, message.data)
