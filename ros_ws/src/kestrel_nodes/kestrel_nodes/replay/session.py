# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""One replay from first to last: wait for the nodes, publish, record, wait for the last answers, report."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kestrel.data.bag import BagReader, typestore
from kestrel.errors import InputError, SetupError, describe
from kestrel_nodes.replay.listener import Listener
from kestrel_nodes.replay.pacing import Answers
from kestrel_nodes.replay.player import Played, Player, Progress, Selection
from kestrel_nodes.replay.recorder import Recorder, Sink, WallClock

if TYPE_CHECKING:
    from rclpy.node import Node

LOOK_PERIOD_S = 0.5
SETTLE_S = 0.5
MATCH_TIMEOUT_S = 5.0
PASS_S = 0.1
"""One round of a loop takes this long at least: a bag of one message is not sent as fast as it can be."""
LAST_WORDS_S = 0.6
"""Nodes publish /diagnostics at 2 Hz: the recording ends with one that knows of all messages."""


@dataclass(frozen=True)
class Options:
    """What `kestrel replay` was asked to do.

    rate: seconds of the bag per second. lockstep: never outrun the nodes; ``rate`` is then the most.
    wait_for: names of nodes that must take an input, or topics that must have a subscriber, before it begins.
    exclude: outputs of the nodes that are neither subscribed to nor recorded.
    """

    bag: Path
    rate: float = 1.0
    lockstep: bool = False
    loop: bool = False
    record: Path | None = None
    selection: Selection = field(default_factory=Selection)
    wait_for: tuple[str, ...] = ()
    wait_timeout_s: float = 60.0
    exclude: re.Pattern[str] | None = None


@dataclass
class Outcome:
    """What came of a replay.

    answered: (answered, sent) by node. acknowledged: whether every reliable subscriber got everything.
    recorded: messages in the recording. damage: of the bag. interrupted: whether a signal ended it.
    """

    played: Played
    answered: dict[str, tuple[int, int]]
    acknowledged: bool
    damage: str | None
    recorded: int = 0
    interrupted: bool = False


