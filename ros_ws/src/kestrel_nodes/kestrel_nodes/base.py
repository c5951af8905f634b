# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The base of every node: life cycle, guarded callbacks, newest-wins work, diagnostics and timing topics.

A node states its parameters in a frozen dataclass, creates its inputs and outputs and loads its pipeline in
`setup`, and handles one message at a time::

    class SegmentationNode(KestrelNode[SegmentationParameters]):
        parameters_type = SegmentationParameters

        def setup(self) -> None:
            self.segmenter = PointSegmenter(self.params.weights)
            self.labelled = self.add_output("points", PointCloud2)
            self.add_input("points", PointCloud2, self.segment, qos=...)

        def segment(self, message: PointCloud2) -> None:
            ...  # worker thread; newest message only; raise KestrelError to reject it
            self.labelled.publish(answer)

Everything else (threads, errors, counters, /diagnostics, latency) is here and in no node.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.qos import QoSProfile, qos_policy_name_from_kind
from rclpy.service import Service
from rclpy.timer import Timer

from kestrel.errors import CalibrationError, KestrelError, ModelError, SetupError, describe
from kestrel.weights import Manifest
from kestrel_nodes.health import Level
from kestrel_nodes.managed import ManagedNode
from kestrel_nodes.parameters import NodeParameters
from kestrel_nodes.ports import Input, Output
from kestrel_nodes.qos import LATCHED, OUTPUT, input_qos
from kestrel_nodes.stamps import NANOSECONDS, StampGuard, Verdict, stamp_ns
from kestrel_nodes.timing import ClockWatch, Timing
from kestrel_nodes.worker import Job, Outcome, Worker

P = TypeVar("P", bound=NodeParameters)

STOP_TIMEOUT_S = 1.5
"""How long a stopping node waits for the message in work; the process exits in any case."""

BUSY_ERROR_S = 1.0


