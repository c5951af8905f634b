# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""How many of its inputs each node answered, by which outputs, and how long that took.

The stamp of an output is that of the sensor message that caused it, so that cause and effect find each other
in a recording. Latency is wall time: from publishing the cause until the output arrived.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kestrel.data.messages import Source
from kestrel.eval.recording import EVENT, OUTPUT, TRUTH
from kestrel.types import Float64Array

Times = Mapping[str, Mapping[Source, int]]
"""Log times in nanoseconds by topic and message."""


@dataclass(frozen=True)
class OutputShare:
    """How many of the messages that ask for an output it has answered. cause: their topic."""

    cause: str
    asked: int
    answered: int


@dataclass(frozen=True)
class NodeTiming:
    """What one node made of its inputs.

    inputs: topics that caused its outputs. sent: how many messages. answered: how many of them by all outputs
    that they ask for. latency_ms: one per message with an answer, until the last one was there. outputs: by
    name below ``~/output/``. Of a node that never answered ``sent`` is what it says that it has received, and
    nothing is known of inputs and outputs.
    """

    inputs: tuple[str, ...]
    sent: int
    answered: int
    latency_ms: Float64Array
    outputs: Mapping[str, OutputShare]

    @property
    def lost(self) -> int:
        """Messages that not all outputs answered."""
        return self.sent - self.answered

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the latency; NaN if nothing was answered."""
        return float(np.percentile(self.latency_ms, percent)) if len(self.latency_ms) else float("nan")

    def missing(self, node: str) -> list[str]:
        """Return what was not answered in full, a line for all outputs that lack as many."""
        if not self.outputs:
            return [f"{node}: asked {self.sent}, answered 0"]
        lacking: dict[OutputShare, list[str]] = defaultdict(list)
        for name, share in self.outputs.items():
            if share.answered < share.asked:
                lacking[share].append(name)
        return [
            f"{node} ({', '.join(names)}): asked {share.asked} by {share.cause}, answered {share.answered}"
            for share, names in lacking.items()
        ]


def node_timings(
    sent: Times, received: Times, heard: Mapping[str, Mapping[str, int]] | None = None
) -> dict[str, NodeTiming]:
    """Return the timing of every node that was asked anything, by its full name.

    Args:
        sent: when each sensor message was published.
        received: when each output arrived; topics are ``<node>/output/<name>``. One that never came, but is
            here, counts where its node has answered otherwise.
        heard: see kestrel.eval.recording.Heard.messages; by it nodes are known that never answered.
    """
    causes = _causes(sent, received)
    latencies = _latencies_ms(sent, received, causes)
    causes |= _causes_of_silent(sent, received, causes)
    result = {}
    for node in sorted({_node(topic) for topic in causes}):
        own = {topic: cause for topic, cause in causes.items() if _node(topic) == node}
        inputs = tuple(sorted(set(own.values())))
        shares, in_full = _shares(own, sent, received)
        values = [value for cause in inputs for value in latencies.get((node, cause), {}).values()]
        asked = sum(len(_stamps(sent[cause])) for cause in inputs)
        result[node] = NodeTiming(inputs, asked, in_full, np.array(values), shares)
    for node, count in _asked_in_vain(heard or {}).items():
        result.setdefault(node, NodeTiming((), count, 0, np.zeros(0), {}))
    return result


def _shares(own: Mapping[str, str], sent: Times, received: Times) -> tuple[dict[str, OutputShare], int]:
    """Return what each output of a node answered, and how many messages all did that they ask for."""
    shares: dict[str, OutputShare] = {}
    in_full: dict[str, set[int]] = {}
    for topic, cause in sorted(own.items()):
        asked = _stamps(sent[cause])
        answered = asked & _stamps(received[topic])
        name = topic.removeprefix(f"{_node(topic)}/output/")
        shares[name] = OutputShare(cause, len(asked), len(answered))
        in_full[cause] = in_full.get(cause, asked) & answered
    return shares, sum(map(len, in_full.values()))


def _asked_in_vain(heard: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return how many messages nodes were to answer: sweeps, or pictures of those that take no sweeps."""
    asked = {}
    for node, inputs in heard.items():
        clouds = [count for name, count in inputs.items() if name.split("/")[-1] == "points"]
        if count := sum(clouds or inputs.values()):
            asked[node] = count
    return asked


