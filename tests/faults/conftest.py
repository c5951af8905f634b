# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Faults are injected into real nodes, with the graph of the tests in tests/ros."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.ros.stand_ins import DrivenTime

if importlib.util.find_spec("rclpy") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from tests.ros.conftest import graph, ros_domain  # noqa: F401


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> DrivenTime:
    """Return the clock by which inputs fall silent; the test drives it."""
    from kestrel_nodes import ports
    from tests.ros.stand_ins import DrivenTime

    driven = DrivenTime()
    monkeypatch.setattr(ports, "time", driven)
    return driven
