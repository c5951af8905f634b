# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""How far a long command is; on standard error, so that standard output holds its results alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich import progress
from rich.console import Console

ItemT = TypeVar("ItemT")


def track(items: Sequence[ItemT], what: str) -> Iterator[ItemT]:
    """Yield ``items``, showing how many are done and the time left; the line goes with the last one."""
    yield from progress.track(items, what, console=Console(stderr=True), transient=True)
