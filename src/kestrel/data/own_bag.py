# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A recording of any vehicle under the names that Kestrel reads: the same bytes of the same sensors."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from kestrel.data.bag import BagReader, BagWriter, Topic, typestore
from kestrel.data.recorded_sensors import CAMERA, CAMERA_TYPES, CLOUD, CLOUD_TYPE
from kestrel.data.topic_names import TopicNames, read_topic_names
from kestrel.errors import InputError, describe
from kestrel.files import appearing

SENSOR_TYPES: Final = (CLOUD_TYPE, *CAMERA_TYPES.values())
SHOWN_EVERY: Final = 100
"""After how many messages the display goes on."""


@dataclass(frozen=True)
class Renaming:
    """What becomes of the topics of a recording; lists name topics in the order of their names.

    kept: by topic, what it is called in the copy. sensors: the topics that are renamed, or have the name
    already. unknown: topics of types that Kestrel does not know. taken: topics that have the name of a sensor
    and are not it. other_types: topics that are named for a sensor, of another type than it has. absent:
    topics that are named for a sensor and are not in the recording.
    """

    kept: Mapping[str, tuple[str, ...]]
    sensors: tuple[str, ...]
    unknown: tuple[str, ...]
    taken: tuple[str, ...]
    other_types: tuple[str, ...]
    absent: tuple[str, ...]

    def say(self, topics: Mapping[str, Topic]) -> None:
        """Say on standard error what does not come along, one line for each reason."""
        told = {
            "left out, of types that Kestrel does not know": _with_types(self.unknown, topics),
            "left out, named like sensors that --topics finds elsewhere or not at all": ", ".join(self.taken),
            "named in --topics, but of other types": _with_types(self.other_types, topics),
            "named in --topics, but not recorded": ", ".join(self.absent),
        }
        for reason, names in told.items():
            if names:
                print(f"{reason}: {names}", file=sys.stderr)


def _with_types(names: Sequence[str], topics: Mapping[str, Topic]) -> str:
    return ", ".join(f"{name} ({topics[name].msgtype})" for name in names)


def renamed(topics: Mapping[str, Topic], names: TopicNames) -> Renaming:
    """Return what becomes of the topics of a recording."""
    known = typestore().fielddefs
    kept: dict[str, tuple[str, ...]] = {}
    sensors, unknown, taken, other_types = [], [], [], []
    for topic, held in sorted(topics.items()):
        asked = names.of(topic)
        fitting = tuple(name for name in asked if _type_of(name) == held.msgtype)
        if topic in names.named and len(fitting) < len(asked):
            other_types.append(topic)
        if held.msgtype not in known:
            unknown.append(topic)
        elif fitting:
            kept[topic] = fitting
            sensors.append(topic)
        elif _type_of(topic) is not None:
            taken.append(topic)
        else:
            kept[topic] = (topic,)
    absent = sorted(names.named.keys() - topics.keys())
    return Renaming(kept, tuple(sensors), tuple(unknown), tuple(taken), tuple(other_types), tuple(absent))


def _type_of(name: str) -> str | None:
    """Return the type of a sensor, by its name in recordings; None if it is none."""
    if name == CLOUD:
        return CLOUD_TYPE
    camera = CAMERA.fullmatch(name)
    return CAMERA_TYPES[camera["kind"]] if camera is not None else None


def import_bag(source: Path, topics: Path, out: Path) -> int:
    """Copy a recording under the names that Kestrel reads; return how many messages it has then.

    Bytes, log times, and what late subscribers still get stay as they are. The copy appears whole or not at
    all; what does not come along is said on standard error.

    Args:
        source: a rosbag2 folder, .mcap or .db3 file.
        topics: of the form of config/topics.yaml; its section ``fusion`` says which topics are which sensors.
        out: bag to make: a folder, or a file that ends with .mcap.

    Raises:
        ConfigError: ``topics`` cannot be used.
        InputError: ``source`` cannot be read or has none of the topics, or ``out`` exists; or ``source`` is
            damaged: what is readable of it has been copied.
    """
    names = read_topic_names(topics)
    reader = BagReader(source)
    renaming = renamed(reader.topics, names)
    if not renaming.sensors:
        reader.raise_if_damaged()
        there = [name for name, held in sorted(reader.topics.items()) if held.msgtype in SENSOR_TYPES]
        found = _with_types(there, reader.topics) or "no sensors at all"
        raise InputError(
            describe(f"sensors in {source}", expected=f"topics that {topics} names", found=found)
        )
    renaming.say(reader.topics)
    count = 0
    with (
        appearing(out, "--out") as unfinished,
        Console(stderr=True).status(f"importing {source}") as status,
        BagWriter(unfinished) as bag,
    ):
        for topic, copies in renaming.kept.items():
            for name in copies:
                bag.announce(name, reader.topics[topic].msgtype, latched=reader.topics[topic].latched)
        for message in reader.messages(list(renaming.kept)):
            for name in renaming.kept[message.topic]:
                bag.write_raw(name, message.msgtype, message.log_time_ns, message.raw)
                count += 1
            if count % SHOWN_EVERY == 0:
                status.update(f"importing {source}: {count} messages")
    reader.raise_if_damaged()
    return count