def replay(
    options: Options, *, say: Callable[[str], None], progress: Progress, sink: Sink | None = None
) -> Outcome:
    """Replay a bag into the running ROS graph until its end, SIGINT or SIGTERM.

    Args:
        options: what to do.
        say: shows one line.
        progress: see player.Progress.
        sink: takes all messages where there is no file to record them in.

    Raises:
        InputError: the bag cannot be read, the recording exists already.
        SetupError: what to wait for did not appear in time.
    """
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    reader = BagReader(options.bag)
    if options.record is not None and options.record.suffix != ".mcap":
        raise InputError(describe("recording", expected="a file that ends with .mcap", found=options.record))
    recorder = sink if options.record is None else Recorder(options.record, say)
    stop, finished = threading.Event(), threading.Event()
    handlers = {
        number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("kestrel_replay")
    executor = SingleThreadedExecutor()
    executor.add_node(node)

    def spin() -> None:
        while not finished.is_set():
            executor.spin_once(timeout_sec=0.1)

    spinner = threading.Thread(target=spin, name="receiver", daemon=True)
    spinner.start()
    begun = False
    try:
        session = _Session(options, node, reader, recorder, stop, say)
        session.wait()
        begun = True
        outcome = session.run(progress)
    finally:
        finished.set()
        executor.wake()
        spinner.join()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if recorder is not None:
            recorder.close()
        if options.record is not None and not begun:
            options.record.unlink()  # or it would be in the way of the next try
    # Only now is everything written that had been received.
    outcome.recorded = 0 if recorder is None else recorder.count
    return outcome


class _Session:
    """The parts of one replay and their order."""

    def __init__(
        self,
        options: Options,
        node: Node,
        reader: BagReader,
        recorder: Sink | None,
        stop: threading.Event,
        say: Callable[[str], None],
    ) -> None:
        self.options = options
        self.node = node
        self.reader = reader
        self.stop = stop
        self.say = say
        self.answers = Answers()
        clock = WallClock()
        known = typestore().fielddefs
        left_out: set[str] = set()

        def kept(topic: str, msgtype: str) -> bool:
            if topic not in left_out and msgtype not in known:
                left_out.add(topic)
                say(f"{topic}: {msgtype} is not known, not recorded")
            return topic not in left_out

        def announce(topic: str, msgtype: str, latched: bool) -> None:
            if recorder is not None and kept(topic, msgtype):
                recorder.announce(topic, msgtype, latched=latched)

        def record(topic: str, msgtype: str, raw: bytes) -> None:
            if recorder is not None and kept(topic, msgtype):
                recorder.write(topic, msgtype, clock.now_ns(), raw)

        self.listener = Listener(node, self.answers, record, announce, options.exclude)
        room = (lambda _: True) if recorder is None else recorder.wait_for_room
        self.player = Player(node, reader, options.selection, self.answers, record, room, stop)

    def wait(self) -> None:
        """Wait for the nodes that are to be waited for, and until subscribers and publishers are matched."""
        self._wait_for_nodes()
        self._wait_for_matches()

    def run(self, progress: Progress) -> Outcome:
        """Play and wait for the last answers."""
        played = Played()
        watcher = threading.Thread(target=self._keep_looking, name="graph", daemon=True)
        watcher.start()
        try:
            self._play(played, progress)
            interrupted = self.stop.is_set()
            acknowledged = self.player.finish()
            if not self.stop.is_set():
                self.answers.wait(None, self.stop.is_set)
                self.stop.wait(LAST_WORDS_S)
        finally:
            self.stop.set()
            watcher.join()
        answered = self.answers.counts()
        return Outcome(played, answered, acknowledged, self.reader.damage, interrupted=interrupted)

    def _play(self, played: Played, progress: Progress) -> None:
        while not self.stop.is_set():
            began = time.monotonic()
            self.player.play(
                self.options.rate, lockstep=self.options.lockstep, played=played, progress=progress
            )
            if not self.options.loop:
                break
            self.stop.wait(PASS_S - (time.monotonic() - began))

    def _wait_for_nodes(self) -> None:
        """Wait until everything in ``wait_for`` is there.

        Raises:
            SetupError: it is not in time.
        """
        deadline = time.monotonic() + self.options.wait_timeout_s
        said = False
        while missing := self._missing():
            if self.stop.is_set():
                return
            if time.monotonic() > deadline:
                expected = f"ready within {self.options.wait_timeout_s:.0f} s"
                raise SetupError(describe("nodes", expected=expected, found=f"none of {missing}"))
            if not said:
                self.say(f"waiting for {', '.join(missing)}")
                said = True
            self.stop.wait(0.1)

    def _missing(self) -> list[str]:
        takers = {name.rpartition("/")[2] for name in self.listener.takers(self.player.topics)}
        return [
            name
            for name in self.options.wait_for
            if not (self.node.count_subscribers(name) if name.startswith("/") else name in takers)
        ]

    def _wait_for_matches(self) -> None:
        """Wait until subscribers and publishers have found each other and nothing new appears."""
        deadline = time.monotonic() + MATCH_TIMEOUT_S
        stable_since, heard = time.monotonic(), -1
        while time.monotonic() < deadline and not self.stop.is_set():
            found = self.listener.look(self.player.topics)
            if found != heard or not self.player.matched():
                stable_since, heard = time.monotonic(), found
            if time.monotonic() - stable_since > SETTLE_S:
                break
            self.stop.wait(0.05)
        if left := self.player.leave_to_nodes():
            self.say(f"not replayed, since nodes publish it: {', '.join(sorted(left))}")
            self.listener.look(self.player.topics)
        if not self.listener.takers(self.player.topics):
            self.say("nobody listens to the topics of this bag")

    def _keep_looking(self) -> None:
        while not self.stop.wait(LOOK_PERIOD_S):
            self.listener.look(self.player.topics)
