# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The base of every node: life cycle, guarded callbacks, newest-wins work, diagnostics and timing topics.

A node states its parameters in a frozen dataclass, creates its inputs and outputs and loads its pipeline in
`setup`, and handles one message at a time::

    class SegmentationNode(KestrelNode[SegmentationParameters]):
        parameters_type = SegmentationParameters

        def start(self, device: str) -> PointSegmenter:
            ...  # loads the pipeline for a device and warms it up

        def setup(self) -> None:
            self.model = self.add_model(self.params.device, self.start)
            self.labelled = self.add_output("points", PointCloud2)
            self.add_input("points", PointCloud2, self.segment, qos=...)

        def segment(self, message: PointCloud2) -> None:
            ...  # worker thread; newest message only; raise KestrelError to reject it
            self.labelled.publish(answer)

Everything else (threads, errors, counters, /diagnostics, latency) is here and in no node.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible, qos_policy_name_from_kind

from kestrel.errors import InputError, KestrelError, describe
from kestrel_nodes.lasting import LastingSubscription
from kestrel_nodes.parameters import NodeParameters
from kestrel_nodes.ports import Input, Output
from kestrel_nodes.qos import input_qos
from kestrel_nodes.stamps import NANOSECONDS, StampGuard, Verdict, stamp_ns
from kestrel_nodes.timing import ClockWatch
from kestrel_nodes.working import WorkingNode

P = TypeVar("P", bound=NodeParameters)


