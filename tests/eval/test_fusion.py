# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Boxes and maps of many frames: as a whole, by class, by distance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kestrel.classes import ATTRIBUTES, DETECTION_CLASSES, MAP_LAYERS
from kestrel.eval.detection import BoxTable
from kestrel.eval.fusion import ScoredFrame, by_class, by_range, compare, range_precision, summary
from kestrel.types import BevMap, Boxes3D

CAR, PEDESTRIAN = DETECTION_CLASSES.index("car"), DETECTION_CLASSES.index("pedestrian")


def boxes(*places: tuple[float, float], label: int = CAR) -> Boxes3D:
    count = len(places)
    return Boxes3D(
        center=np.array([(x, y, 0.8) for x, y in places], np.float32).reshape(-1, 3),
        size=np.tile(np.array([4.5, 1.9, 1.6], np.float32), (count, 1)),
        yaw=np.zeros(count, np.float32),
        velocity=np.zeros((count, 2), np.float32),
        label=np.full(count, label, np.int64),
        score=np.linspace(1, 0.5, count, dtype=np.float32),
        class_names=DETECTION_CLASSES,
        frame_id="base_link",
        stamp_ns=0,
    )


def frame(truth: Boxes3D, found: Boxes3D, map_truth: np.ndarray, answer: np.ndarray) -> ScoredFrame:
    bev_map = BevMap(answer.astype(np.float32), MAP_LAYERS, (-50.0, -50.0), 0.5, "base_link", 0)
    return compare(truth, map_truth, found, bev_map)


@pytest.fixture
def road() -> np.ndarray:
    truth = np.zeros((len(MAP_LAYERS), 200, 200), bool)
    truth[0, :, 90:110] = True
    return truth


def test_perfect_answers_lose_nothing_but_the_attributes_that_the_truth_has_not(road: np.ndarray) -> None:
    truth = boxes((5, 0), (25, 3))
    values = summary([frame(truth, truth, road, road)])
    assert [values[name] for name in ("mAP", "map_miou", "map_miou_best")] == pytest.approx([1, 1, 1])
    assert values["mATE"] == values["mAVE"] == pytest.approx(0)
    assert values["mAAE"] == 1
    assert values["NDS"] == pytest.approx(0.9)  # (5 + 4 of 5 errors) / 10


@pytest.mark.parametrize(("speed", "wrong"), [(0.1, 0.0), (0.3, 1.0)])
def test_what_nobody_named_parked_is_so_where_it_stands(road: np.ndarray, speed: float, wrong: float) -> None:
    named = np.full(1, ATTRIBUTES.index("vehicle.parked"))
    truth = replace(boxes((5, 0)), attribute=named)
    found = replace(boxes((5, 0)), velocity=np.array([[0, speed]], np.float32))
    assert summary([frame(truth, found, road, road)])["mAAE"] == wrong
    told = replace(found, attribute=named)
    assert summary([frame(truth, told, road, road)])["mAAE"] == 0


def test_the_mean_is_over_the_classes_and_layers_that_the_truth_has(road: np.ndarray) -> None:
    found = by_class([frame(boxes((5, 0)), boxes((5, 0)), road, road)])
    assert found == {
        "ap/car": pytest.approx(1),
        "ap2m/car": pytest.approx(1),
        "iou/drivable_area": pytest.approx(1),
    }


def test_a_range_scores_its_own_boxes_and_its_own_part_of_the_map(road: np.ndarray) -> None:
    answer = road.copy()
    answer[:, :40] = answer[:, 160:] = False  # nothing of the road beyond 30 m ahead or behind
    values = by_range([frame(boxes((5, 0), (25, 0)), boxes((5, 0)), road, answer)])
    assert values["0-10 m"]["ap/car"] == pytest.approx(1)
    assert values["0-10 m"]["map_miou"] == pytest.approx(1)
    assert values["20-30 m"]["ap/car"] == 0
    assert values["20-30 m"]["map_miou"] == pytest.approx(1)
    assert set(values["30-50 m"]) == {"map_miou", "map_miou_best"}  # no car is there to be found
    assert values["30-50 m"]["map_miou"] < 0.01
    assert "mAP" not in values["10-20 m"]


def test_a_box_that_is_found_across_the_edge_of_a_range_is_found_in_the_range_of_the_true_one() -> None:
    truth, found = (BoxTable.from_frames([boxes(place)]) for place in ((10.2, 0), (9.9, 0)))
    precision, count = range_precision(truth, found)
    assert count[:, CAR].tolist() == [0, 1, 0, 0]
    assert precision[1, CAR] == pytest.approx(1)
    assert precision[0, CAR].tolist() == [0, 0, 0, 0]


def test_a_false_alarm_lowers_the_precision_of_the_range_where_it_is() -> None:
    truth = BoxTable.from_frames([boxes((5, 0), (25, 0))])
    found = BoxTable.from_frames([boxes((20, 12), (5, 0), (25, 0))])  # the best of them is none, 23 m away
    precision, _ = range_precision(truth, found)
    assert precision[0, CAR] == pytest.approx(1)
    assert (precision[2, CAR] < 0.5).all()


def test_boxes_beyond_the_range_of_their_class_are_in_no_range() -> None:
    far = BoxTable.from_frames([boxes((45, 0), label=PEDESTRIAN)])
    assert range_precision(far, far)[1].sum() == 0


def test_errors_that_no_class_has_leave_the_other_figures_defined(road: np.ndarray) -> None:
    cones = boxes((5, 0), (15, 3), label=DETECTION_CLASSES.index("traffic_cone"))
    values = summary([frame(cones, cones, road, road)])
    assert not {"mAOE", "mAVE"} & values.keys()
    assert values["NDS"] == pytest.approx(0.7)  # (5 + 2 of 5 errors) / 10, as the devkit has it
