# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for `launch` and `launch_ros` that write down what a launch file makes of them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

MODULES = (
    "launch",
    "launch.actions",
    "launch.conditions",
    "launch.event_handlers",
    "launch.events",
    "launch.launch_description_entity",
    "launch.launch_description_sources",
    "launch.substitutions",
    "launch_ros",
    "launch_ros.actions",
    "launch_ros.event_handlers",
    "launch_ros.events",
    "launch_ros.events.lifecycle",
    "launch_ros.parameter_descriptions",
)


class Made:
    """Anything that a launch file creates: its kind and arguments."""

    kind = ""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.arguments, self.named = arguments, named

    def perform(self, context: dict[str, str]) -> str:
        """Return the value of a LaunchConfiguration."""
        return context[self.arguments[0]]


class _Recorder(ModuleType):
    """A module in which every name that begins with a capital is a class that writes down its arguments."""

    def __getattr__(self, name: str) -> Any:
        if name == "matches_action":
            return lambda action: action
        if not name[0].isupper():
            raise AttributeError(name)
        kind = type(name, (Made,), {"kind": name})
        setattr(self, name, kind)
        return kind


@contextmanager
def recorded_launch() -> Iterator[None]:
    """Put the stand-ins in the place of the real modules."""
    before = {name: sys.modules.get(name) for name in MODULES}
    for name in MODULES:
        sys.modules[name] = _Recorder(name)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def load(path: Path) -> ModuleType:
    """Return the launch file as a module."""
    spec = importlib.util.spec_from_file_location(path.name.split(".")[0] + "_launch", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entities(module: ModuleType) -> list[Made]:
    """Return what the description of a launch file holds, groups opened."""
    found: list[Made] = []
    waiting = list(module.generate_launch_description().arguments[0])
    while waiting:
        entity = waiting.pop(0)
        found.append(entity)
        if entity.kind == "GroupAction":
            waiting += entity.arguments[0]
    return found


def declared(module: ModuleType) -> dict[str, Any]:
    """Return the launch arguments with their defaults."""
    return {
        entity.arguments[0]: entity.named["default_value"]
        for entity in entities(module)
        if entity.kind == "DeclareLaunchArgument"
    }
