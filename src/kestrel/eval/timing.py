# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""How many of its inputs each node answered, and how long that took.

The stamp of an output is that of the sensor message that caused it, so that cause and effect find each other
in a recording. Latency is wall time: from publishing the cause until the output arrived.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kestrel.data.messages import Source
from kestrel.eval.recording import OUTPUT, TRUTH
from kestrel.types import Float64Array

Times = Mapping[str, Mapping[Source, int]]
"""Log times in nanoseconds by topic and message."""


@dataclass(frozen=True)
class NodeTiming:
    """What one node made of its inputs.

    inputs: topics that caused its outputs. sent, answered: how many messages. latency_ms: one per answered
    message, until the last of its outputs was there.
    """

    inputs: tuple[str, ...]
    sent: int
    answered: int
    latency_ms: Float64Array

    @property
    def lost(self) -> int:
        """Messages without an answer."""
        return self.sent - self.answered

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the latency; NaN if nothing was answered."""
        return float(np.percentile(self.latency_ms, percent)) if len(self.latency_ms) else float("nan")


def node_timings(sent: Times, received: Times) -> dict[str, NodeTiming]:
    """Return the timing of every node that answered anything, by its full name.

    Args:
        sent: when each sensor message was published.
        received: when each output arrived; topics are ``<node>/output/<name>``.
    """
    result = {}
    parts = latencies_ms(sent, received)
    for node in sorted({name for name, _ in parts}):
        own = {cause: values for (name, cause), values in parts.items() if name == node}
        latency = np.array([value for values in own.values() for value in values.values()])
        total = sum(len(sent[cause]) for cause in own)
        result[node] = NodeTiming(tuple(sorted(own)), total, len(latency), latency)
    return result


def latencies_ms(sent: Times, received: Times) -> dict[tuple[str, str], dict[int, float]]:
    """Return the latency of every answered message, by (node, topic of the cause) and stamp."""
    done: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    for topic, times in received.items():
        found = OUTPUT.fullmatch(topic)
        cause = cause_of(topic, times, sent)
        if found is None or cause is None:
            continue
        causes = {source.stamp_ns for source in sent[cause]}
        answers = done[found["node"], cause]
        for source, time_ns in times.items():
            if source.stamp_ns in causes:
                answers[source.stamp_ns] = max(time_ns, answers.get(source.stamp_ns, 0))
    return {
        (node, cause): {
            source.stamp_ns: (answers[source.stamp_ns] - published) / 1e6
            for source, published in sent[cause].items()
            if source.stamp_ns in answers
        }
        for (node, cause), answers in done.items()
    }


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
