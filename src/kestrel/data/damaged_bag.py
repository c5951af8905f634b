# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What is left of a bag that was cut off or broken: its messages one after the other, up to the damage."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from mcap.records import Channel, Message, Schema
from mcap.stream_reader import StreamReader

Stored = tuple[str, str, int, bytes]
"""Topic, type, log time in ns, CDR bytes."""

KINDS: Final = (".mcap", ".db3")


class DamageError(Exception):
    """Nothing more can be read; the text says where and why."""


def parts(path: Path) -> list[Path]:
    """Return the files of a bag that can be read up to their damage, in the order of recording."""
    if path.is_dir():
        found = [entry for entry in path.iterdir() if entry.suffix in KINDS]
        return sorted(found, key=_part_number)
    return [path] if path.suffix in KINDS else []


def _part_number(path: Path) -> tuple[int, str]:
    """Return what orders the files of a split bag: NAME_9.mcap comes before NAME_10.mcap."""
    number = re.search(r"_(\d+)$", path.stem)
    return int(number[1]) if number else 0, path.name


def unmerged(path: Path) -> Path | None:
    """Return the write-ahead log that the recorder of a SQLite file left, with what it recorded last."""
    log = path.with_name(f"{path.name}-wal")
    return log if path.suffix == ".db3" and log.is_file() and log.stat().st_size else None


def read_part(path: Path) -> Iterator[Stored]:
    """Yield the messages of one file in the order of recording.

    Raises:
        DamageError: from here on it is unreadable.
    """
    yield from _read_mcap(path) if path.suffix == ".mcap" else _read_sqlite(path)


def _read_mcap(path: Path) -> Iterator[Stored]:
    channels: dict[int, tuple[str, str]] = {}
    schemas: dict[int, str] = {}
    with path.open("rb") as stream:
        records = StreamReader(stream, validate_crcs=True).records
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except Exception as error:  # the parsers raise anything on damaged bytes
                text = f"{path.name} ends at byte {stream.tell()} with {type(error).__name__}"
                raise DamageError(text) from error
            if isinstance(record, Schema):
                schemas[record.id] = record.name
            elif isinstance(record, Channel):
                channels[record.id] = (record.topic, schemas.get(record.schema_id, ""))
            elif isinstance(record, Message) and record.channel_id in channels:
                topic, msgtype = channels[record.channel_id]
                yield topic, msgtype, record.log_time, record.data


def _read_sqlite(path: Path) -> Iterator[Stored]:
    count = 0
    # A file that is opened as immutable needs no lock, but its write-ahead log is not looked at.
    access = "mode=ro" if unmerged(path) else "mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{access}", uri=True)) as database:
            # Without, SQLite opens no file that is shorter than it once was.
            database.execute("PRAGMA writable_schema = ON")
            kept = "SELECT id, name, type FROM topics WHERE typeof(name) = 'text' AND typeof(type) = 'text'"
            topics = {number: (name, kind) for number, name, kind in database.execute(kept)}
            # By rows, which were written one after the other; an index may be damaged before all of them.
            rows = "SELECT topic_id, timestamp, data FROM messages NOT INDEXED ORDER BY id"
            for number, time_ns, data in database.execute(rows):
                if number not in topics or not isinstance(time_ns, int) or not isinstance(data, bytes):
                    raise sqlite3.DatabaseError("a row that is no message")
                yield *topics[number], time_ns, data
                count += 1
    except (sqlite3.Error, OverflowError, UnicodeDecodeError) as error:
        # The pages that join rows are written later than these: of the beginning of a file none are found.
        more = f"`sqlite3 {path.name} .recover | sqlite3 NEW.db3` may find more"
        raise DamageError(f"{path.name} ends after {count} messages: {error}; {more}") from error
