# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""CameraInfo is trusted only after every field was checked; pictures come out as from a pinhole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from kestrel.errors import CalibrationError
from kestrel_nodes.calibration import Undistorter, read_camera_info

K = [300.0, 0, 160, 0, 300, 90, 0, 0, 1]
PLUMB_BOB = [-0.25, 0.06, 0.001, -0.001, 0.0]


def camera_info(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "header": SimpleNamespace(frame_id="camera_front_optical"),
        "width": 320,
        "height": 180,
        "distortion_model": "plumb_bob",
        "d": PLUMB_BOB,
        "k": K,
        "r": np.eye(3).ravel(),
        "p": [280.0, 0, 150, 0, 0, 280, 95, 0, 0, 0, 1, 0],
        "binning_x": 0,
        "binning_y": 0,
        "roi": SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0),
    }
    return SimpleNamespace(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"k": [0.0] * 9}, "not calibrated"),
        ({"k": [float("nan"), *K[1:]]}, "9 finite numbers"),
        ({"k": K[:8]}, "9 finite numbers"),
        ({"k": [-300.0, *K[1:]]}, "positive focal lengths"),
        ({"d": PLUMB_BOB[:3]}, "4 or 5 finite numbers for plumb_bob"),
        ({"d": [float("inf"), 0, 0, 0, 0]}, "finite numbers"),
        ({"distortion_model": "equidistant", "d": PLUMB_BOB[:3]}, "4 finite numbers for equidistant"),
        ({"distortion_model": "division"}, "distortion_model.*division"),
        ({"distortion_model": "none"}, "finite numbers for none"),
        ({"width": 0}, "positive"),
        ({"binning_x": 2}, "without binning"),
        ({"roi": SimpleNamespace(x_offset=10, y_offset=0, width=100, height=100)}, "region 100x100"),
        ({"header": SimpleNamespace(frame_id="")}, "frame_id"),
    ],
)
def test_unusable_camera_info_is_refused_with_the_camera_and_the_field(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CalibrationError, match=f"front.*{reason}"):
        read_camera_info("front", camera_info(**changes))


def test_trailing_zeros_of_longer_coefficient_lists_are_cut() -> None:
    intrinsics = read_camera_info("front", camera_info(d=[*PLUMB_BOB[:4], 0.01, 0, 0, 0]))
    assert len(intrinsics.distortion) == 5
    assert not read_camera_info("front", camera_info(distortion_model="", d=[0.0] * 5)).distorted


def test_rectified_pictures_use_p_and_r() -> None:
    turn = cv2.Rodrigues(np.array([0.0, 0.1, 0.0]))[0]
    intrinsics = read_camera_info("front", camera_info(r=turn.ravel()), rectified=True)
    calibration = intrinsics.calibration(np.eye(4))
    assert calibration.camera_matrix[0].tolist() == [280, 0, 150]
    np.testing.assert_allclose(calibration.reference_from_camera[:3, :3], turn.T)
    assert not intrinsics.distorted


@pytest.mark.parametrize(
    ("model", "coefficients"),
    [
        ("plumb_bob", PLUMB_BOB),
        ("rational_polynomial", [0.2, 0.05, 0.001, -0.001, 0.01, 0.5, 0.1, 0.02]),
        ("equidistant", [0.02, -0.01, 0.003, -0.001]),
    ],
)
def test_point_seen_through_the_lens_lands_on_its_pinhole_pixel(
    model: str, coefficients: list[float]
) -> None:
    intrinsics = read_camera_info("front", camera_info(distortion_model=model, d=coefficients))
    point = np.array([[[0.3, 0.15, 1.0]]])
    project = cv2.fisheye.projectPoints if model == "equidistant" else cv2.projectPoints
    zero = np.zeros(3)
    raw = project(point, zero, zero, intrinsics.camera_matrix, intrinsics.distortion)[0]
    picture = np.zeros((180, 320, 3), np.uint8)
    column, row = np.round(raw.ravel()).astype(int)
    cv2.circle(picture, (int(column), int(row)), 3, (255, 255, 255), -1)

    clean = Undistorter()("front", picture, intrinsics)

    found = np.argwhere(clean[..., 0] > 127).mean(axis=0)[::-1]
    np.testing.assert_allclose(found, (300 * 0.3 + 160, 300 * 0.15 + 90), atol=1.0)
    assert np.abs(raw.ravel() - found).max() > 1.0, "the lens of this test must move the point"


def test_picture_of_another_size_than_calibrated_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"front.*320x180.*640x360"):
        Undistorter()("front", np.zeros((360, 640, 3), np.uint8), read_camera_info("front", camera_info()))


def test_tables_are_built_once_per_intrinsics_and_bounded() -> None:
    undistort = Undistorter(capacity=2)
    picture = np.zeros((180, 320, 3), np.uint8)
    for _ in range(3):
        undistort("front", picture, read_camera_info("front", camera_info()))
    assert undistort.built == 1
    for focal in (310.0, 320.0, 330.0):
        changed = camera_info(k=[focal, *K[1:]])
        undistort("front", picture, read_camera_info("front", changed))
    assert undistort.built == 4
    undistort("front", picture, read_camera_info("front", camera_info()))
    assert undistort.built == 5, "the oldest table was to be dropped"


def test_picture_without_distortion_is_passed_through_uncopied() -> None:
    intrinsics = read_camera_info("front", camera_info(d=[0.0] * 5))
    picture = np.zeros((180, 320, 3), np.uint8)
    assert Undistorter()("front", picture, intrinsics) is picture


def test_key_changes_with_any_number_that_matters() -> None:
    base = read_camera_info("front", camera_info()).key
    assert read_camera_info("front", camera_info()).key == base
    changed = [{"d": [-0.26, *PLUMB_BOB[1:]]}, {"k": [301.0, *K[1:]]}, {"width": 322}]
    assert base not in {read_camera_info("front", camera_info(**change)).key for change in changed}
