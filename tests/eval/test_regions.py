# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What the labels of a recording say nothing of counts neither way."""

from dataclasses import replace

import numpy as np
import pytest

from kestrel.classes import DETECTION_CLASSES
from kestrel.data import perception_messages
from kestrel.data.bag import BagWriter
from kestrel.eval.recording import Answers
from kestrel.eval.score import detection_values
from kestrel.types import Boxes3D
from tests.eval.made_recording import EPOCH, WALL, boxes, values


def test_what_lies_in_a_dont_care_region_counts_neither_way(tmp_path):
    """A false alarm at 10 m would spoil the precision; the truth says it knows nothing around there."""
    path = tmp_path / "out.mcap"
    with BagWriter(path) as bag:
        truth = perception_messages.objects_message(boxes(EPOCH, [(20, 5, 0), (10, 0, 0)], sizes=(4, 4, 2)))
        truth.objects[1].class_id = "dont_care"
        bag.write("/truth/objects", truth, WALL)
        found = boxes(EPOCH, [(20, 5, 0), (10.5, 0.5, 0)])
        bag.write("/fusion/output/objects", perception_messages.objects_message(found), WALL)
    assert values(path)["detection/car/AP_2m"] == pytest.approx(1.0)


def with_regions(truth, *regions):
    """Return true boxes beside regions of which nothing is known: x, y, length, width and yaw of each."""
    count, table = len(regions), np.array(regions, np.float32)
    return Boxes3D(
        center=np.concatenate((truth.center, np.c_[table[:, :2], np.zeros(count, np.float32)])),
        size=np.concatenate((truth.size, np.c_[table[:, 2:4], np.full(count, 10, np.float32)])),
        yaw=np.concatenate((truth.yaw, table[:, 4])),
        velocity=np.concatenate((truth.velocity, np.full((count, 2), np.nan, np.float32))),
        label=np.concatenate((truth.label, np.full(count, len(DETECTION_CLASSES)))),
        score=np.ones(len(truth) + count, np.float32),
        class_names=(*DETECTION_CLASSES, perception_messages.DONT_CARE),
        frame_id="base_link",
        stamp_ns=truth.stamp_ns,
    )


REGION = (20, 10, 60, 10, 0.5)


def test_the_truth_itself_finds_all_that_is_labelled_in_regions_of_which_else_nothing_is_known():
    real = boxes(1, [(20, 10, 0), (11.2, 5, 0), (30, -12, 0)], ("car", "pedestrian", "car"))
    truth = Answers(objects={1: with_regions(real, REGION, (-20, 0, 30, 30, 0))})
    found = detection_values(truth, Answers(objects={1: real}))
    for name in ("mAP", "car/AP", "pedestrian/AP"):
        assert found[f"detection/{name}"][0] == pytest.approx(1.0), name


def test_what_is_found_in_a_region_counts_around_what_is_labelled_there():
    real = boxes(1, [(20, 10, 0), (30, -12, 0)])
    truth = Answers(objects={1: with_regions(real, REGION)})

    def precision(*others):
        places = [*real.center.tolist(), *others]
        found = replace(boxes(1, places), score=np.linspace(0.5, 0.9, len(places), dtype=np.float32))
        return detection_values(truth, Answers(objects={1: found}))["detection/car/AP"][0]

    assert precision((28.8, 14.8, 0)) == pytest.approx(1.0), "in the region, far from what is labelled"
    assert precision((20.9, 10.5, 0)) < 0.9, "the same car again"
    assert precision((30, 0, 0)) < 0.9, "beside the region"
