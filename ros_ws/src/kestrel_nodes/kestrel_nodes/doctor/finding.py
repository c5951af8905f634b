# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""One thing the doctor looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How bad a finding is; BROKEN makes `kestrel doctor` end with exit code 1."""

    OK = "ok"
    NOTE = "note"
    BROKEN = "broken"


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was found, and what to do about it (empty when all is well)."""

    level: Level
    subject: str
    found: str
    advice: str = ""