def latencies_ms(sent: Times, received: Times) -> dict[tuple[str, str], dict[int, float]]:
    """Return the latency of every answered message, by (node, topic of the cause) and stamp."""
    return _latencies_ms(sent, received, _causes(sent, received))


def _latencies_ms(
    sent: Times, received: Times, causes: Mapping[str, str]
) -> dict[tuple[str, str], dict[int, float]]:
    done: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    for topic, cause in causes.items():
        asked = _stamps(sent[cause])
        answers = done[_node(topic), cause]
        for source, time_ns in received[topic].items():
            if source.stamp_ns in asked:
                answers[source.stamp_ns] = max(time_ns, answers.get(source.stamp_ns, 0))
    return {
        (node, cause): {
            source.stamp_ns: (answers[source.stamp_ns] - published) / 1e6
            for source, published in sent[cause].items()
            if source.stamp_ns in answers
        }
        for (node, cause), answers in done.items()
    }


def _stamps(times: Mapping[Source, int]) -> set[int]:
    return {source.stamp_ns for source in times}


def _node(topic: str) -> str:
    return topic.rpartition("/output/")[0]


def _causes(sent: Times, received: Times) -> dict[str, str]:
    """Return the cause of every output that has one."""
    outputs = {topic: times for topic, times in received.items() if OUTPUT.fullmatch(topic)}
    found = {topic: cause_of(topic, times, sent) for topic, times in outputs.items()}
    return {topic: cause for topic, cause in found.items() if cause is not None}


def _causes_of_silent(sent: Times, received: Times, known: Mapping[str, str]) -> dict[str, str]:
    """Return what asked for the outputs that never came, of nodes that answered otherwise.

    That is what asks for most of the others; for what is about one camera its pictures, if there are any.
    """
    found = {}
    for topic, times in received.items():
        others = Counter(cause for other, cause in known.items() if _node(other) == _node(topic))
        if times or not others or not OUTPUT.fullmatch(topic):
            continue
        event = EVENT.fullmatch(topic)
        asking = [cause for cause, _ in others.most_common(1)]
        if event is not None:
            asking = [name for name in sent if event["name"] in name.split("/")]
        if asking:
            found[topic] = asking[0]
    return found


def cause_of(topic: str, times: Mapping[Source, int], sent: Times) -> str | None:
    """Return the topic whose messages caused an output: the one with most stamps in common.

    What was sent to a node alone (``<node>/input/...``) caused its outputs, not those of others. Where
    sensors share their stamps, the one whose name is in the output's (a camera) or frame is meant, then a
    cloud before an image.
    """
    stamps = {source.stamp_ns for source in times}
    frames = {source.frame_id for source in times}
    output = OUTPUT.fullmatch(topic)
    own = f"{output['node']}/input/" if output is not None else None

    def merit(candidate: str) -> tuple[bool, int, int, int, bool]:
        common = sum(source.stamp_ns in stamps for source in sent[candidate])
        addressed = common > 0 and own is not None and candidate.startswith(own)
        named = len(set(candidate.split("/")) & set(topic.split("/")[3:]) - {"points", "image"})
        framed = sum(source.frame_id in frames for source in sent[candidate])
        return addressed, common, named, framed, candidate.endswith("points")

    candidates = [
        name
        for name in sent
        if not name.startswith(TRUTH)
        and ("/input/" not in name or (own is not None and name.startswith(own)))
    ]
    best = max(candidates, key=merit, default=None)
    return best if best is not None and merit(best)[1] > 0 else None


def replay_rate(sent: Times) -> float | None:
    """Return the seconds of sensor time per second of wall time; None for less than two messages."""
    topic = max(sent, key=lambda name: len(sent[name]), default=None)
    if topic is None or len(sent[topic]) < 2:
        return None
    stamps = sorted((source.stamp_ns, time_ns) for source, time_ns in sent[topic].items())
    (first_ns, began_ns), (last_ns, ended_ns) = stamps[0], stamps[-1]
    return (last_ns - first_ns) / (ended_ns - began_ns) if ended_ns > began_ns else None
