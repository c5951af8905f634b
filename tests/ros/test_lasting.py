# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Which of the messages that two subscriptions hear of one topic count, whatever their order."""

from __future__ import annotations

import pytest

from kestrel_nodes.lasting import Publications

LIVE, KEPT = "live", "kept"


@pytest.mark.parametrize(
    ("heard", "taken"),
    [
        ([(KEPT, 1), (LIVE, 2), (KEPT, 2)], [1, 2]),
        ([(KEPT, 1), (KEPT, 2), (LIVE, 2)], [1, 2]),
        ([(LIVE, 2), (KEPT, 1)], [2]),
        ([(LIVE, 2), (LIVE, 1)], [2, 1]),
    ],
    ids=["live first", "kept first", "kept is older", "another publisher, whose clock is behind"],
)
def test_each_publication_is_taken_once_and_none_that_was_kept_after_a_newer_one(
    heard: list[tuple[str, int]], taken: list[int]
) -> None:
    publications = Publications()
    took = [
        published_ns
        for how, published_ns in heard
        if (publications.live if how == LIVE else publications.kept)(published_ns)
    ]
    assert took == taken
