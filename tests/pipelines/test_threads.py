# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Threads of torch: what one configuration has asked for ends with the next that asks for none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kestrel.pipelines import runtime
from kestrel.pipelines.runtime import set_threads


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    before = torch.get_num_threads()
    monkeypatch.setattr(runtime, "_threads_before", [])
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def test_none_takes_back_what_was_set_before(threads: int) -> None:
    for number in (1, 2):
        set_threads(number)
        assert torch.get_num_threads() == number
    set_threads(None)
    assert torch.get_num_threads() == threads


def test_none_leaves_alone_what_others_have_set() -> None:
    set_threads(1)
    set_threads(None)
    torch.set_num_threads(2)
    set_threads(None)
    assert torch.get_num_threads() == 2
