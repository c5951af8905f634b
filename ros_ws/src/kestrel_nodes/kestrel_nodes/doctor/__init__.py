# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a machine and a ROS graph, and what to do about it."""

from kestrel_nodes.doctor.finding import Finding, Level

__all__ = ["Finding", "Level"]
