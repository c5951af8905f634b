# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Bags: rosbag2 folders and single MCAP files, read and written without a ROS installation."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode
from rosbags.rosbag2.metadata import dump_qos_v9
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from kestrel.data.damaged_bag import DamageError, parts, read_part, unmerged
from kestrel.data.mcap_file import McapFile
from kestrel.errors import InputError, describe

LATCHED_TOPICS = ("/tf_static",)
"""Topics whose last messages a late subscriber must still get."""

BAG: Final = "a rosbag2 folder, an .mcap or a .db3 file"

_FOREVER = QosTime(2147483647, 4294967295)


@functools.cache
def typestore() -> Typestore:
    """Return the types of ROS 2 Jazzy with vision_msgs and kestrel_msgs added."""
    store = get_typestore(Stores.ROS2_JAZZY)
    root = resources.files("kestrel.data") / "msg"
    types: dict[str, Any] = {}
    for package in sorted(root.iterdir(), key=lambda entry: entry.name):
        if package.is_dir():
            for entry in sorted(package.iterdir(), key=lambda item: item.name):
                name = f"{package.name}/msg/{entry.name.removesuffix('.msg')}"
                types.update(get_types_from_msg(entry.read_text(), name))
    store.register(types)
    return store


def serialize(message: Any) -> bytes:
    """Return the CDR bytes of a message object made from ``typestore().types``."""
    return bytes(typestore().serialize_cdr(message, message.__msgtype__))


def deserialize(raw: bytes, msgtype: str, *, topic: str = "message") -> Any:
    """Return the message object in ``raw``; InputError if the bytes are not a ``msgtype``."""
    store = typestore()
    if msgtype not in store.fielddefs:
        raise InputError(describe(f"type of {topic}", expected="a known message type", found=msgtype))
    try:
        return store.deserialize_cdr(raw, msgtype)
    except SerdeError as error:
        raise InputError(describe(topic, expected=f"a {msgtype}", found=str(error))) from error


def qos_profile(*, latched: bool) -> Qos:
    """Return a reliable QoS profile, transient-local where ``latched``."""
    return Qos(
        QosHistory.KEEP_LAST,
        100 if latched else 10,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        _FOREVER,
        _FOREVER,
        QosLiveliness.AUTOMATIC,
        _FOREVER,
        avoid_ros_namespace_conventions=False,
    )


class BagMessage(NamedTuple):
    """One message of a bag: ``raw`` is CDR, ``log_time_ns`` when it was recorded."""

    topic: str
    msgtype: str
    log_time_ns: int
    raw: bytes

    def decode(self) -> Any:
        """Return the message object."""
        return deserialize(self.raw, self.msgtype, topic=self.topic)


class BagWriter:
    """Write a bag: a rosbag2 folder, or one MCAP file if ``path`` ends with ``.mcap``.

    The path must not exist yet. Messages are stored in the order they are written.

    Args:
        path: folder or ``.mcap`` file to make.
        compress: zstd-compress the chunks.
        latched: further topics, beside LATCHED_TOPICS, that a late subscriber must still get.
    """

    def __init__(self, path: str | Path, *, compress: bool = False, latched: Collection[str] = ()) -> None:
        self.path = Path(path)
        if self.path.exists():
            raise InputError(describe("output", expected="a path that does not exist", found=self.path))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._latched = {*LATCHED_TOPICS, *latched}
        self._connections: dict[str, Connection] = {}
        self._file: McapFile | None = None
        self._folder: Writer | None = None
        if self.path.suffix == ".mcap":
            self._file = McapFile(self.path, compress=compress)
        else:
            self._folder = Writer(self.path, version=9, storage_plugin=StoragePlugin.MCAP)
            if compress:
                self._folder.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
            self._folder.open()

    def write(self, topic: str, message: Any, log_time_ns: int) -> None:
        """Write a message object made from ``typestore().types``."""
        self.write_raw(topic, message.__msgtype__, log_time_ns, serialize(message))

    def announce(self, topic: str, msgtype: str, *, latched: bool = False) -> None:
        """Note that there is a topic, whether or not a message of it comes."""
        if latched:
            self._latched.add(topic)
        if self._file is not None:
            if topic not in self._file.topics:
                self._file.add_topic(topic, msgtype, *topic_description(msgtype, topic in self._latched))
            return
        assert self._folder is not None
        if topic not in self._connections:
            qos = qos_profile(latched=topic in self._latched)
            self._connections[topic] = self._folder.add_connection(
                topic, msgtype, typestore=typestore(), offered_qos_profiles=[qos]
            )

    def write_raw(self, topic: str, msgtype: str, log_time_ns: int, raw: bytes | memoryview) -> None:
        """Write CDR bytes as they are."""
        self.announce(topic, msgtype)
        if self._file is not None:
            self._file.write(topic, log_time_ns, bytes(raw))
            return
        assert self._folder is not None
        self._folder.write(self._connections[topic], log_time_ns, raw)

    def flush(self) -> None:
        """Hand every finished chunk of a single file to the operating system."""
        if self._file is not None:
            self._file.flush()

    def cut(self) -> None:
        """Close a single file after a failed write: it ends with its last whole chunk, without an index."""
        if self._file is not None:
            self._file.cut()
        self._file = None

    def close(self) -> None:
        """Finish the bag; it is complete only after this."""
        if self._file is not None:
            self._file.close()
        if self._folder is not None:
            self._folder.close()
        self._file = self._folder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def topic_description(msgtype: str, latched: bool) -> tuple[str, str]:
    """Return the message definition and the offered QoS profiles (YAML) of a topic for an MCAP channel."""
    definition, _ = typestore().generate_msgdef(msgtype, ros_version=2)
    profile = dump_qos_v9([qos_profile(latched=latched)])[0]
    flow = ", ".join(f"{key}: {_yaml(value)}" for key, value in dict(profile).items())
    return definition, f"[{{{flow}}}]"


