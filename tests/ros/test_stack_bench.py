# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of `kestrel bench stack`: what nodes say becomes an account that forgets nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

pytest.importorskip("rclpy")

from kestrel.data import messages
from kestrel.data.bag import serialize
from kestrel.data.messages import Source
from kestrel.errors import InputError, SetupError
from kestrel.eval.recording import Traffic
from kestrel_nodes.demo import NODES
from kestrel_nodes.stack_bench import (
    Account,
    Meter,
    ProcessWatch,
    Use,
    account,
    figures,
    inputs_of,
    node_processes,
)

MS = 10**6
FUSION_INPUTS = {"points": "/lidar/points", "front/image": "/camera/front/image"}


def traffic() -> Traffic:
    """Return ten sweeps and pictures, 100 ms apart; fusion answers after 50 ms, but two sweeps not at all."""
    result = Traffic()
    for number in range(10):
        stamp = number * 100 * MS
        result.sent["/lidar/points"][Source(stamp, "lidar")] = stamp
        result.sent["/camera/front/image"][Source(stamp + MS, "front")] = stamp
        if number not in (3, 4):
            answer = Source(stamp, "base_link")
            result.received["/fusion/output/objects"][answer] = stamp + 50 * MS
            result.received["/video/output/front/event"][Source(stamp + MS, "front")] = stamp + 20 * MS
    return result


SAID = {
    "fusion: sync": {"lidar: fused": "8", "front: another image was nearer": "2", "front: waiting": "1"},
    "fusion: input/points": {"received": "10", "answered": "8", "superseded": "2", "invalid_points": "700"},
    "fusion: input/front/image": {"received": "10", "answered": "7", "rejected": "0"},
}


def test_what_a_node_answers_or_names_is_not_lost_and_the_rest_is() -> None:
    sent = {"/lidar/points": 10, "/camera/front/image": 10}
    assert account("fusion", FUSION_INPUTS, sent, SAID) == Account(20, answered=15, counted=4, waiting=1)
    assert account("fusion", FUSION_INPUTS, sent, SAID).lost == 0
    assert account("fusion", FUSION_INPUTS, {"/lidar/points": 13, "/camera/front/image": 10}, SAID).lost == 3
    assert account("fusion", FUSION_INPUTS, sent, {}).lost == 20  # a node that says nothing


def test_inputs_to_which_nothing_was_sent_are_left_out() -> None:
    assert account("fusion", FUSION_INPUTS, {"/lidar/points": 10}, SAID) == Account(10, 8, 2, 0)


def test_figures_are_per_second_of_the_replay_and_per_fused_frame() -> None:
    accounts = {"fusion": Account(20, 15, 4, 1), "video": Account(10, 8, 0, 0)}
    uses = {"fusion": Use(2.0, 4.0, 300.0), "video": Use(0.5, 1.0, 200.0), "replay": Use(0.5, 1.0, 100.0)}
    found = figures(traffic(), accounts, uses)
    assert found["fused frames"].value == pytest.approx(8 / 0.95)  # of ten, in 950 ms
    assert found["all: processor"].value == pytest.approx(3.0)
    assert found["fusion: processor"].value == pytest.approx(2.0)
    assert found["fusion: processor per fused frame"].value == pytest.approx(500)
    assert (found["video: memory"].value, found["all: memory"].value) == (200, 600)
    assert found["fusion: answered"].value == pytest.approx(0.75)
    assert found["fusion: latency, p50"].value == pytest.approx(50)
    assert found["video: lost silently"].value == 2


def test_a_node_that_answers_nothing_is_named() -> None:
    with pytest.raises(InputError, match=r"none of \['augment'\]"):
        figures(traffic(), {"fusion": Account(1, 1, 0, 0), "augment": Account(1, 0, 0, 0)}, {})


def test_the_last_word_of_a_node_counts() -> None:
    meter = Meter()
    for count in ("1", "2"):
        pair = messages.new("diagnostic_msgs/msg/KeyValue", key="answered", value=count)
        status = messages.new(
            "diagnostic_msgs/msg/DiagnosticStatus",
            level=0, name="video: input/x", message="OK", hardware_id="", values=[pair],
        )  # fmt: skip
        array = messages.new(
            "diagnostic_msgs/msg/DiagnosticArray", header=messages.header(1, ""), status=[status]
        )
        meter.write("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", 0, serialize(array))
    assert meter.said == {"video: input/x": {"answered": "2"}}
    assert meter.count == 2


def test_inputs_are_those_of_the_rig() -> None:
    assert inputs_of("segmentation")["points"] == "/lidar/points"
    assert inputs_of("fusion")["back/image/compressed"] == "/camera/back/image/compressed"
    assert inputs_of("augment")["labels"] == "/augment/input/labels"


@contextmanager
def children(names: Sequence[str]) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Run processes below this one that are called like nodes and end with their input."""
    waiting = "import sys; sys.stdin.read()"
    running = {
        name: subprocess.Popen([sys.executable, "-c", waiting, "kestrel_nodes", name], stdin=subprocess.PIPE)
        for name in names
    }
    try:
        yield running
    finally:
        for process in running.values():
            process.communicate(timeout=10)


def test_a_node_without_process_is_named() -> None:
    with (
        children(NODES[:-1]),
        pytest.raises(SetupError, match=r"augment.*found \['fusion', 'segmentation', 'video'\]"),
    ):
        node_processes(os.getpid())


def test_what_a_process_takes_is_watched_until_it_ends() -> None:
    with children(NODES) as running:
        watch = ProcessWatch(os.getpid())
        watch.progress(0.0, 1.0, 1.0)
        uses = watch.read()
        assert set(uses) == {*NODES, "replay"}
        assert 0 < uses["fusion"].memory_mib < uses["replay"].memory_mib
        running["fusion"].communicate(timeout=10)
        with pytest.raises(SetupError, match="all alive until the end"):
            watch.read()
