# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What nodes hold of DDS ends when they are destroyed, not when Python collects its garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.ros.fusion_rig import Rig
from tests.ros.graph import Graph, participants


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def test_the_participant_ends_with_the_last_node(no_garbage_collection: None) -> None:
    assert participants() == 0
    with Graph() as graph:
        rig = Rig(graph).ready()
        rig.sense(100)
        rig.answer(100)
        assert participants() == 1
    assert participants() == 0
