# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""SQLite recordings that were cut off, broken or left by a recorder that was killed (MCAP: test_bag.py)."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from rosbags.rosbag2 import StoragePlugin, Writer

from kestrel.data import messages
from kestrel.data.bag import BagReader, serialize, typestore
from kestrel.errors import InputError

COUNT = 2000


def text(number: int) -> bytes:
    return serialize(messages.new("std_msgs/msg/String", data=f"{number:04d}" + "x" * (number % 7) * 1000))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a rosbag2 folder with one SQLite file, whose messages have 4 bytes to more than a page."""
    folder = tmp_path_factory.mktemp("bags") / "whole"
    with Writer(folder, version=9, storage_plugin=StoragePlugin.SQLITE3) as bag:
        topics = [
            bag.add_connection(name, "std_msgs/msg/String", typestore=typestore()) for name in ("/a", "/b")
        ]
        for number in range(COUNT):
            bag.write(topics[number % 2], number, text(number))
    return folder


@pytest.fixture
def bag(whole: Path, tmp_path: Path) -> Path:
    """Return a copy of the folder."""
    return shutil.copytree(whole, tmp_path / "whole")


def database(folder: Path) -> Path:
    return folder / "whole.db3"


def test_a_whole_one_is_read_in_both_forms(bag: Path) -> None:
    for path in (bag, database(bag)):
        reader = BagReader(path)
        assert [item.log_time_ns for item in reader.messages()] == list(range(COUNT))
        reader.raise_if_damaged()


@pytest.mark.parametrize("kept", [0.5, 0.8, 0.999])
@pytest.mark.parametrize("alone", [False, True])
def test_a_cut_off_one_is_read_up_to_the_damage_and_says_how_far(bag: Path, kept: float, alone: bool) -> None:
    data = database(bag)
    os.truncate(data, int(data.stat().st_size * kept))
    if not alone:
        (bag / "metadata.yaml").unlink()  # as a recorder leaves it that was killed
    reader = BagReader(data if alone else bag)
    found = list(reader.messages())
    assert [item.log_time_ns for item in found] == list(range(len(found)))
    assert [item.raw for item in found[::50]] == [text(number) for number in range(0, len(found), 50)]
    assert COUNT * (kept - 0.15) <= len(found) < COUNT
    assert sum(topic.count for topic in reader.topics.values()) == len(found)
    with pytest.raises(InputError, match=f"whole.db3 ends after {len(found)} messages.*recover"):
        reader.raise_if_damaged()


@pytest.mark.parametrize("kept", [0.01, 0.2])
def test_of_one_that_was_cut_off_early_nothing_is_read_and_it_says_what_may_help(
    bag: Path, kept: float
) -> None:
    """The pages that join rows are written later than the rows."""
    os.truncate(database(bag), int(database(bag).stat().st_size * kept))
    reader = BagReader(bag)
    assert list(reader.messages()) == []
    with pytest.raises(InputError, match=r"after 0 messages.*`sqlite3 whole\.db3 \.recover \| sqlite3 NEW"):
        reader.raise_if_damaged()


def test_metadata_that_promise_more_than_is_there_do_not_hide_the_damage(bag: Path) -> None:
    os.truncate(database(bag), database(bag).stat().st_size // 2)
    reader = BagReader(bag)
    assert 800 < reader.topics["/a"].count + reader.topics["/b"].count < 1200
    assert reader.damage is not None


def test_some_topics_and_times_of_a_cut_off_one(bag: Path) -> None:
    os.truncate(database(bag), database(bag).stat().st_size // 2)
    reader = BagReader(bag)
    assert [m.log_time_ns for m in reader.messages(["/b"], start_ns=10, stop_ns=16)] == [11, 13, 15]


def test_broken_pages_in_the_middle_end_it(bag: Path) -> None:
    raw = bytearray(database(bag).read_bytes())
    middle = len(raw) // 2 // 4096 * 4096
    raw[middle : middle + 8 * 4096] = b"\xa5" * 8 * 4096
    database(bag).write_bytes(raw)
    reader = BagReader(bag)
    found = [item.log_time_ns for item in reader.messages()]
    assert found == list(range(len(found)))
    assert 700 < len(found) < COUNT
    with pytest.raises(InputError, match="whole"):
        reader.raise_if_damaged()


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", b"not a bag" * 1000])
def test_a_file_that_is_no_recording_holds_nothing_and_says_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.db3"
    path.write_bytes(content)
    reader = BagReader(path)
    assert list(reader.messages()) == []
    with pytest.raises(InputError, match=r"file\.db3 ends after 0 messages"):
        reader.raise_if_damaged()


def test_what_a_killed_recorder_left_in_its_log_is_read_and_said(bag: Path) -> None:
    writing = sqlite3.connect(database(bag))
    writing.execute("PRAGMA journal_mode = WAL")
    row = "INSERT INTO messages (topic_id, timestamp, data) VALUES (1, ?, ?)"
    writing.executemany(row, [(COUNT + number, text(number)) for number in range(5)])
    writing.commit()
    reader = BagReader(bag)
    assert len(list(reader.messages())) == COUNT + 5
    with pytest.raises(InputError, match=r"whole\.db3-wal: expected merged"):
        reader.raise_if_damaged()
    writing.close()  # merges it
    assert BagReader(bag).damage is None
