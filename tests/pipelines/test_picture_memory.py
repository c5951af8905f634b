# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from kestrel.models.mobilenetv2 import State
from kestrel.pipelines.picture_memory import PictureMemory

MS = 1_000_000
BLANK = (torch.zeros(1, 2, 3, 4), torch.zeros(1, 1, 2, 2))


def state(*values: float) -> State:
    """Return the state of pictures in a batch, each filled with a value of its own."""
    each = torch.tensor(values).view(-1, 1, 1, 1)
    return each.expand(-1, 2, 3, 4), each.expand(-1, 1, 2, 2)


def recalled(memory: PictureMemory, camera: str, stamp_ms: int) -> float:
    found = memory.recall([(camera, stamp_ms * MS)])
    assert [each.shape for each in found] == [each.shape for each in BLANK]
    assert all((each == found[0][0, 0, 0, 0]).all() for each in found)
    return float(found[0][0, 0, 0, 0])


def test_the_picture_nearest_to_a_hop_before_is_recalled() -> None:
    memory = PictureMemory(0.5, BLANK)
    for number in range(1, 8):
        memory.keep([("front", 100 * number * MS)], state(number))
    assert recalled(memory, "front", 800) == 3
    assert recalled(memory, "front", 760) == 3
    assert recalled(memory, "front", 740) == 2


def test_pictures_half_a_hop_too_young_or_too_old_are_no_past() -> None:
    memory = PictureMemory(0.5, BLANK)
    memory.keep([("front", 1000 * MS)], state(7))
    assert [recalled(memory, "front", at) for at in (1000, 1249, 1250, 1750, 1751)] == [0, 0, 7, 7, 0]


def test_every_camera_has_its_own_past() -> None:
    memory = PictureMemory(0.5, BLANK)
    memory.keep([("left", 0), ("right", 10 * MS)], state(1, 2))
    found = memory.recall([("right", 500 * MS), ("back", 500 * MS), ("left", 500 * MS)])
    assert [each[:, 0, 0, 0].tolist() for each in found] == [[2, 0, 1]] * 2


def test_a_stamp_that_jumps_back_has_no_past_and_ends_what_came_after_it() -> None:
    memory = PictureMemory(0.5, BLANK)
    for number in range(1, 20):
        memory.keep([("front", 100 * number * MS)], state(number))
    memory.keep([("front", 300 * MS)], state(30))
    assert recalled(memory, "front", 800) == 30
    assert recalled(memory, "front", 400) == 0


def test_what_is_kept_is_a_copy_and_no_more_than_is_needed() -> None:
    memory = PictureMemory(0.5, BLANK)
    reused = state(1)[0].clone(), state(1)[1].clone()
    for number in range(1000):
        memory.keep([("front", 100 * number * MS)], reused)
    for each in reused:
        each.fill_(5)
    assert recalled(memory, "front", 100_400) == 1
    assert len(memory._kept["front"]) == 8


def test_nothing_is_left_when_it_is_cleared_and_nothing_kept_without_a_hop() -> None:
    memory = PictureMemory(0.5, BLANK)
    memory.keep([("front", 0)], state(1))
    memory.clear()
    assert recalled(memory, "front", 500) == 0
    none = PictureMemory(0.0, ())
    none.keep([("front", 0)], ())
    assert none.recall([("front", 500 * MS)]) == ()
    assert memory.recall([]) == ()
