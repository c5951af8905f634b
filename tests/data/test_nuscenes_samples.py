# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What a recording keeps of the samples of nuScenes comes back as it was, or is refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from kestrel.classes import ATTRIBUTES, NO_ATTRIBUTE
from kestrel.data.bag import deserialize, serialize
from kestrel.data.messages import new
from kestrel.data.nuscenes_samples import Sample, samples_from_message, samples_message
from kestrel.errors import InputError
from tests.eval.made_recording import boxes

RACK = (1.0, 2.0, 0.5, 4.0, 2.0, 2.0, 0.3)
SAMPLE = Sample("token", 1_532_402_927_600_000_000, {"front": 7}, ("vehicle.moving", ""), (RACK,))


def test_samples_come_back_by_stamp() -> None:
    other = Sample("other", 5, {})
    message = samples_message([SAMPLE, other])
    raw = serialize(message)
    assert samples_from_message(deserialize(raw, "std_msgs/msg/String")) == {
        SAMPLE.stamp_ns: SAMPLE,
        5: other,
    }


@pytest.mark.parametrize(
    "change",
    [
        {"token": None, "stamp_ns": "noon"},
        {"pictures": ["front"]},
        {"racks": [[1, 2, 3]]},
        {"stamp_ns": float("inf")},
        {"attributes": 3},
    ],
)
def test_malformed_samples_are_refused(change: dict[str, Any]) -> None:
    text = json.dumps([{**asdict(SAMPLE), **change}])
    with pytest.raises(InputError, match="/truth/samples: expected the samples of a scene"):
        samples_from_message(new("std_msgs/msg/String", data=text))


@pytest.mark.parametrize("text", ["", "{", "7", "[1]", '{"token": 1}'])
def test_text_that_is_no_list_of_samples_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="/truth/samples"):
        samples_from_message(new("std_msgs/msg/String", data=text))


def test_attributes_are_those_of_the_boxes_in_their_order() -> None:
    truth = SAMPLE.with_attributes(boxes(SAMPLE.stamp_ns, [(5, 0, 0), (9, 0, 0)]))
    assert truth.attribute is not None
    assert truth.attribute.tolist() == [ATTRIBUTES.index("vehicle.moving"), NO_ATTRIBUTE]
    with pytest.raises(InputError, match=r"attributes of sample token .*expected 1, as boxes, found 2"):
        SAMPLE.with_attributes(boxes(SAMPLE.stamp_ns, [(5, 0, 0)]))


def test_cycles_inside_a_rack_are_left_out_and_nothing_else() -> None:
    places = [(1.0, 2.0, 0.5), (1.0, 2.0, 0.5), (6.0, 2.0, 0.5)]
    found = SAMPLE.counted(boxes(SAMPLE.stamp_ns, places, names=("bicycle", "car", "bicycle")))
    assert found.center[:, 0].tolist() == [1.0, 6.0]
    assert [found.class_names[label] for label in found.label] == ["car", "bicycle"]
