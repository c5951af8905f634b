# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What networks see of the pictures of cameras of any shape, however they are mounted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from kestrel.road_view import SKY, road_view, road_window
from kestrel.sim.rig import AXES_FROM_OPTICAL, load_rig
from kestrel.types import Calibration, Float64Array

SEEN = (128, 352)
SHAPES = [(1920, 1080), (1280, 960), (1280, 1024), (1024, 1024), (1080, 1920), (1242, 375), (704, 256)]


def camera(
    width: int, height: int, *, pitch_deg: float = 0.0, roll_deg: float = 0.0, stretch: float = 1.0
) -> Calibration:
    """Return a camera 1.5 m high, 70 degrees wide, that looks ahead; pitch is positive downwards."""
    focal = width / 2 / np.tan(np.radians(35))
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("ZYX", [0, pitch_deg, roll_deg], degrees=True).as_matrix()
    pose[2, 3] = 1.5
    matrix = np.array([[focal, 0, (width - 1) / 2], [0, focal * stretch, (height - 1) / 2], [0, 0, 1]])
    return Calibration(matrix, width, height, pose @ AXES_FROM_OPTICAL)


def pixel(calibration: Calibration, place: tuple[float, float, float]) -> Float64Array:
    optical = np.linalg.inv(calibration.reference_from_camera) @ (*place, 1.0)
    seen: Float64Array = calibration.camera_matrix @ optical[:3] / optical[2]
    return seen[:2]


def horizon(calibration: Calibration) -> float:
    """Return at which share of its height, from its top, a picture shows what is far away ahead."""
    return float((pixel(calibration, (1e6, 0, 0))[1] + 0.5) / calibration.height)


def view(calibration: Calibration) -> Calibration:
    blank = np.zeros((calibration.height, calibration.width, 3), np.uint8)
    shown, seen = road_view(blank, calibration, SEEN)
    assert shown.shape == (*SEEN, 3)
    return seen


@pytest.mark.parametrize(("width", "height"), SHAPES)
@pytest.mark.parametrize("pitch_deg", [-5, 0, 5, 12])
def test_the_horizon_stays_wherever_the_picture_has_it(width: int, height: int, pitch_deg: float) -> None:
    whole = camera(width, height, pitch_deg=pitch_deg)
    assert horizon(view(whole)) > min(SKY, horizon(whole) / (SEEN[0] / SEEN[1] * width / height)) - 0.01


@pytest.mark.parametrize(("width", "height"), [(1280, 960), (1280, 1024), (1024, 1024), (1080, 1920)])
def test_tall_pictures_keep_a_little_sky_and_the_road(width: int, height: int) -> None:
    assert horizon(view(camera(width, height))) == pytest.approx(SKY, abs=0.005)


@pytest.mark.parametrize("rig", ["nuscenes", "kitti"])
def test_pictures_of_the_rigs_of_training_lose_what_they_always_lost(rig: str) -> None:
    for spec in load_rig(rig).cameras:
        rows, columns = road_window(spec.calibration(), SEEN)
        assert rows.stop == spec.delivered[1]
        assert columns.start == (spec.delivered[0] - columns.stop + columns.start) // 2


@pytest.mark.parametrize("name", ["nuscenes", "robotaxi", "drawn:110004", "drawn:110005", "drawn:110010"])
def test_the_simulator_delivers_small_pictures_with_the_same_view(name: str) -> None:
    for spec in load_rig(name).cameras:
        if spec.distortion_model == "none":
            small, seen = spec.calibration(SEEN[::-1]), view(spec.calibration())
            ends = np.array([[-0.5, -0.5], [351.5, 127.5]])
            scale = np.array([seen.width, seen.height]) / SEEN[::-1]
            ends_seen = (ends + 0.5) * scale - 0.5
            for one, other in zip(ends, ends_seen, strict=True):
                ray = np.linalg.inv(small.camera_matrix) @ (*one, 1)
                ray_seen = np.linalg.inv(seen.camera_matrix) @ (*other, 1)
                np.testing.assert_allclose(ray, ray_seen, atol=2.0 / seen.camera_matrix[0, 0])


@pytest.mark.parametrize("stretch", [0.5, 1.0, 16 / 9])
def test_pixels_are_square_once_they_are_resized(stretch: float) -> None:
    seen = view(camera(640, 640, stretch=stretch))
    horizontal = seen.camera_matrix[0, 0] / seen.width * SEEN[1]
    assert seen.camera_matrix[1, 1] / seen.height * SEEN[0] == pytest.approx(horizontal, rel=0.01)


@pytest.mark.parametrize("roll_deg", [0, 3, 90, 93, 180, 176, -90, 270])
@pytest.mark.parametrize(("width", "height"), [(1280, 960), (960, 1280)])
def test_cameras_on_their_side_and_upside_down_are_turned(width: int, height: int, roll_deg: float) -> None:
    """A thing stays where the calibration says, and what is above it is above it in the picture."""
    whole = camera(width, height, roll_deg=roll_deg)
    picture = np.zeros((height, width, 3), np.uint8)
    place = (12.0, 1.0, 1.2)
    column, row = np.round(pixel(whole, place)).astype(int)
    picture[row - 9 : row + 10, column - 9 : column + 10] = 255
    shown, seen = road_view(picture, whole, SEEN)
    found = np.argwhere(shown.min(2) > 128).mean(0)[::-1]
    scale = np.array(SEEN[::-1]) / (seen.width, seen.height)
    np.testing.assert_allclose(found, (pixel(seen, place) + 0.5) * scale - 0.5, atol=1.0)
    assert pixel(seen, (12.0, 1.0, 2.2))[1] < pixel(seen, place)[1] - 10
    assert pixel(seen, (12.0, 2.0, 1.2))[0] < pixel(seen, place)[0] - 10
    assert np.linalg.det(seen.reference_from_camera[:3, :3]) == pytest.approx(1)


@pytest.mark.parametrize("pitch_deg", [90, -90, 80])
def test_a_camera_that_looks_at_the_ground_or_the_sky_has_no_horizon(pitch_deg: float) -> None:
    seen = view(camera(1280, 960, pitch_deg=pitch_deg))
    assert (seen.width, seen.height) == (1280, 465)
    assert seen.camera_matrix[1, 2] == pytest.approx(479.5 - (960 - 465))
