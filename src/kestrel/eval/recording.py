# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What a recording holds: inputs and when they were sent, outputs and when they arrived, truth."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from kestrel.classes import DETECTION_CLASSES, IGNORE, MAP_LAYERS, POINT_CLASSES
from kestrel.data.bag import BagMessage, BagReader
from kestrel.data.cloud_layout import cloud_fields
from kestrel.data.messages import Source, best_class, has_source, source_of
from kestrel.data.nuscenes_samples import SAMPLES_TOPIC, Sample, samples_from_message
from kestrel.data.perception_messages import boxes_from_message, map_from_messages
from kestrel.errors import InputError, describe
from kestrel.types import BevMap, Boxes3D, UInt8Array

BASE_FRAME: Final = "base_link"
OUTPUT: Final = re.compile(r"(?P<node>/.+)/output/(?P<name>.+)")
EVENT: Final = re.compile(r"/.+/output/(?P<name>[^/]+)/event")
"""What goes on in front of one camera; ``name`` is the camera's."""
TRUTH: Final = "/truth/"
DIAGNOSTICS: Final = "/diagnostics"
DIAGNOSTIC_ARRAY: Final = "diagnostic_msgs/msg/DiagnosticArray"
INPUT_STATUS: Final = re.compile(r".+: input/(?P<name>.+)")
SENSOR_TYPES: Final = (
    "sensor_msgs/msg/PointCloud2",
    "sensor_msgs/msg/Image",
    "sensor_msgs/msg/CompressedImage",
)


@dataclass
class Answers:
    """The same things from the truth or from the nodes, by stamp; events by the picture that shows them.

    points: (N,) index into POINT_CLASSES or IGNORE per point of the sweep. event: name of the class.
    lidar_maps: the truth of the maps on the grid of the released networks, about the LiDAR of nuScenes.
    """

    objects: dict[int, Boxes3D] = field(default_factory=dict)
    points: dict[int, UInt8Array] = field(default_factory=dict)
    maps: dict[int, BevMap] = field(default_factory=dict)
    lidar_maps: dict[int, BevMap] = field(default_factory=dict)
    events: dict[Source, str] = field(default_factory=dict)


@dataclass
class Traffic:
    """When sensor messages were sent and outputs of nodes arrived: log times by topic and message."""

    sent: dict[str, dict[Source, int]] = field(default_factory=lambda: defaultdict(dict))
    received: dict[str, dict[Source, int]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, topic: str, msgtype: str, raw: bytes, log_time_ns: int) -> None:
        """Note one message; truth, and what is neither sent by a sensor nor by a node, is left out."""
        if topic.startswith(TRUTH):
            return
        output = OUTPUT.fullmatch(topic) is not None
        if not output and msgtype not in SENSOR_TYPES:
            return
        source = source_of(msgtype, raw)
        if source is not None:
            (self.received if output else self.sent)[topic].setdefault(source, log_time_ns)


class Heard:
    """What nodes say in /diagnostics of the inputs that they have to answer."""

    def __init__(self) -> None:
        self._asked: dict[str, Counter[str]] = defaultdict(Counter)
        self._answering: set[str] = set()
        self._last: dict[tuple[str, str], Counter[str]] = {}

    @property
    def messages(self) -> dict[str, dict[str, int]]:
        """How many came while the node was listened to, and while somebody wanted what would come of them.

        By full name of the node and name of the input. What a node has answered all the same was not to be
        recorded: such nodes are left out.
        """
        return {node: dict(asked) for node, asked in self._asked.items() if node not in self._answering}

    def add(self, diagnostics: Any) -> None:
        """Take one DiagnosticArray."""
        for status in diagnostics.status:
            found = INPUT_STATUS.fullmatch(status.name)
            values = {pair.key: pair.value for pair in status.values}
            if found is None or "answered" not in values:  # transforms and CameraInfo are not answered
                continue
            node, name = status.hardware_id, found["name"]
            counted = Counter({key: int(values.get(key, 0)) for key in ("received", "unwanted", "answered")})
            last = self._last.get((node, name), counted)
            if counted["received"] < last["received"]:  # the node began anew
                last = Counter()
            self._last[node, name] = counted
            since = {key: counted[key] - last[key] for key in counted}
            self._asked[node][name] += since["received"] - since["unwanted"]
            if since["answered"] > 0:
                self._answering.add(node)


