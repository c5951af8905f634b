# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Replaying a bag into a ROS graph and recording what the nodes make of it."""