class KestrelNode(WorkingNode[P]):
    """A managed node around one pipeline.

    A subclass sets ``parameters_type`` and implements `setup`; everything it creates there with `add_model`,
    `add_input`, `add_output`, `add_timer` and `add_service` exists until cleanup. Subscriptions live while
    the node is active. It overrides `reset` and `reset_pipeline` if it keeps state over time.
    """

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.inputs: dict[str, Input] = {}
        self.clock_watch = ClockWatch(self)
        self._subscribe: dict[str, Callable[[], None]] = {}
        self._lasting: dict[str, LastingSubscription] = {}

    def reset(self, cause: str, source: Input | None) -> None:
        """Time jumped back: forget state over time that belongs to receiving (executor thread).

        ``source`` is the input whose stamps jumped, or None when it was the clock.
        """

    def reset_pipeline(self, cause: str, source: Input | None) -> None:
        """Time jumped back: forget what the pipeline remembers (worker thread, before the next message)."""

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
        lasting: bool = False,
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
            lasting: whether a message holds until the next one, as a calibration does: what was published
                before the node became active is heard as well (latched), and silence after it is no fault.
            outputs: what comes of this input; when nobody subscribes to any of them (default: any output
                that is not latched), the handler is not called.
        """
        name = topic.lstrip("/")
        port = Input(
            name,
            self.health[f"input/{name}"],
            StampGuard(int(self.params.jump_back_limit_s * NANOSECONDS)),
            timeout_s=self.params.input_timeout_s,
            required=required,
            single_source=single_source,
            stamped=stamped,
            lasting=lasting,
        )
        port.outputs = () if outputs is None else outputs
        receive = self._receive_for_worker if in_worker else self._receive_now
        callback = partial(receive if stamped else self._receive_bare, port, handler)
        full_name = topic if topic.startswith("/") else f"~/input/{topic}"
        profile = input_qos() if qos is None else qos
        self.inputs[topic] = port
        self._subscribe[topic] = partial(self._listen_to, port, kind, full_name, callback, profile)
        return port

    def _listen_to(
        self, port: Input, kind: type, name: str, callback: Callable[[Any], None], profile: QoSProfile
    ) -> None:
        port.restart()
        hear = self.guard.wrap(callback, port.concern)
        events = SubscriptionEventCallbacks(incompatible_qos=partial(self._incompatible_qos, port))
        if port.lasting:
            pair = self._lasting.setdefault(port.topic, LastingSubscription(self, kind, hear))
            port.subscription = pair.open(name, profile, events)
        else:
            port.subscription = self.create_subscription(kind, name, hear, profile, event_callbacks=events)

    def _stop_listening(self, port: Input) -> None:
        if port.topic in self._lasting:
            self._lasting[port.topic].close()
        elif port.subscription is not None:
            self.destroy_subscription(port.subscription)
        port.subscription = None

    def time_jumped(self, cause: str, source: Input | None = None) -> None:
        """Reset all state over time because time restarted, as told by ``source`` or (None) by the clock."""
        self.guard.warn(f"{cause}: state over time is reset")
        self.health["sync"].count("time_jumps")
        self.health["sync"].warn("time jump", cause)
        self.health["sync"].clear("time jump")
        if source is None:
            self.timing.clock_jumped()
            for port in self.inputs.values():
                port.guard.forget()
        self.reset(cause, source)
        action = self.guard.wrap(partial(self.reset_pipeline, cause, source), self.health["output"])
        # What waits for another reason than a message (a request) is of no time.
        void = self.inputs.values() if source is None else (source,)
        drop = {slot for port in void for slot in self.slots_of(port)}
        self.worker.before_next(source and source.topic, action, drop_waiting=drop)

    def slots_of(self, source: Input) -> tuple[str, ...]:
        """Return where work waits that is void once time of this input jumps back."""
        return (source.topic,)

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

    def _receive_bare(self, port: Input, handler: Callable[[Any], None], message: Any) -> None:
        port.arrived()
        handler(message)

    def _wants(self, port: Input) -> bool:
        return any(output.wanted for output in port.outputs) if port.outputs else self.wanted

    def _usable(self, port: Input, message: Any) -> bool:
        if not message.header.frame_id:
            name = f"frame_id of {port.topic}"
            error = InputError(describe(name, expected="a frame", found="an empty name"))
            port.reject(error)
            self.guard.log(error)
            return False
        if self._mixed_sources(port, message.header.frame_id):
            port.drop("mixed_frames", f"two publishers: frames {port.frame_id} and {message.header.frame_id}")
            return False
        stamp = stamp_ns(message.header.stamp)
        newest = port.guard.newest_ns
        verdict = port.guard.judge(stamp)
        if verdict is Verdict.JUMP_BACK:
            self.time_jumped(
                f"{port.topic}: stamps jumped back by {((newest or 0) - stamp) / 1e9:.1f} s", port
            )
        elif verdict is not Verdict.FRESH:
            port.drop(verdict.value, verdict.why_dropped(stamp))
            return False
        port.frame_id = message.header.frame_id
        port.usable()
        return True

    def _mixed_sources(self, port: Input, frame_id: str) -> bool:
        """Whether another publisher sends data of another frame (one publisher may change its frame)."""
        return port.frame_id not in (None, frame_id) and self._publishers_of(port) > 1

    def _publishers_of(self, port: Input) -> int:
        return 0 if port.subscription is None else self.count_publishers(port.subscription.topic_name)

    def _incompatible_qos(self, port: Input, event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        port.concern.count("incompatible_qos", event.total_count_change)
        topic = port.subscription.topic_name if port.subscription else port.topic
        port.concern.error("qos", f"a publisher of {topic} offers an incompatible {policy} policy")

    def to_configured(self) -> None:
        """Create everything; watch the clock."""
        super().to_configured()
        self.clock_watch.start(lambda seconds: self.time_jumped(f"the clock jumped back by {seconds:.1f} s"))

    def to_active(self) -> None:
        """Start to work, then subscribe."""
        super().to_active()
        for subscribe in self._subscribe.values():
            subscribe()

    def to_inactive(self) -> None:
        """Unsubscribe, then stop to work."""
        for port in self.inputs.values():
            self._stop_listening(port)
        super().to_inactive()

    def forget_messages(self) -> None:
        """Take back what messages brought up, of the inputs as well."""
        super().forget_messages()
        for port in list(self.inputs.values()):  # a cleanup may go on in the other thread
            port.concern.clear_all()

    def to_unconfigured(self) -> None:
        """Destroy what configure made."""
        self.clock_watch.stop()
        for port in self.inputs.values():
            self.health.forget(port.concern.name)
        self.inputs, self._subscribe, self._lasting = {}, {}, {}
        super().to_unconfigured()

    def check_health(self) -> None:
        """Look for silent inputs, doubled or incompatible publishers, and a missing clock."""
        super().check_health()
        paused = self.clock_watch.check()
        for port in self.inputs.values():
            if port.subscription is not None:
                port.check(paused=paused)
                self._check_publishers(port)
        for pair in self._lasting.values():
            pair.check()

    def _check_publishers(self, port: Input) -> None:
        publishers = self._publishers_of(port)
        doubled = f"{publishers} publishers on one input" if publishers > 1 and port.single_source else None
        port.concern.check("publishers", doubled)
        if port.concern.counted("incompatible_qos") and port.subscription is not None:
            offers = self.get_publishers_info_by_topic(port.subscription.topic_name)
            wanted = port.subscription.qos_profile
            verdicts = [qos_check_compatible(offer.qos_profile, wanted)[0] for offer in offers]
            if QoSCompatibility.ERROR not in verdicts:
                port.concern.clear("qos")
