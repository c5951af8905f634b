# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Publishes the messages of a bag with /clock, at a fixed rate or as fast as the nodes keep up."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from kestrel.data.bag import BagMessage, BagReader, serialize
from kestrel.data.messages import source_of
from kestrel.data.sensor_messages import label_image
from kestrel.errors import InputError, describe
from kestrel_nodes.replay.listener import is_output, message_class
from kestrel_nodes.replay.pacing import Answers, Pace

if TYPE_CHECKING:
    from rclpy.node import Node

TRUTH: Final = "/truth/"
CLOCK_PERIOD_OF_BAG_NS: Final = 20_000_000
"""Time of the bag from one /clock to the next: every node wakes up for each, so that one with each of some
hundred messages a second would cost more than some nodes do."""
CLOCK_SILENCE_S: Final = 0.1
"""The longest time of this machine without one, however slow the replay."""
DEPTH: Final = 50
LATCHED_DEPTH: Final = 100
ACKNOWLEDGE_S: Final = 5.0
ACKNOWLEDGE_PERIOD_S: Final = 0.02
LABELS: Final = "/augment/input/labels"
LABELS_HZ: Final = 2.0

Progress: TypeAlias = Callable[[float, float, float], None]
"""Called with the seconds of the bag that are done, those to do in all, and the rate so far."""


@dataclass(frozen=True)
class Selection:
    """What of a bag to replay.

    topics: None for all. start_s: from the begin of the bag. duration_s: None for the rest.
    publish_truth: publish /truth/... too; it is copied to the recording in any case.
    labels_of: camera whose true label images the augment node gets, LABELS_HZ of them a second; "" for none.
    """

    topics: frozenset[str] | None = None
    start_s: float = 0.0
    duration_s: float | None = None
    publish_truth: bool = False
    labels_of: str = ""

    def published(self, topic: str) -> bool:
        """Whether messages of this topic are published."""
        if topic.startswith(TRUTH) and not self.publish_truth:
            return False
        return topic != "/clock" and (self.topics is None or topic in self.topics)


@dataclass
class Played:
    """What was published: messages by topic, and how long it took."""

    counts: Counter[str] = field(default_factory=Counter)
    bag_s: float = 0.0
    wall_s: float = 0.0

    @property
    def rate(self) -> float:
        """Seconds of the bag per second of this machine."""
        return self.bag_s / self.wall_s if self.wall_s > 0 else 0.0