@dataclass
class Recording:
    """One recording, read completely.

    sent: log time of every sensor message, by topic. received: log time of every output, by topic, also of
    those that never came. truth, predicted: what there is to compare. damage: of the file, or None. samples:
    of nuScenes, by stamp. heard: see Heard.messages.
    """

    path: Path
    sent: dict[str, dict[Source, int]]
    received: dict[str, dict[Source, int]]
    truth: Answers
    predicted: Answers
    damage: str | None
    samples: dict[int, Sample] = field(default_factory=dict)
    heard: dict[str, dict[str, int]] = field(default_factory=dict)

    def raise_if_damaged(self) -> None:
        """Raise InputError if the file was not complete."""
        if self.damage:
            expected = "a complete recording"
            raise InputError(describe(f"recording {self.path}", expected=expected, found=self.damage))


def read_recording(path: str | Path) -> Recording:
    """Read a recording, a damaged one up to the damage.

    Raises:
        InputError: there is no such file, or a message in it is malformed.
    """
    reader = BagReader(path)
    traffic, heard = Traffic(), Heard()
    for topic, held in reader.topics.items():
        # What is latched is about no message of a sensor.
        if OUTPUT.fullmatch(topic) and has_source(held.msgtype) and not held.latched:
            traffic.received[topic] = {}
    truth, predicted = _Collector(), _Collector()
    samples: dict[int, Sample] = {}
    for message in reader.messages():
        traffic.add(message.topic, message.msgtype, message.raw, message.log_time_ns)
        output = OUTPUT.fullmatch(message.topic)
        if message.topic == SAMPLES_TOPIC:
            samples |= samples_from_message(message.decode())
        elif (message.topic, message.msgtype) == (DIAGNOSTICS, DIAGNOSTIC_ARRAY):
            heard.add(message.decode())
        elif message.topic.startswith(TRUTH):
            truth.add(message.topic.removeprefix(TRUTH), message)
        elif output is not None:
            predicted.add(output["name"], message)
    sent, received = dict(traffic.sent), dict(traffic.received)
    known = truth.finish()
    for stamp in samples.keys() & known.objects.keys():
        known.objects[stamp] = samples[stamp].with_attributes(known.objects[stamp])
    return Recording(
        Path(path),
        sent,
        received,
        known,
        predicted.finish(),
        reader.damage,
        samples,
        heard.messages,
    )


class _Collector:
    """Turns messages into Answers; names are those below /truth/ or ~/output/."""

    def __init__(self) -> None:
        self.answers = Answers()
        self._grids: dict[tuple[str, int], dict[str, Any]] = defaultdict(dict)

    def add(self, name: str, message: BagMessage) -> None:
        source = source_of(message.msgtype, message.raw)
        if source is None:
            return
        stamp = source.stamp_ns
        if name == "objects" and message.msgtype == "kestrel_msgs/msg/PerceivedObjects":
            _expect_base_frame(message.topic, source)
            self.answers.objects[stamp] = boxes_from_message(message.decode(), DETECTION_CLASSES)
        elif name == "points" and message.msgtype == "sensor_msgs/msg/PointCloud2":
            self.answers.points[stamp] = point_classes(message)
        elif name.startswith(("map/", "lidar_map/")) and message.msgtype == "nav_msgs/msg/OccupancyGrid":
            _expect_base_frame(message.topic, source)
            kind, _, layer = name.partition("/")
            self._grids[kind, stamp][layer] = message.decode()
        elif name.endswith("event") and message.msgtype == "vision_msgs/msg/Classification":
            best = best_class(message.decode())
            if best is not None:
                self.answers.events[source] = best[0]

    def finish(self) -> Answers:
        for (kind, stamp), grids in self._grids.items():
            layers: dict[str, Any] = {layer: grids[layer] for layer in MAP_LAYERS if layer in grids}
            if len(layers) == len(MAP_LAYERS):
                maps = self.answers.maps if kind == "map" else self.answers.lidar_maps
                maps[stamp] = map_from_messages(layers)
        return self.answers


def point_classes(message: BagMessage) -> UInt8Array:
    """Return the class of every point of a labelled cloud, IGNORE for a number that is none."""
    points = cloud_fields(message.decode())
    if "class_id" not in (points.dtype.names or ()):
        found = points.dtype.names
        raise InputError(describe(f"fields of {message.topic}", expected="class_id", found=found))
    classes = points["class_id"]
    known = (classes >= 0) & (classes < len(POINT_CLASSES))
    return np.where(known, classes, IGNORE).astype(np.uint8)


def _expect_base_frame(topic: str, source: Source) -> None:
    if source.frame_id != BASE_FRAME:
        raise InputError(describe(f"frame of {topic}", expected=BASE_FRAME, found=source.frame_id))
