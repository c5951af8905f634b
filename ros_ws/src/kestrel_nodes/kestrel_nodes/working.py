# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A managed node that works: outputs, timers, services, and one worker thread that takes the newest job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.service import Service
from rclpy.timer import Timer

from kestrel.errors import CalibrationError, ModelError, describe
from kestrel.pipelines.runtime import give_memory_back
from kestrel.weights import Manifest
from kestrel_nodes.guard import UntimelyError
from kestrel_nodes.health import Level
from kestrel_nodes.managed import ManagedNode
from kestrel_nodes.offered_service import OfferedService
from kestrel_nodes.on_device import OnDevice, PipelineT
from kestrel_nodes.parameters import NodeParameters
from kestrel_nodes.ports import Output
from kestrel_nodes.qos import LATCHED, OUTPUT
from kestrel_nodes.timing import Timing
from kestrel_nodes.worker import Job, Outcome, Worker

P = TypeVar("P", bound=NodeParameters)

STOP_TIMEOUT_S = 1.5
"""How long a stopping node waits for the message in work; the process exits in any case."""

BUSY_ERROR_S = 1.0


class WorkingNode(ManagedNode[P]):
    """What a node makes in `setup` besides its inputs; all of it exists until cleanup."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.outputs: dict[str, Output] = {}
        self.worker = Worker(name)
        self.timing = Timing(self)
        self._debug_outputs: list[Output] = []
        self._setup_models: list[OnDevice[Any]] = []
        self._setup_timers: list[Timer] = []
        self._setup_services: list[OfferedService] = []
        self._retired_services: list[OfferedService] = []
        self.activations = 0
        """How often the node has become active."""

    def setup(self) -> None:
        """Create inputs and outputs, load the pipeline and warm it up; any error fails configure."""
        raise NotImplementedError

    def started(self) -> None:
        """The node becomes active; called before its inputs are subscribed."""

    def stopped(self) -> None:
        """The node is no longer active; no callback runs any more."""

    def add_model(self, device: str, start: Callable[[str], PipelineT]) -> OnDevice[PipelineT]:
        """Return what holds the pipeline that ``start`` makes for a device, see `OnDevice`, until cleanup."""
        model = OnDevice(self, device, start)
        self._setup_models.append(model)
        return model

    def add_output(self, topic: str, kind: type, *, latched: bool = False) -> Output:
        """Return the output ``~/output/<topic>``; a latched one is kept for late subscribers."""
        self.outputs[topic] = self._output(f"~/output/{topic}", kind, topic, latched=latched)
        return self.outputs[topic]

    def add_debug(self, topic: str, kind: type) -> Output:
        """Return the output ``~/debug/<topic>``; it does not make the node compute anything."""
        output = self._output(f"~/debug/{topic}", kind, topic, latched=False)
        self._debug_outputs.append(output)
        return output

    def _output(self, name: str, kind: type, topic: str, *, latched: bool) -> Output:
        # The two event handlers that a publisher has by default cost as much as two more subscriptions at
        # each turn of the executor; a subscriber of another QoS or type is told by its own.
        silent = PublisherEventCallbacks(use_default_callbacks=False)
        publisher = self.create_lifecycle_publisher(
            kind, name, LATCHED if latched else OUTPUT, event_callbacks=silent
        )
        return Output(topic, publisher, latched=latched)

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
        One that is in work at cleanup is answered all the same.
        """
        wrapped = self.guard.wrap_service(callback, self.health["output"])
        group = MutuallyExclusiveCallbackGroup()
        service = self.create_service(kind, f"~/{topic}", wrapped, callback_group=group)
        self._setup_services.append(OfferedService(service))
        return service

    @property
    def services(self) -> Iterator[Service]:
        """The services that take requests, which those that only wait for their last answer do no more."""
        retired = [offered.service for offered in self._retired_services]
        return (service for service in super().services if service not in retired)

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

    async def in_worker(self, slot: str, work: Callable[[], object], *, activation: int) -> None:
        """Run ``work`` in the worker and wait for it without holding up the executor; raises what it raised.

        Args:
            slot: at most one job waits in a slot.
            work: what to do.
            activation: ``activations`` when the request came, which does not go on in a later one.

        Raises:
            UntimelyError: the node is not active, or is again, or newer work for ``slot`` came first.
        """
        if not self.active:
            raise UntimelyError(describe("node state", expected="active", found=self.state_label))
        if activation != self.activations:
            raise _deactivated_meanwhile()
        outcome = Outcome()
        newer = UntimelyError(f"{slot}: given up for a newer request, or because the node stopped")
        self.worker.submit(slot, Job(partial(outcome.run, work), partial(outcome.fail, newer)))
        await outcome

    def show_model(self, manifest: Manifest | None, device: object) -> None:
        """Say in /diagnostics which weights are in use (None: random ones), and where."""
        concern = self.health["model"]
        concern.set("device", device)
        concern.set("weights", "untrained" if manifest is None else manifest.name)
        concern.set("sha256", "" if manifest is None else manifest.sha256)
        concern.check("untrained", "the weights are random" if manifest is None else None)

    @property
    def wanted(self) -> bool:
        """Whether anybody subscribes to any output that is not latched."""
        return any(output.wanted for output in self.outputs.values() if not output.latched)

    def refuse_outlasted(self) -> None:
        """Let nothing come of a job that the last deactivation did not wait for.

        Raises:
            UntimelyError: the caller is one.
        """
        if self.worker.outlasted:
            raise _deactivated_meanwhile()

    def _run(
        self,
        work: Callable[[], None],
        stamp: int | None,
        on_error: Callable[[Exception], None] | None,
        on_done: Callable[[], None] | None,
    ) -> None:
        timing = self.timing  # once: a cleanup may go on in the other thread
        start = timing.begin()
        error = self.guard.call(work, self.health["output"])
        outlasted = self.worker.outlasted
        if outlasted and error is None:
            error = _deactivated_meanwhile()
        if not outlasted:
            self._say_failure(error)
        if error is None:
            if on_done is not None:
                on_done()
            if stamp is not None:
                timing.done(start, stamp)
        elif on_error is not None:
            on_error(error)
        if not self.active:  # nobody waited for the end of this work
            self.forget_messages()
            if not self._setup_models:
                error = None  # it keeps what it met in memory
                give_memory_back()

    def _say_failure(self, error: Exception | None) -> None:
        for kind, concern in ((ModelError, "model"), (CalibrationError, "calibration")):
            self.health[concern].check(
                "pipeline", str(error) if isinstance(error, kind) else None, level=Level.ERROR
            )

    def to_configured(self) -> None:
        """Create everything and warm the pipeline up."""
        self.timing.start()
        self.setup()

    def to_active(self) -> None:
        """Start the worker."""
        self.activations += 1
        self.timing.restart()
        self.worker.start()
        self.started()

    def to_inactive(self) -> None:
        """Let the message in work finish."""
        if not self.worker.stop(STOP_TIMEOUT_S):
            self.get_logger().warning("the message in work did not finish in time and is abandoned")
        self.stopped()
        self.forget_messages()

    def forget_messages(self) -> None:
        """Take back what the last messages brought up: none will end it while the node is inactive."""
        for concern in ("sync", "calibration", "latency"):
            self.health[concern].clear_all()
        self.health["model"].clear("pipeline")

    def to_unconfigured(self) -> None:
        """Destroy what configure made, first what takes most memory."""
        self.worker.forget_actions()
        for model in self._setup_models:
            model.free()
        for timer in self._setup_timers:
            self.destroy_timer(timer)
        self._retired_services += self._setup_services
        self._destroy_idle_services()
        for output in (*self.outputs.values(), *self._debug_outputs):
            self.destroy_lifecycle_publisher(output.publisher)
        self.outputs, self._debug_outputs = {}, []
        self._setup_models, self._setup_timers, self._setup_services = [], [], []
        self.timing = Timing(self)

    def _destroy_idle_services(self) -> None:
        """Destroy what a cleanup has retired, once its last request is answered."""
        for offered in self._retired_services:
            if not offered.busy:
                self.destroy_service(offered.service)
        self._retired_services = [offered for offered in self._retired_services if offered.busy]

    @property
    def alive(self) -> bool:
        """Whether the worker is not stuck."""
        return not self.active or self.worker.busy_s < self.params.worker_timeout_s

    def check_health(self) -> None:
        """Look for a stuck worker and services to destroy; show what was published."""
        self._destroy_idle_services()
        busy_s = self.worker.busy_s
        text = f"one message in work for {busy_s:.1f} s" if busy_s > BUSY_ERROR_S else None
        self.health["model"].check("busy", text, level=Level.ERROR)
        for output in self.outputs.values():
            self.health["output"].set(output.topic, output.published)


def _deactivated_meanwhile() -> UntimelyError:
    expected, found = "an active node", "one that was deactivated meanwhile"
    return UntimelyError(describe("answer", expected=expected, found=found))