class Player:
    """Publishes raw bytes; nothing is decoded.

    Args:
        node: to publish with.
        reader: the bag.
        selection: what of it.
        answers: of the nodes; told of everything that is published.
        record: called with (topic, msgtype, raw) just before a message is published, and for the truth.
        room: waits up to so many seconds for whoever records, and returns whether there is room for more.
        stop: ends the replay.
    """

    def __init__(
        self,
        node: Node,
        reader: BagReader,
        selection: Selection,
        answers: Answers,
        record: Callable[[str, str, bytes], None],
        room: Callable[[float], bool],
        stop: threading.Event,
    ) -> None:
        from rosgraph_msgs.msg import Clock

        self.reader = reader
        self._node = node
        self._selection = selection
        self._answers = answers
        self._record = record
        self._room = room
        self._stop = stop
        self._clock_type = Clock
        self._clock = node.create_publisher(Clock, "/clock", 10)
        self._told_ns, self._told_at = -CLOCK_PERIOD_OF_BAG_NS, 0.0
        self._publishers: dict[str, Any] = {}
        self._labels_source = f"{TRUTH}camera/{selection.labels_of}/semantics"
        self._labels_ns = 0
        self.start_ns = reader.start_ns + int(selection.start_s * 1e9)
        self.stop_ns = reader.end_ns + 1
        if selection.duration_s is not None:
            self.stop_ns = min(self.stop_ns, self.start_ns + int(selection.duration_s * 1e9))
        for name, topic in sorted(reader.topics.items()):
            if selection.published(name):
                self._advertise(name, topic.msgtype, latched=topic.latched)

        if self._labels_source in reader.topics:
            self._advertise(LABELS, "sensor_msgs/msg/Image", latched=False)
        elif selection.labels_of:
            found = [name for name in reader.topics if name.startswith(f"{TRUTH}camera/")]
            raise InputError(describe("label images", expected=self._labels_source, found=found))

    @property
    def topics(self) -> set[str]:
        """Names of all topics that are published."""
        return set(self._publishers)

    def matched(self) -> bool:
        """Whether every subscriber that the graph shows is connected."""
        return all(
            publisher.get_subscription_count() >= self._node.count_subscribers(topic)
            for topic, publisher in self._publishers.items()
        )

    def leave_to_nodes(self) -> list[str]:
        """Give up outputs and diagnostics of the bag that a node publishes itself; return their names."""
        left = [
            topic
            for topic in self._publishers
            if is_output(topic) and self._node.count_publishers(topic) > 1  # one is ours
        ]
        for topic in left:
            self._node.destroy_publisher(self._publishers.pop(topic))
        return left

    def play(self, rate: float, *, lockstep: bool, played: Played, progress: Progress) -> None:
        """Publish once from start to end.

        Args:
            rate: seconds of the bag per second.
            lockstep: before a message that a node would have to drop because it is still busy, wait for it.
            played: is added to.
            progress: see Progress.
        """
        self._labels_ns = 0
        done_before, wall_before = played.bag_s, played.wall_s
        messages = self._messages()
        first = next(messages, None)  # opening the bag takes a moment that must not delay what follows
        begin = time.monotonic()
        pace = Pace(rate, self.start_ns)
        for message in itertools.chain([] if first is None else [first], messages):
            if not self._wait_until(message.log_time_ns, pace):
                break
            if self._waited_for_room():
                pace.resume(message.log_time_ns)
            if not self._published(message.topic):
                self._record(message.topic, message.msgtype, message.raw)
            for outgoing in self._outgoing(message):
                if lockstep and self._answers.wait(outgoing.topic, self._stop.is_set):
                    pace.resume(message.log_time_ns)
                self._publish(outgoing, max(message.log_time_ns, self.start_ns), played)
            played.bag_s = done_before + max(message.log_time_ns - self.start_ns, 0) / 1e9
            played.wall_s = wall_before + time.monotonic() - begin
            progress(played.bag_s, done_before + (self.stop_ns - self.start_ns) / 1e9, played.rate)
        played.wall_s = wall_before + time.monotonic() - begin

    def finish(self) -> bool:
        """Wait until reliable subscribers have everything; return whether they have."""
        from rclpy.duration import Duration

        # Asked again and again: rclpy waits with the interpreter locked, and subscribers may take seconds to
        # acknowledge, in which no answer would be heard and recorded.
        at_once = Duration(seconds=0)
        waiting = list(self._publishers.values())
        deadline = time.monotonic() + ACKNOWLEDGE_S
        while True:
            waiting = [publisher for publisher in waiting if not publisher.wait_for_all_acked(at_once)]
            if not waiting or time.monotonic() > deadline:
                return not waiting
            time.sleep(ACKNOWLEDGE_PERIOD_S)

    def _messages(self) -> Iterator[BagMessage]:
        """Yield what is latched from before the start, then everything from start to stop."""
        latched = {
            name for name, topic in self.reader.topics.items() if topic.latched and name in self.topics
        }
        if self.start_ns > self.reader.start_ns:
            yield from self.reader.messages(latched, stop_ns=self.start_ns)
        wanted = {name for name in self.reader.topics if name in self.topics or name.startswith(TRUTH)}
        yield from self.reader.messages(wanted, start_ns=self.start_ns, stop_ns=self.stop_ns)

    def _outgoing(self, message: BagMessage) -> Iterator[BagMessage]:
        """Yield what is published for a message of the bag: itself, and a label image made from the truth."""
        if self._published(message.topic):
            yield message
        period_ns = 1e9 / LABELS_HZ
        if message.topic == self._labels_source and message.log_time_ns >= self._labels_ns + period_ns:
            self._labels_ns = message.log_time_ns
            image = label_image(message.decode())
            yield BagMessage(LABELS, image.__msgtype__, message.log_time_ns, serialize(image))

    def _published(self, topic: str) -> bool:
        """Whether messages of this topic are wanted and can be published: their type is installed."""
        return self._selection.published(topic) and topic in self._publishers

    def _advertise(self, topic: str, msgtype: str, *, latched: bool) -> None:
        from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

        kind = message_class(msgtype)
        if kind is None:
            self._node.get_logger().warning(f"{topic}: {msgtype} is not installed, not published")
            return
        profile = QoSProfile(
            depth=LATCHED_DEPTH if latched else DEPTH,
            reliability=ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )
        self._publishers[topic] = self._node.create_publisher(kind, topic, profile)

    def _wait_until(self, bag_ns: int, pace: Pace) -> bool:
        """Keep /clock going until ``bag_ns`` is due; return False if the replay was stopped."""
        period = min(CLOCK_SILENCE_S, CLOCK_PERIOD_OF_BAG_NS / 1e9 / pace.rate)
        while not self._stop.is_set():
            left = pace.left_s(bag_ns)
            if left <= 0:
                return True
            self._stop.wait(min(left, period))
            self._tick(min(pace.bag_ns, max(bag_ns, self.start_ns)), only_when_due=True)
        return False

    def _waited_for_room(self) -> bool:
        """Wait until no more is left to be recorded than may wait; return whether that took time.

        Who receives does not wait: answers would be lost, while the bag can be played later.
        """
        waited = not self._room(0.0)
        while waited and not self._stop.is_set() and not self._room(CLOCK_SILENCE_S):
            pass
        return waited

    def _tick(self, bag_ns: int, *, only_when_due: bool) -> None:
        now = time.monotonic()
        told = 0 <= bag_ns - self._told_ns < CLOCK_PERIOD_OF_BAG_NS and now - self._told_at < CLOCK_SILENCE_S
        if told and only_when_due:
            return
        self._told_ns, self._told_at = bag_ns, now
        clock = self._clock_type()
        clock.clock.sec, clock.clock.nanosec = divmod(bag_ns, 10**9)
        self._clock.publish(clock)

    def _publish(self, message: BagMessage, bag_ns: int, played: Played) -> None:
        # Of what a node answers it says how late it was.
        self._tick(bag_ns, only_when_due=not self._answers.expected(message.topic))
        self._record(message.topic, message.msgtype, message.raw)
        source = source_of(message.msgtype, message.raw)
        if source is not None:
            self._answers.sent(message.topic, source)
        self._publishers[message.topic].publish(message.raw)
        played.counts[message.topic] += 1
