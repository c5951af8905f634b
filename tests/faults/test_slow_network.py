# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A network that is slower than its input says so. One that keeps up does not, whatever is left unused."""

from __future__ import annotations

from kestrel_nodes.pace import REMEMBERED, TOO_OFTEN
from tests.ros.copier import INPUT, Rig
from tests.ros.fusion_rig import WARN
from tests.ros.fusion_rig import Rig as FusionRig
from tests.ros.graph import Graph, StatusView
from tests.ros.stand_ins import DrivenTime

SLOWER = "slower than this input: "
COUNTERS = {"received", "answered", "superseded", "rejected", "dropped", "unwanted"}


class Overrun:
    """Sends messages while the network is busy with an earlier one."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.at_ms = 0

    def send(self) -> None:
        received = self.rig.counted("received")
        self.at_ms += 100
        self.rig.send(self.at_ms)
        self.rig.graph.until(lambda: self.rig.counted("received") > received, "the message")

    def stall(self, waiting: int) -> None:
        """Let one message be in work until ``waiting`` more have come: two answers, the others lost."""
        gate, answered = self.rig.node.gate, self.rig.counted("answered")
        entered = gate.entered
        gate.open.clear()
        self.send()
        self.rig.graph.until(lambda: gate.entered > entered, "the message in work")
        for _ in range(waiting):
            self.send()
        gate.open.set()
        self.rig.graph.until(lambda: self.rig.counted("answered") == answered + 2, "two answers")


def says_slower(view: StatusView) -> bool:
    return any(SLOWER in text for _, text in view.history)


def test_steady_loss_is_a_warning_with_its_share_that_ends_when_it_stops(
    graph: Graph, clock: DrivenTime
) -> None:
    rig = Rig(graph)
    overrun = Overrun(rig)
    for _ in range(TOO_OFTEN):
        overrun.stall(waiting=3)
    text = SLOWER + "10 of the last 20 messages superseded; use fewer sensors, a lower rate or more threads"
    graph.await_status(INPUT, lambda view: view.level == WARN and text in view.message, "WARN")
    for _ in range(REMEMBERED):
        overrun.at_ms += 100
        rig.answer_to(overrun.at_ms)
    graph.await_status(INPUT, lambda view: view.sound, "OK once every message is answered")


def test_silent_input_is_not_too_fast(graph: Graph, clock: DrivenTime) -> None:
    overrun = Overrun(Rig(graph))
    for _ in range(TOO_OFTEN):
        overrun.stall(waiting=3)
    graph.await_status(INPUT, lambda view: SLOWER in view.message, "WARN")
    clock.now += 5.0
    graph.await_status(INPUT, lambda view: view.message == "no message for 5.0 s", "silence alone")


def test_bursts_after_a_stall_are_no_steady_loss_however_long_they_are(graph: Graph) -> None:
    rig = Rig(graph)
    overrun = Overrun(rig)
    for _ in range(TOO_OFTEN - 1):
        overrun.stall(waiting=30)
    view = graph.await_status(INPUT, lambda view: view.count("superseded") == 29 * (TOO_OFTEN - 1), "bursts")
    graph.await_status(INPUT, lambda view: view.count("answered") == 2 * (TOO_OFTEN - 1), "their answers")
    assert not says_slower(view)


def test_pictures_that_find_no_sweep_are_no_loss_and_add_up(graph: Graph) -> None:
    rig = FusionRig(graph, cameras=["front"], window_s=0.03).ready()
    pictures, sweeps = range(1000, 5000, 83), range(1000, 5000, 100)  # 12 Hz and 10 Hz
    for at_ms in sorted({*pictures, *sweeps}):
        if at_ms in pictures:
            rig.sense(at_ms, "front")
        if at_ms in sweeps:
            if at_ms > sweeps[0]:
                rig.answer(at_ms - 100)  # the network keeps up
            rig.sense(at_ms, "lidar")
    rig.answer(sweeps[-1])
    topics = {"front": "fusion: input/front/image/compressed", "lidar": "fusion: input/points"}
    sync = graph.status("fusion: sync")

    def unused(sensor: str) -> int:
        """Return how many messages of ``sensor`` took part in no frame so far, as `sync` says."""
        told = {name: value for name, value in sync.values.items() if name.startswith(f"{sensor}: ")}
        return sum(int(told[name]) for name in told if name.split(": ")[1] not in ("fused", "missing"))

    def adds_up(sensor: str, view: StatusView) -> bool:
        ended = sum(view.count(name) for name in COUNTERS - {"received"})
        return view.count("received") == ended + unused(sensor)

    for sensor, topic in topics.items():
        what = f"the sum of what became of {sensor}"
        view = graph.await_status(topic, lambda view, sensor=sensor: adds_up(sensor, view), what)
        assert not says_slower(view)
        assert (unused(sensor) > 0) == (sensor == "front"), "of a faster camera there is a picture too many"


def test_inputs_that_are_not_answered_count_what_they_received_alone(graph: Graph) -> None:
    FusionRig(graph, cameras=["front"]).ready()
    for topic in ("front/camera_info", "tf_static", "tf"):
        view = graph.await_status(f"fusion: input/{topic}", lambda view: view.updates > 1, "a status")
        assert COUNTERS & view.values.keys() == {"received"}, topic
