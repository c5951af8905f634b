# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Answers with numbers that no integer stands for: processors differ in what they would make of them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from kestrel.classes import IGNORE
from kestrel.data.bag import BagMessage, serialize
from kestrel.data.sensor_messages import packed_cloud
from kestrel.eval import baseline
from kestrel.eval.recording import Answers, point_classes
from kestrel.eval.score import map_values

pytestmark = pytest.mark.filterwarnings("error:invalid value encountered in cast")


@pytest.mark.parametrize("lower", [(1e30, -50.0), (-50.0, -1e30), (math.nan, -50.0)])
def test_a_map_far_off_or_nowhere_has_none_of_what_is_there(lower: tuple[float, float]) -> None:
    truth = baseline.straight_road(1)
    found = replace(truth, lower=lower)
    assert map_values(Answers(maps={1: truth}), Answers(maps={1: found}))["map/mIoU"][0] == 0


def test_numbers_that_are_no_class_are_ignored() -> None:
    points = np.zeros(5, [("class_id", "<f4")])
    points["class_id"] = 3, math.nan, -1, 1e30, 250
    cloud = packed_cloud(points, 1, "base_link")
    message = BagMessage("/segmentation/output/points", cloud.__msgtype__, 1, serialize(cloud))
    assert point_classes(message).tolist() == [3, IGNORE, IGNORE, IGNORE, IGNORE]