class KestrelNode(ManagedNode[P]):
    """A managed node around one pipeline.

    A subclass sets ``parameters_type`` and implements `setup`; everything it creates there with `add_input`,
    `add_output`, `add_timer` and `add_service` exists until cleanup. Subscriptions live while the node is
    active. It overrides `reset` and `reset_pipeline` if it keeps state over time.
    """

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.inputs: dict[str, Input] = {}
        self.outputs: dict[str, Output] = {}
        self.worker = Worker(name)
        self.timing = Timing(self)
        self.clock_watch = ClockWatch(self)
        self._debug_outputs: list[Output] = []
        self._subscribe: dict[str, Callable[[], None]] = {}
        self._setup_timers: list[Timer] = []
        self._setup_services: list[Service] = []

    # What a subclass implements.

    def setup(self) -> None:
        """Create inputs and outputs, load the pipeline and warm it up; any error fails configure."""
        raise NotImplementedError

    def teardown(self) -> None:
        """Free what `setup` made beyond inputs, outputs, timers and services."""

    def reset(self, cause: str, source: Input | None) -> None:
        """Time jumped back: forget state over time that belongs to receiving (executor thread).

        ``source`` is the input whose stamps jumped, or None when it was the clock.
        """

    def reset_pipeline(self, cause: str, source: Input | None) -> None:
        """Time jumped back: forget what the pipeline remembers (worker thread, before the next message)."""

    def started(self) -> None:
        """The node becomes active; called before its inputs are subscribed."""

    def stopped(self) -> None:
        """The node is no longer active; no callback runs any more."""

    # What a subclass uses.

    def add_output(self, topic: str, kind: type, *, latched: bool = False) -> Output:
        """Return the output ``~/output/<topic>``; a latched one is kept for late subscribers."""
        publisher = self.create_lifecycle_publisher(kind, f"~/output/{topic}", LATCHED if latched else OUTPUT)
        self.outputs[topic] = Output(topic, publisher, latched=latched)
        return self.outputs[topic]

    def add_debug(self, topic: str, kind: type) -> Output:
        """Return the output ``~/debug/<topic>``; it does not make the node compute anything."""
        output = Output(
            topic, self.create_lifecycle_publisher(kind, f"~/debug/{topic}", OUTPUT), latched=False
        )
        self._debug_outputs.append(output)
        return output

    def add_input(
        self,
        topic: str,
        kind: type,
        handler: Callable[[Any], None],
        *,
        qos: QoSProfile | None = None,
        in_worker: bool = True,
        required: bool = True,
        stamped: bool = True,
        single_source: bool = True,
        outputs: tuple[Output, ...] | None = None,
    ) -> Input:
        """Subscribe to ``~/input/<topic>`` while the node is active.

        Args:
            topic: name below ``~/input/``; also the name of the input's worker slot and diagnostics status.
            kind: message class.
            handler: takes a message with a usable stamp; raises KestrelError to reject it.
            qos: default `input_qos()`.
            in_worker: True: runs in the worker, newest message only, and is answered when it returns.
                False: runs at once in the executor thread (must be quick; collects for `submit`), and the
                node itself calls ``input.answered()``, ``input.reject(error)`` and so on.
            required: whether silence of this input is a fault.
            stamped: False for messages whose header is not used (/tf).
            single_source: whether a second publisher of the topic is a fault.
            outputs: what comes of this input; when nobody subscribes to any of them (default: any output
                that is not latched), the handler is not called.
        """
        guard = StampGuard(int(self.params.jump_back_limit_s * NANOSECONDS))
        name = topic.lstrip("/")
        port = Input(
            name, self.health[f"input/{name}"], guard, required=required, single_source=single_source
        )
        port.outputs = () if outputs is None else outputs
        receive = self._receive_for_worker if in_worker else self._receive_now
        callback = partial(receive, port, handler) if stamped else partial(self._receive_bare, port, handler)
        profile = input_qos() if qos is None else qos

        def subscribe() -> None:
            port.restart()
            port.subscription = self.create_subscription(
                kind,
                topic if topic.startswith("/") else f"~/input/{topic}",
                self.guard.wrap(callback, port.concern),
                profile,
                event_callbacks=SubscriptionEventCallbacks(
                    incompatible_qos=partial(self._incompatible_qos, port)
                ),
            )

        self.inputs[topic] = port
        self._subscribe[topic] = subscribe
        return port

    def add_timer(self, period_s: float, callback: Callable[[], None], *, steady: bool = True) -> Timer:
        """Call ``callback`` every ``period_s`` (guarded), by default on the steady clock, until cleanup."""
        clock = self.steady_clock if steady else self.get_clock()
        wrapped = self.guard.wrap(callback, self.health["output"])
        timer = self.create_timer(period_s, wrapped, clock=clock)
        self._setup_timers.append(timer)
        return timer

    def add_service(self, kind: type, topic: str, callback: Callable[[Any, Any], Any]) -> Service:
        """Offer ``~/<topic>`` until cleanup; ``callback(request, response)`` returns the response.

        A coroutine function may wait (`in_worker`) while everything else goes on; requests come one by one.
        """
        wrapped = self.guard.wrap_service(callback, self.health["output"])
        group = MutuallyExclusiveCallbackGroup()
        service = self.create_service(kind, f"~/{topic}", wrapped, callback_group=group)
        self._setup_services.append(service)
        return service

    def submit(
        self,
        slot: str,
        work: Callable[[], None],
        *,
        stamp_ns: int | None,
        superseded: Callable[[], None] | None = None,
        on_error: Callable[[Exception], None] | None = None,
        on_done: Callable[[], None] | None = None,
    ) -> None:
        """Run ``work`` in the worker unless newer work for ``slot`` comes first.

        Args:
            slot: at most one job waits in a slot.
            work: may raise; a KestrelError is a malformed input, anything else a bug with a traceback.
            stamp_ns: stamp of the data that is worked on, for the latency; None: not measured.
            superseded: called when newer work took the place.
            on_error: called in the worker after ``work`` raised.
            on_done: called in the worker after ``work`` returned.
        """
        run = partial(self._run, work, stamp_ns, on_error, on_done)
        self.worker.submit(slot, Job(run, superseded or partial(self.health["sync"].count, "superseded")))

    async def in_worker(self, slot: str, work: Callable[[], object]) -> None:
        """Run ``work`` in the worker and wait for it without holding up the executor; raises what it raised.

        Raises:
            SetupError: the node is not active, or newer work for ``slot`` came first.
        """
        if not self.active:
            raise SetupError(describe("node state", expected="active", found=self.state_label))
        outcome = Outcome()
        newer = SetupError(f"{slot}: given up for a newer request, or because the node stopped")
        self.worker.submit(slot, Job(partial(outcome.run, work), partial(outcome.fail, newer)))
        await outcome

    def show_model(self, manifest: Manifest | None) -> None:
        """Say in /diagnostics which weights are in use (None: random ones)."""
        concern = self.health["model"]
        concern.set("weights", "untrained" if manifest is None else manifest.name)
        concern.set("sha256", "" if manifest is None else manifest.sha256)
        concern.check("untrained", "the weights are random" if manifest is None else None)

    @property
    def wanted(self) -> bool:
        """Whether anybody subscribes to any output that is not latched."""
        return any(output.wanted for output in self.outputs.values() if not output.latched)

    def time_jumped(self, cause: str, source: Input | None = None) -> None:
        """Reset all state over time because time restarted, as told by ``source`` or (None) by the clock."""
        self.get_logger().warning(f"{cause}: state over time is reset")
        self.health["sync"].count("time_jumps")
        self.health["sync"].warn("time jump", cause)
        self.health["sync"].clear("time jump")
        for port in self.inputs.values() if source is None else ():
            port.guard.forget()
        self.reset(cause, source)
        action = partial(self.reset_pipeline, cause, source)
        drop = None if source is None else (source.topic,)
        self.worker.before_next(self.guard.wrap(action, self.health["output"]), drop_waiting=drop)

    # Receiving.

    def _receive_for_worker(self, port: Input, handler: Callable[[Any], None], message: Any) -> None:
        port.arrived()
        if not self._usable(port, message):
            return
        if not self._wants(port):
            port.unwanted()
            return
        self.submit(
            port.topic,
            partial(handler, message),
            stamp_ns=stamp_ns(message.header.stamp),
            superseded=port.superseded,
            on_error=port.reject,
            on_done=port.answered,
        )

    def _receive_now(self, port: Input, handler: Callable[[Any], None], message: Any) -> None:
        port.arrived()
        if not self._usable(port, message):
            return
        try:
            handler(message)
        except KestrelError as error:
            port.reject(error)
            self.guard.log(error)
        else:
            port.accept()

    def _receive_bare(self, port: Input, handler: Callable[[Any], None], message: Any) -> None:
        port.arrived()
        handler(message)

    def _wants(self, port: Input) -> bool:
        return any(output.wanted for output in port.outputs) if port.outputs else self.wanted

    def _usable(self, port: Input, message: Any) -> bool:
        stamp = stamp_ns(message.header.stamp)
        newest = port.guard.newest_ns
        verdict = port.guard.judge(stamp)
        if verdict is Verdict.JUMP_BACK:
            self.time_jumped(
                f"{port.topic}: stamps jumped back by {((newest or 0) - stamp) / 1e9:.1f} s", port
            )
        elif verdict is not Verdict.FRESH:
            port.drop(verdict.value, f"stamp {stamp / 1e9:.3f} s dropped: {verdict.value}")
            return False
        if self._mixed_sources(port, message.header.frame_id):
            port.drop("mixed_frames", f"two publishers: frames {port.frame_id} and {message.header.frame_id}")
            return False
        port.concern.clear("stamp")
        return True

    def _mixed_sources(self, port: Input, frame_id: str) -> bool:
        """Whether another publisher sends data of another frame (one publisher may change its frame)."""
        if port.frame_id not in (None, frame_id) and self._publishers_of(port) > 1:
            return True
        port.frame_id = frame_id
        return False

    def _publishers_of(self, port: Input) -> int:
        return 0 if port.subscription is None else self.count_publishers(port.subscription.topic_name)

    def _incompatible_qos(self, port: Input, event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        port.concern.count("incompatible_qos", event.total_count_change)
        topic = port.subscription.topic_name if port.subscription else port.topic
        port.concern.error("qos", f"a publisher of {topic} offers an incompatible {policy} policy")

    # Working.

    def _run(
        self,
        work: Callable[[], None],
        stamp: int | None,
        on_error: Callable[[Exception], None] | None,
        on_done: Callable[[], None] | None,
    ) -> None:
        started = time.monotonic()
        error = self.guard.call(work, self.health["output"])
        for kind, concern in ((ModelError, "model"), (CalibrationError, "calibration")):
            self.health[concern].check(
                "pipeline", str(error) if isinstance(error, kind) else None, level=Level.ERROR
            )
        if error is not None:
            if on_error is not None:
                on_error(error)
            return
        if on_done is not None:
            on_done()
        if stamp is not None:
            self.timing.done(started, stamp)

    # Life cycle.

    def to_configured(self) -> None:
        """Create everything and warm the pipeline up."""
        self.timing.start()
        self.setup()
        self.clock_watch.start(lambda seconds: self.time_jumped(f"the clock jumped back by {seconds:.1f} s"))

    def to_active(self) -> None:
        """Start the worker and subscribe."""
        self.timing.restart()
        self.worker.start()
        self.started()
        for subscribe in self._subscribe.values():
            subscribe()

    def to_inactive(self) -> None:
        """Unsubscribe and let the message in work finish."""
        for port in self.inputs.values():
            if port.subscription is not None:
                self.destroy_subscription(port.subscription)
                port.subscription = None
        if not self.worker.stop(STOP_TIMEOUT_S):
            self.get_logger().warning("the message in work did not finish in time and is abandoned")
        self.stopped()

    def to_unconfigured(self) -> None:
        """Destroy what configure made."""
        self.clock_watch.stop()
        self.teardown()
        for timer in self._setup_timers:
            self.destroy_timer(timer)
        for service in self._setup_services:
            self.destroy_service(service)
        for output in (*self.outputs.values(), *self._debug_outputs):
            self.destroy_lifecycle_publisher(output.publisher)
        for topic in self.inputs:
            self.health.forget(f"input/{topic}")
        self.inputs, self.outputs, self._subscribe = {}, {}, {}
        self._setup_timers, self._setup_services, self._debug_outputs = [], [], []
        self.timing = Timing(self)

    @property
    def finished(self) -> bool:
        """Whether the worker has ended."""
        return not self.worker.alive

    # Health.

    @property
    def alive(self) -> bool:
        """Whether the worker is not stuck."""
        return self.state_label != "active" or self.worker.busy_s < self.params.worker_timeout_s

    def check_health(self) -> None:
        """Look for silent inputs, doubled publishers, a stuck worker and a missing clock."""
        paused = self.clock_watch.check()
        if not self.active:
            return
        for port in self.inputs.values():
            port.check_silence(self.params.input_timeout_s, paused=paused)
            publishers = self._publishers_of(port)
            doubled = (
                f"{publishers} publishers on one input" if port.single_source and publishers > 1 else None
            )
            port.concern.check("publishers", doubled)
        busy_s = self.worker.busy_s
        text = f"one message in work for {busy_s:.1f} s" if busy_s > BUSY_ERROR_S else None
        self.health["model"].check("busy", text, level=Level.ERROR)
        for output in self.outputs.values():
            self.health["output"].set(output.topic, output.published)
