# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The picture from above and the markers show things where they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from std_msgs.msg import Header
from visualization_msgs.msg import Marker

from kestrel.classes import DETECTION_CLASSES, DETECTION_COLOURS, MAP_COLOURS, MAP_LAYERS
from kestrel.types import BevMap, Boxes3D, Calibration, Image, PointCloud, SensorFrame
from kestrel_nodes.fusion_messages import place_boxes
from kestrel_nodes.fusion_pictures import (
    BACKGROUND,
    POINT_GREY,
    draw_from_above,
    draw_overlay,
    markers_message,
)


def boxes(*rows: tuple[float, float, float, float]) -> Boxes3D:
    """Return cars of 4 x 2 x 1.5 m at (x, y, yaw) with a score."""
    table = np.array(rows, np.float32).reshape(-1, 4)
    count = len(table)
    return Boxes3D(
        center=np.concatenate((table[:, :2], np.ones((count, 1), np.float32)), axis=1),
        size=np.tile(np.array([4, 2, 1.5], np.float32), (count, 1)),
        yaw=table[:, 2].copy(),
        velocity=np.full((count, 2), np.nan, np.float32),
        label=np.zeros(count, np.int64),
        score=table[:, 3].copy(),
        class_names=DETECTION_CLASSES,
        frame_id="base_link",
        stamp_ns=1,
    )


def bev_map() -> BevMap:
    """Return 40 m x 20 m around the vehicle; one certain cell at x 15..15.5, y -5..-4.5."""
    probability = np.zeros((len(MAP_LAYERS), 80, 40), np.float32)
    probability[0, 70, 10] = 1.0
    return BevMap(probability, MAP_LAYERS, (-20.0, -10.0), 0.5, "base_link", 1)


def pixel(x: float, y: float) -> tuple[int, int]:
    """Return (row, column) of a position at 8 pixels per metre."""
    return int((20 - x) * 8), int((10 - y) * 8)


def test_map_points_and_boxes_are_drawn_at_their_place_with_x_up_and_y_left() -> None:
    cloud = PointCloud(np.array([[-12.0, 6.0, 0.0, 0.1], [500.0, 0, 0, 0]], np.float32), 1, "base_link")
    canvas = draw_from_above(boxes((10, 3, np.pi / 2, 0.9)), bev_map(), cloud)
    assert canvas.shape == (320, 160, 3)
    drivable = canvas[pixel(15.25, -4.75)]
    assert np.abs(drivable - np.array(MAP_COLOURS["drivable_area"]) * 0.75).max() < 12
    assert tuple(canvas[pixel(-12, 6)]) == POINT_GREY
    side_of_box, inside_of_box = canvas[pixel(9, 4)], canvas[pixel(10.5, 4.0)]
    assert tuple(side_of_box) == DETECTION_COLOURS["car"], "turned by 90 degrees it is 2 m long along x"
    assert tuple(inside_of_box) == BACKGROUND


def test_boxes_below_the_score_are_not_drawn() -> None:
    uncertain, empty = boxes((10, 3, 0, 0.2)), boxes()
    drawn = draw_from_above(uncertain, bev_map(), None, minimum_score=0.3)
    np.testing.assert_array_equal(drawn, draw_from_above(empty, bev_map(), None))


def test_markers_begin_with_delete_all_and_outline_every_box() -> None:
    placed = place_boxes(boxes((10, 3, np.pi / 2, 0.9), (0, 0, 0, 0.5)), np.eye(4))
    first, *rest = markers_message(placed, Header(frame_id="base_link")).markers
    assert first.action == Marker.DELETEALL
    (outline,) = [marker for marker in rest if marker.type == Marker.LINE_LIST]
    corners = np.array([(point.x, point.y, point.z) for point in outline.points])
    assert len(corners) == 2 * 24, "12 edges with two ends for each box"
    np.testing.assert_allclose(corners[:24].min(axis=0), (9, 1, 0.25), atol=1e-6)
    np.testing.assert_allclose(corners[:24].max(axis=0), (11, 5, 1.75), atol=1e-6)
    lengths = np.linalg.norm(corners[::2] - corners[1::2], axis=1)
    assert sorted(set(np.round(lengths, 3))) == [1.5, 2.0, 4.0]
    assert len({(marker.ns, marker.id) for marker in rest}) == len(rest), "no marker replaces another"
    assert not any(marker.type == Marker.ARROW for marker in rest), "an unknown velocity has no arrow"


def test_place_boxes_turns_unknown_velocity_into_unknown_velocity() -> None:
    quarter = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    (placed,) = place_boxes(boxes((10, 3, 0, 0.9)), quarter)
    assert np.isnan(placed.velocity[:2]).all()
    assert placed.center == pytest.approx((-3, 10, 1))
    assert place_boxes(boxes(), quarter) == []


def test_an_overlay_has_what_moves_where_it_is_by_the_time_of_its_picture() -> None:
    pose = np.array([[0, 0, 1, 1.5], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]], float)
    lens = Calibration(np.array([[200.0, 0, 160], [0, 200.0, 90], [0, 0, 1]]), 320, 180, pose)
    picture = np.zeros((180, 320, 3), np.uint8)
    car = replace(boxes((15, 0, 0, 1)), velocity=np.array([[0, 10]], np.float32))

    def overlay(late_ns: int) -> np.ndarray:
        image = Image(picture, car.stamp_ns + late_ns, "front")
        frame = SensorFrame(car.stamp_ns, "base_link", None, {"front": image}, {"front": lens})
        return draw_overlay("front", frame, car)

    def column(drawn: np.ndarray) -> float:
        return float(drawn[40:].any((0, 2)).nonzero()[0].mean())  # below the name of the camera

    # Half a metre to the left, 11.5 to 15.5 m from the camera: 7 pixels.
    assert column(overlay(0)) - column(overlay(50_000_000)) == pytest.approx(7.5, abs=1.5)
