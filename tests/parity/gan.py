# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs the image generators and discriminators on the parity fixtures."""

from __future__ import annotations

from tests.parity.fixture import Runner

RUNNERS: dict[str, Runner] = {}
