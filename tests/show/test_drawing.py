# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What is drawn is where it belongs."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("rerun")
pytest.importorskip("imageio")


from kestrel.classes import DETECTION_COLOURS, MAP_LAYERS
from kestrel.eval.scene import CameraView
from kestrel.show import birdseye, camera, compose, draw
from kestrel.types import BevMap
from tests.show.recordings import EPOCH, LENS, blank, boxes


def test_corners_turn_with_the_box():
    turned = replace(boxes([(10, 5, 1)]), yaw=np.array([np.pi / 2], np.float32))
    found = camera.corners(turned)[0]
    np.testing.assert_allclose(found.min(0), (9, 3, 0.25), atol=1e-5)
    np.testing.assert_allclose(found[list(camera.FRONT), 1], 7.0, atol=1e-5)


def test_box_straight_ahead_is_drawn_around_the_principal_point():
    lines = camera.box_lines(boxes([(15, 0, 1.5)]), LENS)
    assert len(lines) == 12
    pixels = np.concatenate([line for _, line in lines])
    np.testing.assert_allclose((pixels.min(0) + pixels.max(0)) / 2, (160, 90), atol=1e-6)
    # The near face is 11.5 m from the camera and 2 m wide.
    assert np.ptp(pixels[:, 0]) == pytest.approx(200 * 2 / 11.5)


def test_what_is_behind_the_camera_is_not_drawn_and_what_reaches_there_is_cut():
    assert camera.box_lines(boxes([(-15, 0, 1.5)]), LENS) == []
    beside = camera.box_lines(boxes([(2.5, 0, 1.5)]), LENS)
    assert 0 < len(beside) < 12 or np.isfinite(np.concatenate([line for _, line in beside])).all()


def test_lens_distortion_moves_the_box():
    barrel = replace(LENS, distortion_model="plumb_bob", distortion=np.array([-0.3, 0.05, 0, 0, 0]))
    straight = np.concatenate([line for _, line in camera.box_lines(boxes([(12, 4, 1)]), LENS)])
    bent = np.concatenate([line for _, line in camera.box_lines(boxes([(12, 4, 1)]), barrel)])
    assert (np.abs(bent - (160, 90)) < np.abs(straight - (160, 90)) + 1e-9).all()


def test_what_moves_is_drawn_where_it_is_by_the_time_of_the_picture():
    moving = boxes([(15, 0, 1.5), (20, 1, 1)], (10.0, np.nan))
    later = moving.at(EPOCH + 5 * 10**7)
    np.testing.assert_allclose(later.center, moving.center + np.array((0.5, 0, 0)), rtol=1e-6)
    assert later.stamp_ns == EPOCH + 5 * 10**7
    view = CameraView("front", EPOCH + 5 * 10**7, np.zeros((180, 320, 3), np.uint8), None, LENS, None)
    drawn = camera.annotate(view, moving, 320, 180)
    np.testing.assert_array_equal(drawn, camera.annotate(view, later, 320, 180))
    assert (drawn != camera.annotate(replace(view, stamp_ns=EPOCH), moving, 320, 180)).any()


def test_camera_picture_shows_the_box_in_the_colour_of_its_class():
    view = CameraView("front", 0, np.zeros((180, 320, 3), np.uint8), None, LENS, ("cut_in", 0.8))
    picture = camera.annotate(view, boxes([(15, 0, 1.5)]), 320, 180)
    near = picture[70:110, 140:180].reshape(-1, 3)
    assert (np.abs(near.astype(int) - DETECTION_COLOURS["car"]).sum(1) < 60).any()
    assert not camera.annotate(replace(view, event=None), None, 320, 180)[70:110, 140:180].any()


def test_view_from_above_has_ahead_to_the_right_and_left_at_the_top():
    window = birdseye.Window(200, 100, 2.0, 30.0)
    spots = window.place(np.array([(0.0, 0.0), (10.0, 5.0)]))
    np.testing.assert_allclose(spots, [(60, 50), (80, 40)])


