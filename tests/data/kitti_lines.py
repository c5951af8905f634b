# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Whole lines of files of KITTI, for tests to damage."""

from __future__ import annotations

from typing import Final

CAR: Final = "Car 0 0 -1.5 10 20 30 40 1.5 1.6 3.9 2.0 1.5 20.0 -1.5"
"""What a label says of an object, behind its frame and its track."""

OXTS: Final = "49.0 8.4 116.0 0.02 0.01 -1.2 " + " ".join(["0.5"] * 24)
"""One measurement of the vehicle's place and motion."""
