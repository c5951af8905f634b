# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Raw labels of the data sets as classes, and the classes of one data set as those of another."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from kestrel.classes import IGNORE, POINT_CLASSES, SEMANTIC_KITTI_CLASSES
from kestrel.errors import InputError
from kestrel.label_maps import (
    KITTI_OF_POINT_CLASS,
    LIDARSEG_RAW_LABELS,
    OFFICIAL_RAW_LABELS,
    POINT_CLASS_OF_KITTI,
    SPVNAS_RAW_LABELS,
    class_of_raw,
)
from kestrel.sim.semantics import POINT_CLASS_TABLE, SEMANTIC_KITTI_TABLE, Semantic

KITTI, LIDARSEG = SEMANTIC_KITTI_CLASSES, POINT_CLASSES


def kitti(raw: int, labels: dict[str, tuple[int, ...]]) -> str | None:
    index = int(class_of_raw(np.array([raw], np.uint16), labels, KITTI)[0])
    return None if index == IGNORE else KITTI[index]


@pytest.mark.skipif("KESTREL_PARITY" not in os.environ, reason="KESTREL_PARITY names no folder of fixtures")
def test_the_map_of_spvnas_is_that_of_its_release():
    facts = json.loads((Path(os.environ["KESTREL_PARITY"]) / "facts.json").read_text())[
        "semantickitti_spvnas"
    ]
    for raw, index in facts["raw_label_to_train_id"].items():
        name = facts["train_id_to_name"].get(str(index))
        assert kitti(int(raw), SPVNAS_RAW_LABELS) == name, raw


@pytest.mark.parametrize(
    ("raw", "spvnas", "official"),
    [
        (10, "car", "car"),
        (13, None, "other-vehicle"),
        (256, None, "other-vehicle"),
        (60, None, "road"),
        (52, None, None),
        (99, None, None),
        (0, None, None),
    ],
)
def test_the_two_maps_of_semantickitti_differ_in_buses_rail_and_lane_markings_alone(raw, spvnas, official):
    assert kitti(raw, SPVNAS_RAW_LABELS) == spvnas
    assert kitti(raw, OFFICIAL_RAW_LABELS) == official


def test_every_class_has_raw_labels_and_no_raw_label_two_classes():
    for labels, classes in (
        (SPVNAS_RAW_LABELS, KITTI),
        (OFFICIAL_RAW_LABELS, KITTI),
        (LIDARSEG_RAW_LABELS, LIDARSEG),
    ):
        assert set(labels) == set(classes)
        values = [value for group in labels.values() for value in group]
        assert len(values) == len(set(values))


def test_the_lidarseg_challenge_ignores_eleven_of_the_raw_classes():
    found = class_of_raw(np.arange(32, dtype=np.uint8), LIDARSEG_RAW_LABELS, LIDARSEG)
    assert np.flatnonzero(found == IGNORE).tolist() == [0, 1, 5, 7, 8, 10, 11, 13, 19, 20, 29, 31]


def test_labels_with_instance_numbers_are_refused():
    with pytest.raises(InputError, match="raw labels"):
        class_of_raw(np.array([10 | 7 << 16], np.uint32), SPVNAS_RAW_LABELS, KITTI)


@pytest.mark.parametrize("semantic", Semantic)
def test_what_the_simulator_calls_a_surface_agrees_with_the_maps_between_the_benchmarks(semantic):
    lidarseg, semantic_kitti = POINT_CLASS_TABLE[semantic], SEMANTIC_KITTI_TABLE[semantic]
    if IGNORE not in (semantic_kitti, POINT_CLASS_OF_KITTI[semantic_kitti]):
        assert POINT_CLASS_OF_KITTI[semantic_kitti] == lidarseg
    if IGNORE not in (lidarseg, KITTI_OF_POINT_CLASS[lidarseg]):
        assert KITTI_OF_POINT_CLASS[lidarseg] == semantic_kitti


def test_only_what_is_ambiguous_or_unknown_has_no_counterpart():
    without = [name for i, name in enumerate(KITTI) if POINT_CLASS_OF_KITTI[i] == IGNORE]
    assert without == ["other-vehicle"]
    without = [name for i, name in enumerate(LIDARSEG) if KITTI_OF_POINT_CLASS[i] == IGNORE]
    ambiguous = ["bicycle", "motorcycle", "driveable_surface", "manmade", "vegetation"]
    assert without == sorted([*ambiguous, "barrier", "traffic_cone"], key=LIDARSEG.index)


def test_the_simulator_has_all_classes_of_both_benchmarks():
    assert set(SEMANTIC_KITTI_TABLE) - {IGNORE} == set(range(len(KITTI)))
    assert set(POINT_CLASS_TABLE) - {IGNORE} == set(range(len(LIDARSEG)))
