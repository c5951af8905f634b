# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The fusion node's messages are whole: none lacks a field, and all can be sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rclpy.serialization import deserialize_message, serialize_message
from std_msgs.msg import Header

from kestrel.types import Boxes3D
from kestrel_nodes.fusion_messages import PlacedBox, detections_message, objects_message, place_boxes
from kestrel_nodes.fusion_pictures import markers_message

BOXES = [
    PlacedBox(
        class_name=name,
        score=0.5,
        center=(1.0, 2.0, 3.0),
        quaternion=(0.0, 0.0, 0.6, 0.8),
        size=(4.0, 2.0, 1.5),
        velocity=velocity,
        track_id=track_id,
        num_points=7,
        pose_covariance=np.arange(36.0),
        twist_covariance=np.arange(36.0) / 2,
    )
    for name, velocity, track_id in (("car", (3.0, 4.0, 0.0), 5), ("pedestrian", (0.0, 0.0, 0.0), -1))
]
HEADER = Header(frame_id="base_link")
MESSAGES = [
    detections_message(BOXES, HEADER),
    objects_message(BOXES, HEADER, modality="lidar", used=("lidar",), missing=("front",)),
    markers_message(BOXES, HEADER),
]


def rebuilt(value: Any) -> Any:
    """Return a message whose constructors were all called, with every field of ``value``."""
    if hasattr(value, "get_fields_and_field_types"):
        fields = {name: rebuilt(getattr(value, name)) for name in value.get_fields_and_field_types()}
        return type(value)(**fields, check_fields=True)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [rebuilt(each) for each in value]
    return value


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_has_all_fields_of_the_right_types_and_arrives_as_others_do(message: Any) -> None:
    assert rebuilt(message) == message
    sent, plainly = (
        deserialize_message(serialize_message(each), type(message)) for each in (message, rebuilt(message))
    )
    assert sent == plainly


def test_boxes_are_said_alike_in_detections_and_objects() -> None:
    detections, objects, _ = MESSAGES
    for box, detection, item in zip(BOXES, detections.detections, objects.objects, strict=True):
        assert detection.bbox.center == item.pose.pose
        assert (item.pose.pose.position.x, item.size.y, item.twist.twist.linear.y) == (
            box.center[0],
            box.size[1],
            box.velocity[1],
        )
        assert detection.results[0].hypothesis.class_id == item.class_id == box.class_name
        assert detection.id == ("5" if box.track_id == 5 else "")
        assert (item.track_id, item.num_points) == (box.track_id, 7)
        assert (detection.results[0].pose.covariance == item.pose.covariance).all()
        assert (item.twist.covariance == item.pose.covariance / 2).all()


def test_covariances_turn_with_the_frame_of_the_output_and_are_zero_where_unknown() -> None:
    plain = Boxes3D(
        center=np.zeros((1, 3), np.float32), size=np.ones((1, 3), np.float32), yaw=np.zeros(1, np.float32),
        velocity=np.zeros((1, 2), np.float32), label=np.zeros(1, np.int64), score=np.ones(1, np.float32),
        class_names=("car",), frame_id="base_link", stamp_ns=0,
    )  # fmt: skip
    known = replace(plain, covariance=np.diag([1, 2, 3, 4]).astype(np.float32)[None])
    quarter = np.array([[0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1.0]])

    (box,) = place_boxes(known, quarter)
    assert np.array_equal(box.pose_covariance.reshape(6, 6), np.diag([2, 1, 0, 0, 0, 0]))
    assert np.array_equal(box.twist_covariance.reshape(6, 6), np.diag([4, 3, 0, 0, 0, 0]))
    (box,) = place_boxes(plain, quarter)
    assert not box.pose_covariance.any()
    assert not box.twist_covariance.any()


def test_one_mover_has_an_arrow_as_long_as_its_way_in_a_second() -> None:
    (arrow,) = [marker for marker in MESSAGES[2].markers if marker.ns == "velocities"]
    start, tip = arrow.points
    assert (tip.x - start.x, tip.y - start.y, tip.z - start.z) == (3.0, 4.0, 0.0)
    labels = [marker.text for marker in MESSAGES[2].markers if marker.ns == "labels"]
    assert labels == ["car #5 0.50", "pedestrian 0.50"]
