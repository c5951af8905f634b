# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A managed node that explains itself: life cycle, parameters, heartbeat and /diagnostics."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_msgs.msg import Header

from kestrel.errors import ConfigError, InputError, KestrelError, describe
from kestrel_nodes.guard import Guard
from kestrel_nodes.health import Health
from kestrel_nodes.parameters import NodeParameters, build, specs

P = TypeVar("P", bound=NodeParameters)

DIAGNOSTICS_PERIOD_S = 0.5
LIFE_CYCLE = "life cycle"
CONCERNS = (LIFE_CYCLE, "sync", "calibration", "model", "latency", "output")


class ManagedNode(LifecycleNode, Generic[P]):
    """Life cycle, parameters, diagnostics and heartbeat; what the node does comes from subclasses.

    A failing configure or activate leaves the node where it was; the reason is logged and in /diagnostics.
    """

    parameters_type: ClassVar[type[NodeParameters]]

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.params: P
        self.health = Health()
        self.guard = Guard(self.get_logger())
        self.steady_clock = Clock(clock_type=ClockType.STEADY_TIME)
        self.state_label = "unconfigured"
        for concern in CONCERNS:
            self.health[concern].clear("")
        self._declare_parameters()
        self._unknown = self._unknown_parameters()
        for text in self._unknown:
            self.get_logger().warning(text)
        self._say_unknown_parameters()
        self._guard_transitions()
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._heartbeat_publisher = self.create_publisher(Header, "~/heartbeat", 10)
        tick = self.guard.wrap(self._tick, self.health[LIFE_CYCLE])
        self._tick_timer = self.create_timer(DIAGNOSTICS_PERIOD_S, tick, clock=self.steady_clock)

    # What a subclass implements; each may raise, except to_inactive and to_unconfigured.

    def to_configured(self) -> None:
        """Make everything the node needs."""

    def to_active(self) -> None:
        """Begin to work."""

    def to_inactive(self) -> None:
        """Stop working."""

    def to_unconfigured(self) -> None:
        """Free everything that `to_configured` made, also after it stopped half-way."""

    def check_health(self) -> None:
        """Look for problems that no message brings up, before each publication of /diagnostics."""

    @property
    def alive(self) -> bool:
        """Whether the heartbeat should beat."""
        return True

    @property
    def active(self) -> bool:
        """Whether the node is in the life-cycle state ``active``."""
        return self.state_label == "active"

    # Parameters: open while unconfigured, fixed from configure to cleanup.

    def _declare_parameters(self) -> None:
        for spec in specs(self.parameters_type):
            default = list(spec.default) if isinstance(spec.default, tuple) else spec.default
            descriptor = ParameterDescriptor(
                description=spec.description,
                additional_constraints=f"{spec.allowed}; fixed while the node is configured",
                dynamic_typing=True,
            )
            self.declare_parameter(spec.name, default, descriptor)
        self.add_on_set_parameters_callback(self._on_set_parameters)

    def _unknown_parameters(self) -> list[str]:
        """Return what is said of parameters that were set at the start and that no node of this kind has."""
        known = [spec.name for spec in specs(self.parameters_type)]
        # rclpy declares those of its own that it knows: use_sim_time, start_type_description_service.
        unknown = [
            name
            for name in self._parameter_overrides
            if not self.has_parameter(name) and not name.startswith("qos_overrides.")
        ]
        said = []
        for name in unknown:
            nearest = [f" (the nearest is {near})" for near in difflib.get_close_matches(name, known, 1)]
            said.append(describe("parameter", expected="a known one" + "".join(nearest), found=name))
        return said

    def _say_unknown_parameters(self) -> None:
        """Warn of them as long as the node lives; one in a section `/**` may be meant for another node."""
        if self._unknown:
            self.health[LIFE_CYCLE].warn("parameters", "; ".join(self._unknown))

    def _on_set_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        allowed = {spec.name: spec for spec in specs(self.parameters_type)}
        for change in changes:
            spec = allowed.get(change.name)
            if spec is None:
                continue
            if self.state_label != "unconfigured":
                reason = (
                    f"parameter {change.name}: fixed while the node is {self.state_label}; clean up first"
                )
                return SetParametersResult(successful=False, reason=reason)
            try:
                spec.checked(change.value)
            except ConfigError as error:
                return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _read_parameters(self) -> NodeParameters:
        names = [spec.name for spec in specs(self.parameters_type)]
        return build(self.parameters_type, {name: self.get_parameter(name).value for name in names})

    # Life cycle. rclpy hides the exceptions of these callbacks, so none may leave them.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read and check the parameters, then make everything; on any error stay unconfigured."""

        def configure() -> None:
            self.params = self._read_parameters()  # type: ignore[assignment]
            self.to_configured()

        result = self._transition("configure", configure, "inactive")
        if result is not TransitionCallbackReturn.SUCCESS:
            self._transition("clean up", self.to_unconfigured, "unconfigured")
        return result

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to work; on any error stay inactive."""

        def activate() -> None:
            super(ManagedNode, self).on_activate(state)
            self.to_active()

        result = self._transition("activate", activate, "active")
        if result is not TransitionCallbackReturn.SUCCESS:
            self._leave_active(state)
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop working."""
        self._leave_active(state)
        return TransitionCallbackReturn.SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything."""
        self._transition("clean up", self.to_unconfigured, "unconfigured")
        for concern in CONCERNS:
            self.health[concern].clear_all()
            self.health[concern].forget()  # of another configuration than the next
        self._say_unknown_parameters()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free everything, from any state."""
        self._leave_active(state)
        self._transition("shut down", self.to_unconfigured, "finalized")
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free everything: nobody knows how far a transition came that broke off."""
        self._leave_active(state)
        self._transition("clean up", self.to_unconfigured, "unconfigured")
        return TransitionCallbackReturn.SUCCESS

    def _leave_active(self, state: LifecycleState) -> None:
        def deactivate() -> None:
            self.to_inactive()
            super(ManagedNode, self).on_deactivate(state)

        self._transition("deactivate", deactivate, "inactive")

    def _transition(self, name: str, action: Callable[[], None], label: str) -> TransitionCallbackReturn:
        concern = self.health[LIFE_CYCLE]
        try:
            action()
        except Exception as error:
            concern.count(f"{name}_failed".replace(" ", "_"))
            concern.error("transition", f"{name} failed: {error}")
            detail = str(error) if isinstance(error, KestrelError) else traceback.format_exc().rstrip()
            self.get_logger().error(f"{name} failed: {detail}")
            return TransitionCallbackReturn.FAILURE
        if name in ("configure", "activate"):
            concern.clear("transition")
        self.state_label = label
        return TransitionCallbackReturn.SUCCESS

    def _guard_transitions(self) -> None:
        """Answer an impossible transition with failure; rclpy would let its error end the process."""
        service = self._service_change_state
        change_state = service.callback

        def changed(request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
            try:
                return change_state(request, response)
            except rclpy_implementation.RCLError:
                name = request.transition.label or f"number {request.transition.id}"
                expected = f"one from the state {self.state_label}"
                raise InputError(describe("transition", expected=expected, found=name)) from None

        service.callback = self.guard.wrap_service(changed, self.health[LIFE_CYCLE])

    def shut_down(self) -> None:
        """Stop and free everything before the process exits, whatever the state."""
        if self.state_label != "finalized":
            self.trigger_shutdown()

    def destroy_node(self) -> None:
        """Free the node; with the last one of a context its DDS participant ends, at once."""
        super().destroy_node()
        # rclpy leaves this part to the garbage collector, whenever and in whichever thread it runs. Fast DDS
        # may lock up when one of several participants of a process ends while the others work.
        self._state_machine.destroy_when_not_in_use()

    # Heartbeat and diagnostics, on a clock that a paused or looping bag does not stop.

    def _tick(self) -> None:
        self.guard.call(self.check_health, self.health[LIFE_CYCLE])
        self.health[LIFE_CYCLE].set("state", self.state_label)
        now = Clock().now().to_msg()
        if self.alive:
            self._heartbeat_publisher.publish(Header(stamp=now, frame_id=self.state_label))
        message = DiagnosticArray(header=Header(stamp=self.get_clock().now().to_msg()))
        for concern in self.health:
            status = concern.publish()
            message.status.append(
                DiagnosticStatus(
                    level=bytes([status.level]),
                    name=f"{self.get_name()}: {status.name}",
                    message=status.message,
                    hardware_id=self.get_fully_qualified_name(),
                    values=[KeyValue(key=key, value=value) for key, value in status.values.items()],
                )
            )
        self._diagnostics_publisher.publish(message)
