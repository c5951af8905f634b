# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The real nodes run for long, in the graph of the tests in tests/ros."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("rclpy") is None:
    collect_ignore_glob = ["test_soak.py"]
else:
    from tests.ros.conftest import graph, ros_domain  # noqa: F401
