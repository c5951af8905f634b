# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters of a node: one frozen dataclass gives declaration, validation, YAML and documentation.

::

    @dataclass(frozen=True)
    class VideoParameters(NodeParameters):
        cameras: tuple[str, ...] = parameter(("front",), "Names of the cameras.")
        threads: int = parameter(0, "Threads of the network; 0 lets torch choose.", minimum=0, maximum=64)

There is no ROS in this module. `python -m kestrel_nodes.parameter_files` writes config/ and docs/nodes.md.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from kestrel.errors import ConfigError, describe

Value = bool | int | float | str | tuple[str, ...] | tuple[float, ...]
P = TypeVar("P", bound="NodeParameters")


def parameter(
    default: Value,
    description: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """Return a dataclass field that is a parameter.

    Args:
        default: value where nobody sets one.
        description: one sentence for the generated documentation.
        minimum: lower bound of a number (or of each element of a list), inclusive.
        maximum: upper bound, inclusive.
        choices: the allowed strings.
    """
    metadata = {
        "description": description,
        "minimum": minimum,
        "maximum": maximum,
        "choices": None if choices is None else tuple(choices),
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter as declared: ``type`` is bool, int, float, str, tuple[str, ...] or tuple[float, ...]."""

    name: str
    type: object
    default: Value
    description: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...] | None

    @property
    def type_name(self) -> str:
        """The type as ROS documentation writes it."""
        names = {bool: "bool", int: "int", float: "double", str: "string", tuple[str, ...]: "string[]"}
        return names.get(self.type, "double[]")  # type: ignore[call-overload, no-any-return]

    @property
    def allowed(self) -> str:
        """What may be set, in words."""
        if self.choices is not None:
            return "one of " + ", ".join(self.choices)
        if self.minimum is not None and self.maximum is not None:
            return f"{self.type_name} in {self.minimum:.12g} .. {self.maximum:.12g}"
        if self.minimum is not None:
            return f"{self.type_name} >= {self.minimum:.12g}"
        return self.type_name

    def checked(self, value: object) -> Value:
        """Return ``value`` as the declared type.

        Raises:
            ConfigError: naming the parameter, the value and what is allowed.
        """
        converted = self._converted(value)
        if converted is None or not all(self._within(element) for element in _elements(converted)):
            raise ConfigError(describe(f"parameter {self.name}", expected=self.allowed, found=repr(value)))
        return converted

    def _converted(self, value: object) -> Value | None:
        if self.type is bool or self.type is str:
            return value if isinstance(value, self.type) else None
        if self.type is int:
            return value if isinstance(value, int) and not isinstance(value, bool) else None
        if self.type is float:
            return _number(value)
        if value is None:  # ROS cannot type an empty list in YAML: [] comes as this
            return ()
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            return None
        # Nor does [] replace the list of an earlier file; [""] does, and is empty, too.
        items = [item for item in value if item != ""]
        if self.type == tuple[str, ...]:
            return tuple(items) if all(isinstance(item, str) for item in items) else None
        numbers = tuple(_number(item) for item in items)
        return None if None in numbers else typing.cast("tuple[float, ...]", numbers)

    def _within(self, element: object) -> bool:
        if self.choices is not None:
            return element in self.choices
        if isinstance(element, bool) or not isinstance(element, (int, float)):
            return True
        return (self.minimum is None or element >= self.minimum) and (
            self.maximum is None or element <= self.maximum
        )


def _number(value: object) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None  # type: ignore[arg-type]


def _elements(value: Value) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


@dataclass(frozen=True)
class NodeParameters:
    """What every node can be told."""

    jump_back_limit_s: float = parameter(
        0.5,
        "A stamp older than the newest of its input by up to this is out of order and dropped; older "
        "still, time has restarted (a bag loops) and state over time is reset.",
        minimum=0.0,
        maximum=3600.0,
    )
    input_timeout_s: float = parameter(
        1.0,
        "An input without a usable message for longer than this (at least two of its periods) is ERROR.",
        minimum=0.01,
        maximum=3600.0,
    )
    latency_warn_ms: float = parameter(
        200.0,
        "Latency from input stamp to output above this is WARN; if it stays above for more than 1 s, ERROR.",
        minimum=0.0,
        maximum=60000.0,
    )
    clock_tolerance_s: float = parameter(
        10.0,
        "Stamps that differ from the node's clock by more than this are reported as another clock domain.",
        minimum=0.1,
        maximum=1e9,
    )
    worker_timeout_s: float = parameter(
        30.0,
        "The heartbeat stops while one message has been processed for longer than this, so that `kestrel up` "
        "restarts the node.",
        minimum=1.0,
        maximum=3600.0,
    )

    def __post_init__(self) -> None:
        for spec in specs(type(self)):
            object.__setattr__(self, spec.name, spec.checked(getattr(self, spec.name)))
        self.check()

    def check(self) -> None:
        """Raise ConfigError if parameters contradict each other; overridden where they can."""


def specs(kind: type[NodeParameters]) -> Iterator[ParameterSpec]:
    """Yield the parameters of ``kind`` in the order of its fields."""
    types = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        yield ParameterSpec(
            name=item.name,
            type=types[item.name],
            default=typing.cast("Value", item.default),
            **item.metadata,
        )


def build(kind: type[P], values: Mapping[str, object]) -> P:
    """Return the parameters ``kind`` with ``values``.

    Raises:
        ConfigError: an unknown name, or a value that is not allowed.
    """
    known = {spec.name for spec in specs(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(describe("parameter", expected=f"one of {sorted(known)}", found=unknown))
    return kind(**typing.cast("dict[str, Any]", dict(values)))