def _yaml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Topic:
    """What a bag holds of one topic."""

    msgtype: str
    count: int
    latched: bool


class BagReader:
    """Read a rosbag2 folder or a single ``.mcap`` or ``.db3`` (SQLite) file, as far as it is readable.

    Damage (a recording that was cut off, a broken chunk) is no reason to lose what came before it: `messages`
    ends there and `damage` says what was found. Call `raise_if_damaged` once the result is out.

    Attributes:
        topics: by name; of a damaged bag only those before the damage.
        start_ns, end_ns: first and last log time (0, 0 for an empty bag).
        damage: what is wrong with the file, or None.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise InputError(describe("bag", expected=BAG, found=self.path))
        self.damage: str | None = None
        self._salvage = False
        # What stands in a write-ahead log is not seen by the reader, and would be missed in silence.
        log = next(filter(None, map(unmerged, parts(self.path))), None)
        if log is not None:
            left = InputError(describe(log.name, expected="merged by its recorder", found="left behind"))
            self._open_damaged(left)
            return
        try:
            with Reader(self.path) as reader:
                self.topics = {
                    connection.topic: Topic(connection.msgtype, connection.msgcount, _is_latched(connection))
                    for connection in reader.connections
                }
                self.start_ns = reader.start_time if reader.message_count else 0
                self.end_ns = reader.end_time - 1 if reader.message_count else 0
        except Exception as error:  # damaged indexes make the parsers raise anything
            self._open_damaged(error)

    def _open_damaged(self, error: Exception) -> None:
        if not parts(self.path):
            raise InputError(describe(f"bag {self.path}", expected=BAG, found=error)) from error
        self._salvage = True
        counts: dict[str, tuple[str, int]] = {}
        times: list[int] = []
        for message in self._scan():
            counts[message.topic] = (message.msgtype, counts.get(message.topic, ("", 0))[1] + 1)
            times.append(message.log_time_ns)
        self.damage = self.damage or str(error)
        self.topics = {
            topic: Topic(msgtype, count, topic in LATCHED_TOPICS)
            for topic, (msgtype, count) in counts.items()
        }
        self.start_ns, self.end_ns = (min(times), max(times)) if times else (0, 0)

    def messages(
        self,
        topics: Collection[str] | None = None,
        *,
        start_ns: int | None = None,
        stop_ns: int | None = None,
    ) -> Iterator[BagMessage]:
        """Yield messages of ``topics`` (None: all) with start_ns <= log time < stop_ns, by log time."""
        if self._salvage:
            yield from (
                message
                for message in self._scan()
                if (topics is None or message.topic in topics)
                and (start_ns is None or message.log_time_ns >= start_ns)
                and (stop_ns is None or message.log_time_ns < stop_ns)
            )
            return
        with Reader(self.path) as reader:
            wanted = [item for item in reader.connections if topics is None or item.topic in topics]
            if not wanted:
                return
            try:
                for connection, time_ns, raw in reader.messages(wanted, start_ns, stop_ns):
                    yield BagMessage(connection.topic, connection.msgtype, time_ns, bytes(raw))
            except Exception as error:  # the decompressors raise their own types on damaged bytes
                self.damage = str(error) or type(error).__name__

    def raise_if_damaged(self) -> None:
        """Raise InputError if the bag turned out to be damaged."""
        if self.damage:
            expected = "a complete bag"
            raise InputError(describe(f"bag {self.path}", expected=expected, found=self.damage))

    def _scan(self) -> Iterator[BagMessage]:
        for part in parts(self.path):
            try:
                for item in read_part(part):
                    yield BagMessage(*item)
            except DamageError as error:
                self.damage = str(error)


def _is_latched(connection: Connection) -> bool:
    profiles: list[Qos] = getattr(connection.ext, "offered_qos_profiles", [])
    return any(profile.durability == QosDurability.TRANSIENT_LOCAL for profile in profiles)
