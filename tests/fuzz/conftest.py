# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever comes from outside: an answer or an error of Kestrel's that names it, and nothing else."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("rclpy") is None:
    collect_ignore_glob = ["test_ros_*.py", "test_parameters.py"]