def test_map_layer_is_painted_where_its_cells_are():
    probability = np.zeros((len(MAP_LAYERS), 200, 200), np.float32)
    probability[MAP_LAYERS.index("drivable_area"), 120:, 120:] = 1.0  # ahead and to the left
    bev = BevMap(probability, MAP_LAYERS, (-50.0, -50.0), 0.5, "base_link", EPOCH)
    window = birdseye.Window(200, 160, 2.0, 50.0)
    options = {"with_map": True, "with_points": False, "with_boxes": False}
    changed = np.any(
        birdseye.paint(blank(bev_map=bev), window, **options) != birdseye.paint(blank(), window, **options), 2
    )
    columns, rows = np.flatnonzero(changed.any(0)), np.flatnonzero(changed.any(1))
    assert 118 <= columns.min() <= 122
    assert columns.max() == 199
    assert rows.min() == 0
    assert 58 <= rows.max() <= 62


def test_moving_object_has_an_arrow_and_a_standing_one_has_none():
    window = birdseye.Window(200, 100, 2.0, 30.0)
    options = {"with_map": False, "with_points": False, "with_boxes": True}
    still = birdseye.paint(blank(objects=boxes([(10, 5, 0)])), window, **options)
    moving = birdseye.paint(blank(objects=boxes([(10, 5, 0)], velocity=(20.0, 0.0))), window, **options)
    changed = np.flatnonzero((still != moving).any(2).any(0))
    assert changed.max() == pytest.approx(120, abs=3)


@pytest.mark.filterwarnings("error")
def test_what_is_too_far_off_for_whole_pixels_is_not_seen_and_what_is_too_large_covers_all():
    window = birdseye.Window(200, 100, 2.0, 30.0)
    points = np.array([(1e30, 0, 0, 0), (0, -1e30, 0, 0)], np.float32)
    options = {"with_map": False, "with_points": True, "with_boxes": True}
    nothing = birdseye.paint(blank(), window, **options)
    far = blank(points=points, objects=boxes([(1e30, 0, 0), (0, -1e30, 0)]))
    np.testing.assert_array_equal(birdseye.paint(far, window, **options), nothing)
    large = replace(boxes([(0, 0, 0)]), size=np.full((1, 3), 1e12, np.float32))
    assert (birdseye.paint(blank(objects=large), window, **options) != nothing).any(2).mean() > 0.9


def test_dark_colours_are_lightened_and_bright_ones_kept():
    assert draw.visible((255, 158, 0)) == (255, 158, 0)
    dark = draw.visible((0, 0, 230))
    assert 0.3 * dark[0] + 0.59 * dark[1] + 0.11 * dark[2] >= 119
    assert dark[2] > dark[0]


def test_text_outside_of_the_picture_is_cut_off():
    picture = draw.canvas(20, 10)
    draw.write(picture, "outside", (-500, -500))
    assert (picture == draw.canvas(20, 10)).all()
    draw.write(picture, "wide", (10, -4))
    assert (picture != draw.canvas(20, 10)).any()


@pytest.mark.parametrize("shape", [(3000, 1), (1, 3000)])
def test_pictures_of_any_shape_are_shown(shape):
    views = [CameraView(name, 0, np.full((*shape, 3), 90, np.uint8), None, None, None) for name in "abc"]
    assert compose.cameras(replace(blank(), cameras=tuple(views))).any()


def test_pictures_keep_their_proportions_beside_higher_ones():
    shapes = {"square": (100, 100), "wide": (100, 400), "other": (100, 400)}
    views = [
        CameraView(name, 0, np.full((*shape, 3), 90, np.uint8), None, None, None)
        for name, shape in shapes.items()
    ]
    row = compose.cameras(replace(blank(), cameras=tuple(views)))
    width = (compose.WIDTH - 2 * compose.GAP) // 3
    column = row[:, width + compose.GAP + width // 2]
    assert len(row) == 480
    assert (column == 90).all(1).sum() == pytest.approx(width / 4, abs=1)
