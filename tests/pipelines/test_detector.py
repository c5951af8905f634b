# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from kestrel.pipelines.detector import chosen_sweeps

NOW_NS = 10_000_000_000


def _ages_ms(period_ms: float, sweep_s: float, jitter_ms: float = 0.0, sweeps: int = 2) -> list[int]:
    """Return the ages of the sweeps that are chosen of a LiDAR with such a period."""
    noise = np.random.default_rng(0).uniform(-jitter_ms, jitter_ms, 30)
    ages_ms = period_ms * np.arange(30) + noise * (np.arange(30) > 0)
    stamps = [round(NOW_NS - age * 1e6) for age in ages_ms]
    return [round(ages_ms[index]) for index in chosen_sweeps(NOW_NS, stamps, sweeps, sweep_s)]


@pytest.mark.parametrize(
    ("period_ms", "ages_ms"),
    [(50, [200, 400]), (100, [200, 400]), (66.7, [200, 400]), (140, [280, 560]), (500, [500, 1000])],
)
def test_sweeps_lie_as_far_apart_as_the_network_learned_whatever_the_lidar_does(
    period_ms: float, ages_ms: list[int]
) -> None:
    assert _ages_ms(period_ms, 0.2) == ages_ms


def test_sweeps_that_come_a_little_early_or_late_are_chosen_as_if_they_were_in_time() -> None:
    for age, expected in zip(_ages_ms(100, 0.2, jitter_ms=8), (200, 400), strict=True):
        assert abs(age - expected) <= 8


def test_without_a_distance_all_earlier_sweeps_are_good_and_no_stamp_is_taken_twice() -> None:
    assert _ages_ms(50, 0.0, sweeps=3) == [50, 100, 150]
    assert chosen_sweeps(NOW_NS, [NOW_NS + 5, NOW_NS, NOW_NS - 7, NOW_NS - 7, NOW_NS - 9], 5, 0.0) == [2, 4]
    assert chosen_sweeps(NOW_NS, [NOW_NS - 7], 0, 0.0) == []
