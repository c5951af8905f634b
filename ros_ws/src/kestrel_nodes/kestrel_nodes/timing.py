# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""How long things take, and whether the clock of the data is the clock of the node."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from rclpy.clock import JumpThreshold, TimeJump
from rclpy.duration import Duration
from std_msgs.msg import Float64

from kestrel_nodes.health import Level
from kestrel_nodes.stamps import NANOSECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from kestrel_nodes.ports import Output
    from kestrel_nodes.working import WorkingNode

LATE_UNTIL_ERROR_S = 1.0
NO_CLOCK_S = 3.0
SINCE_START_S = 365 * 86400
"""A stamp below this is not of the time of day since 1970."""
PAUSED_S = 0.6
"""Longer than the slowest /clock in use (10 Hz at rate 0.25) pauses between two messages."""


class Start(NamedTuple):
    """When work began (time.monotonic()), and how often the clock had jumped by then."""

    at: float
    jumps: int


class Timing:
    """Publishes the debug timing topics and judges the latency."""

    def __init__(self, node: WorkingNode[Any]) -> None:
        self._node = node
        self._outputs: dict[str, Output] = {}
        self._last_done: float | None = None
        self._late_since: float | None = None
        self._jumps = 0

    def start(self) -> None:
        """Create the topics ``~/debug/{processing_time,pipeline_latency,cyclic_time}_ms``."""
        for name in ("processing_time_ms", "pipeline_latency_ms", "cyclic_time_ms"):
            self._outputs[name] = self._node.add_debug(name, Float64)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The timing topics."""
        return tuple(self._outputs.values())

    def restart(self) -> None:
        """Forget the previous output, which was before the node paused."""
        self._last_done = self._late_since = None

    def clock_jumped(self) -> None:
        """Note that the clock was set back."""
        self._jumps += 1

    def begin(self) -> Start:
        """Note that work begins; the answer is for `done`."""
        return Start(time.monotonic(), self._jumps)

    def done(self, start: Start, stamp_ns: int) -> None:
        """Note that work on data of ``stamp_ns``, which began with ``start``, is published."""
        now = time.monotonic()
        latency_ms = (self._node.get_clock().now().nanoseconds - stamp_ns) / 1e6
        self._report("processing_time_ms", (now - start.at) * 1e3)
        if self._last_done is not None:
            self._report("cyclic_time_ms", (now - self._last_done) * 1e3)
        self._last_done = now
        if start.jumps != self._jumps:  # the stamp is of the time before, the clock of the time after
            return
        concern = self._node.health["latency"]
        tolerance_s = self._node.params.clock_tolerance_s
        if abs(latency_ms) > tolerance_s * 1e3:
            concern.error("clock", self._another_clock(stamp_ns, latency_ms / 1e3))
            return
        concern.clear("clock")
        self._report("pipeline_latency_ms", latency_ms)
        self._judge(latency_ms, now)

    def _another_clock(self, stamp_ns: int, behind_s: float) -> str:
        """Return what is said of stamps that are so far behind the node's clock (ahead: negative)."""
        if stamp_ns < SINCE_START_S * NANOSECONDS:
            cause = "the sensor counts from its own start"
        elif self._node.get_parameter("use_sim_time").value:
            cause = "use_sim_time is set, but these stamps are not of the time on /clock"
        elif behind_s > 0:
            cause = "a bag played without its clock and use_sim_time, or a sensor whose clock is not set"
        else:
            cause = "a clock that is not set, of the sensor or of this machine"
        way = "behind" if behind_s > 0 else "ahead of"
        return f"clock domain: stamps are {abs(behind_s):.0f} s {way} the node's clock: {cause}"

    def _judge(self, latency_ms: float, now: float) -> None:
        limit = self._node.params.latency_warn_ms
        concern = self._node.health["latency"]
        if latency_ms <= limit:
            self._late_since = None
            concern.clear("latency")
            return
        self._late_since = now if self._late_since is None else self._late_since
        level = Level.ERROR if now - self._late_since > LATE_UNTIL_ERROR_S else Level.WARN
        concern.count("late")
        concern.check("latency", f"latency {latency_ms:.0f} ms, limit {limit:.0f} ms", level=level)

    def _report(self, name: str, value: float) -> None:
        self._node.health["latency"].set(name, f"{value:.1f}")
        output = self._outputs.get(name)
        if output is not None and output.wanted:
            output.publish(Float64(data=value))


class ClockWatch:
    """Watches the node's clock against the steady one: missing, paused or jumping /clock."""

    def __init__(self, node: WorkingNode[Any]) -> None:
        self._node = node
        self._since = time.monotonic()
        self._last_ns = -1
        self._last_change = self._since
        self._handle: object | None = None

    def start(self, jumped: Callable[[float], None]) -> None:
        """Begin to watch; ``jumped(seconds)`` is called when the clock was set back."""
        limit = Duration(seconds=-max(self._node.params.jump_back_limit_s, 1e-9))

        def after_jump(jump: TimeJump) -> None:
            if jump.delta.nanoseconds < 0:
                jumped(-jump.delta.nanoseconds / 1e9)

        self._handle = self._node.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=limit, on_clock_change=False),
            post_callback=after_jump,
        )

    def stop(self) -> None:
        """Stop watching."""
        if self._handle is not None:
            self._handle.unregister()  # type: ignore[attr-defined]
            self._handle = None

    @property
    def simulated(self) -> bool:
        """Whether the node's clock follows /clock."""
        return bool(self._node.get_parameter("use_sim_time").value)

    def check(self) -> bool:
        """Report a missing /clock; return whether simulated time stands still."""
        now, ros_ns = time.monotonic(), self._node.get_clock().now().nanoseconds
        if ros_ns != self._last_ns:
            self._last_ns, self._last_change = ros_ns, now
        concern = self._node.health["sync"]
        missing = self.simulated and ros_ns == 0 and now - self._since > NO_CLOCK_S
        text = (
            "no /clock, but use_sim_time is set: start the bag with a clock or unset it" if missing else None
        )
        concern.check("clock", text, level=Level.ERROR)
        paused = self.simulated and now - self._last_change > PAUSED_S
        concern.set("clock", "paused" if paused else "simulated" if self.simulated else "system")
        return paused
