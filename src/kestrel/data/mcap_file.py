# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""One MCAP file that stays readable up to its last chunk however its writer ends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mcap.writer import CompressionType, Writer

CHUNK_BYTES = 1 << 20


class McapFile:
    """Append CDR messages to one MCAP file with the ``ros2`` profile.

    Every finished chunk goes to the operating system at once: a killed process loses the last chunk at most.
    """

    def __init__(self, path: Path, *, compress: bool) -> None:
        self._path = path
        self._stream = path.open("xb")
        compression = CompressionType.ZSTD if compress else CompressionType.NONE
        self._writer = Writer(self._stream, chunk_size=CHUNK_BYTES, compression=compression)
        self._writer.start(profile="ros2", library="kestrel")
        self._schemas: dict[str, int] = {}
        self._channels: dict[str, int] = {}
        self._pending = 0
        self._whole_bytes = 0

    @property
    def topics(self) -> Mapping[str, int]:
        """Channel ids by topic."""
        return self._channels

    def add_topic(self, topic: str, msgtype: str, definition: str, qos: str) -> None:
        """Announce a topic before its first message.

        Args:
            topic: its name.
            msgtype: its type, for example ``sensor_msgs/msg/Imu``.
            definition: the complete text of the type and of those it uses.
            qos: offered QoS profiles, YAML.
        """
        if msgtype not in self._schemas:
            self._schemas[msgtype] = self._writer.register_schema(msgtype, "ros2msg", definition.encode())
        metadata = {"offered_qos_profiles": qos}
        self._channels[topic] = self._writer.register_channel(topic, "cdr", self._schemas[msgtype], metadata)

    def write(self, topic: str, log_time_ns: int, raw: bytes) -> None:
        """Append one message of a topic that was announced."""
        self._writer.add_message(self._channels[topic], log_time_ns, raw, log_time_ns)
        self._pending += len(raw)
        if self._pending >= CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand every finished chunk to the operating system."""
        self._stream.flush()
        self._pending, self._whole_bytes = 0, self._stream.tell()

    def cut(self) -> None:
        """Close the file after a failed write, without what did not get to the disk as a whole.

        It lacks an index, as that of a killed process does, but holds no part of a chunk.

        Raises:
            OSError: the file cannot be shortened.
        """
        with suppress(OSError):  # what is buffered finds no room
            self._stream.close()
        os.truncate(self._path, self._whole_bytes)

    def close(self) -> None:
        """Write the index and close the file."""
        self._writer.finish()  # type: ignore[no-untyped-call]
        self._stream.close()
