# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""When a replay sends the next message, on a clock that is driven."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip("rclpy")

from kestrel.data.messages import Source
from kestrel_nodes.replay.pacing import Answers, Pace

EPOCH = 1_700_000_000 * 10**9


class Now:
    """A clock that is driven."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def never() -> bool:
    return False


def test_pace_maps_time_at_its_rate_and_goes_on_after_a_pause():
    now = Now()
    pace = Pace(0.5, EPOCH, now=now)
    assert pace.left_s(EPOCH + 10**9) == pytest.approx(2.0)
    now.seconds += 1.0
    assert pace.bag_ns == EPOCH + 5 * 10**8
    now.seconds += 7.0
    pace.resume(EPOCH + 10**9)
    assert pace.left_s(EPOCH + 2 * 10**9) == pytest.approx(2.0)


def test_waiting_ends_with_the_answer_of_the_same_stamp():
    now = Now()
    answers = Answers(timeout_s=5.0, now=now)
    answers.connect("/fusion", [("/lidar/points", False)])
    answers.sent("/lidar/points", Source(10, "lidar"))
    answers.received("/fusion", Source(9, "base_link"))
    answers.received("/video", Source(10, "base_link"))
    answer = threading.Thread(target=answers.received, args=("/fusion", Source(10, "base_link")))

    def asked_whether_to_stop() -> bool:
        """Send the answer once the wait has begun; it holds the lock here, so that none comes too early."""
        if answer.ident is None:
            answer.start()
        return False

    assert answers.wait("/lidar/points", asked_whether_to_stop)
    answer.join()
    assert not answers.wait("/lidar/points", never)
    assert answers.counts() == {"/fusion": (1, 1)}


def test_answer_to_an_image_must_be_of_its_camera():
    answers = Answers(now=Now())
    answers.connect("/video", [("/camera/front/image", True), ("/camera/back/image", True)])
    answers.sent("/camera/front/image", Source(10, "front"))
    answers.sent("/camera/back/image", Source(10, "back"))
    answers.received("/video", Source(10, "back"))
    assert answers.counts() == {"/video": (1, 2)}
    assert not answers.wait("/camera/back/image", never)


def test_node_whose_images_were_discovered_before_its_cloud_answers_the_cloud_alone():
    answers = Answers(now=Now())
    answers.connect("/fusion", [("/camera/front/image", True)])
    answers.connect("/video", [("/camera/front/image", True)])
    answers.connect("/fusion", [("/lidar/points", False)])
    answers.connect("/fusion", [("/camera/front/image", True)])  # it was restarted
    answers.sent("/camera/front/image", Source(10, "front"))
    answers.sent("/lidar/points", Source(11, "lidar"))
    answers.received("/video", Source(10, "front"))
    answers.received("/fusion", Source(11, "base_link"))
    assert answers.counts() == {"/video": (1, 1), "/fusion": (1, 1)}
    assert not answers.wait(None, never)


def test_late_answer_still_counts():
    answers = Answers(now=Now())
    answers.connect("/fusion", [("/lidar/points", False)])
    for stamp in (10, 20, 30):
        answers.sent("/lidar/points", Source(stamp, "lidar"))
    answers.received("/fusion", Source(10, "base_link"))
    answers.received("/fusion", Source(30, "base_link"))
    assert answers.counts() == {"/fusion": (2, 3)}


def test_silent_node_is_waited_for_until_patience_ends_and_again_after_it_answers():
    now = Now()
    answers = Answers(timeout_s=5.0, now=now)
    answers.connect("/fusion", [("/lidar/points", False)])

    def waits(stamp: int) -> bool:
        """Whether a replay would wait for the answer to this stamp (which does not come)."""
        answers.sent("/lidar/points", Source(stamp, "lidar"))
        polled = iter([False, True])
        began = answers.wait("/lidar/points", lambda: next(polled))
        now.seconds += 6.0
        answers.wait("/lidar/points", never)
        return began

    def answer(stamp: int) -> None:
        answers.sent("/lidar/points", Source(stamp, "lidar"))
        answers.received("/fusion", Source(stamp, "base_link"))

    assert waits(1)
    assert not waits(2)  # it has never answered: one miss is enough
    answer(3)
    assert [waits(stamp) for stamp in (4, 5, 6, 7)] == [True, True, True, False]
    answer(8)
    assert waits(9)


def test_slow_node_is_given_more_time_than_others():
    now = Now()
    answers = Answers(timeout_s=5.0, now=now)
    answers.connect("/fusion", [("/lidar/points", False)])
    answers.sent("/lidar/points", Source(1, "lidar"))
    now.seconds += 20.0
    answers.received("/fusion", Source(1, "base_link"))
    answers.sent("/lidar/points", Source(2, "lidar"))
    now.seconds += 30.0
    polled = iter([False, True])
    assert answers.wait("/lidar/points", lambda: next(polled)), "an answer may take 3 x 20 s now"
    now.seconds += 31.0
    assert not answers.wait("/lidar/points", never)


def test_a_bag_in_a_loop_sends_the_same_stamps_again():
    answers = Answers(now=Now())
    answers.connect("/fusion", [("/lidar/points", False)])
    for _ in range(2):
        answers.sent("/lidar/points", Source(1, "lidar"))
    answers.received("/fusion", Source(1, "base_link"))
    assert not answers.wait(None, never)
