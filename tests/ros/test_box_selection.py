# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Which boxes are published, and under which names."""

from __future__ import annotations

import numpy as np
import pytest

from kestrel.errors import ConfigError
from kestrel.types import Boxes3D
from kestrel_nodes.box_selection import BoxSelection

CLASSES = ("car", "bus", "pedestrian")


def boxes(*rows: tuple[str, float, float]) -> Boxes3D:
    """Return boxes of (class, distance, score)."""
    count = len(rows)
    return Boxes3D(
        center=np.array([[0, -distance, 1] for _, distance, _ in rows], np.float32).reshape(-1, 3),
        size=np.ones((count, 3), np.float32),
        yaw=np.zeros(count, np.float32),
        velocity=np.zeros((count, 2), np.float32),
        label=np.array([CLASSES.index(name) for name, _, _ in rows], np.int64),
        score=np.array([score for _, _, score in rows], np.float32),
        class_names=CLASSES,
        frame_id="base_link",
        stamp_ns=1,
    )


def names(found: Boxes3D) -> list[str]:
    return [found.class_names[label] for label in found.label]


def test_threshold_of_the_class_and_the_range_counts_and_the_default_for_others() -> None:
    selection = BoxSelection.parse(0.3, ["car@30=0.6", "car=0.2", "car@50=0.1"], [])
    given = boxes(("car", 10, 0.25), ("car", 40, 0.5), ("car", 40, 0.6), ("car", 60, 0.15), ("bus", 10, 0.25))
    assert selection(given).score.tolist() == pytest.approx([0.25, 0.6, 0.15])
    assert selection.lowest == 0.1


def test_classes_are_renamed_merged_and_left_out() -> None:
    selection = BoxSelection.parse(0.0, [], ["car=vehicle", "bus=vehicle", "pedestrian="])
    found = selection(boxes(("bus", 1, 0.5), ("pedestrian", 1, 0.9), ("car", 1, 0.5)))
    assert (names(found), found.class_names) == (["vehicle", "vehicle"], ("vehicle",))


def test_nothing_found_stays_nothing() -> None:
    assert len(BoxSelection.parse(0.3, ["car=0.2"], ["car=auto"])(boxes())) == 0


@pytest.mark.parametrize("entry", ["car", "car=", "=0.5", "car=1.5", "car@=0.5", "car@-1=0.5", "car=nan"])
def test_threshold_of_another_form_is_refused_by_its_text(entry: str) -> None:
    with pytest.raises(ConfigError, match="class_thresholds"):
        BoxSelection.parse(0.3, [entry], [])


@pytest.mark.parametrize("entries", [["car"], ["=x"], ["car=a", "car=b"]])
def test_name_of_another_form_is_refused(entries: list[str]) -> None:
    with pytest.raises(ConfigError, match="class_remap"):
        BoxSelection.parse(0.3, [], entries)


def test_class_that_the_network_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigError, match="spaceship"):
        BoxSelection.parse(0.3, ["spaceship=0.5"], []).check_classes(CLASSES)
