# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""CameraInfo is trusted only after every field was checked; pictures come out as from a pinhole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from kestrel.data.camera_info import read_camera_info
from kestrel.data.undistorter import Undistorter
from kestrel.errors import CalibrationError

K = [300.0, 0, 160, 0, 300, 90, 0, 0, 1]
PLUMB_BOB = [-0.25, 0.06, 0.001, -0.001, 0.0]


def region(x: int, y: int, width: int, height: int) -> SimpleNamespace:
    return SimpleNamespace(x_offset=x, y_offset=y, width=width, height=height)


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
        "roi": region(0, 0, 0, 0),
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
        ({"d": [], "distortion_model": "rational_polynomial"}, "8 finite numbers for rational_polynomial"),
        ({"d": [], "distortion_model": "fisheye"}, "4 finite numbers for equidistant"),
        ({"binning_y": 200}, "roi: .*320x180 at 0, 0, binning 1x200"),
        ({"roi": region(300, 0, 100, 100)}, "roi: expected pixels within 320x180, found 100x100 at 300, 0"),
        ({"roi": region(10, 0, 0, 0)}, "roi: .*0x0 at 10, 0"),
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
    twelve = camera_info(distortion_model="rational_polynomial", d=[*PLUMB_BOB, 0.01, 0.02, 0.03, *[0.0] * 4])
    assert read_camera_info("front", twelve).distortion.tolist() == [*PLUMB_BOB, 0.01, 0.02, 0.03]


@pytest.mark.parametrize(
    ("model", "coefficients"),
    [("", [0.0] * 5), ("plumb_bob", []), ("plumb_bob", [0.0] * 5), ("rational_polynomial", [0.0] * 12)],
)
def test_without_coefficients_there_is_no_distortion(model: str, coefficients: list[float]) -> None:
    intrinsics = read_camera_info("front", camera_info(distortion_model=model, d=coefficients))
    assert intrinsics.distortion_model == "none"
    assert len(intrinsics.distortion) == 0


def test_fisheye_is_a_name_of_equidistant_and_no_pinhole_without_coefficients() -> None:
    intrinsics = read_camera_info("front", camera_info(distortion_model="fisheye", d=[0.0] * 4))
    assert intrinsics.distortion_model == "equidistant"
    picture = np.zeros((180, 320, 3), np.uint8)
    # What is 0.4 to the right at 1 ahead is seen where the angle says, and belongs where the tangent says.
    cv2.circle(picture, (160 + round(300 * np.arctan(0.4)), 90), 3, (255, 255, 255), -1)
    clean = Undistorter()("front", picture, intrinsics)
    found = np.argwhere(clean[..., 0] > 127).mean(axis=0)[::-1]
    np.testing.assert_allclose(found, (160 + 300 * 0.4, 90), atol=1.0)


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize(
    ("changes", "sent"),
    [
        ({"roi": region(0, 0, 320, 180), "binning_x": 1, "binning_y": 1}, (0, 0, 320, 180, 1, 1)),
        ({"roi": region(40, 20, 200, 100)}, (40, 20, 200, 100, 1, 1)),
        ({"binning_x": 2, "binning_y": 3}, (0, 0, 320, 180, 2, 3)),
        ({"roi": region(40, 20, 201, 100), "binning_x": 2, "binning_y": 2}, (40, 20, 201, 100, 2, 2)),
    ],
)
def test_a_point_is_where_region_and_binning_put_its_pixel(
    changes: dict[str, Any], sent: tuple[int, ...], rectified: bool
) -> None:
    """The reference is the pixel of the full picture: which pixel of what is sent holds its light?"""
    x, y, width, height, across, down = sent
    whole = read_camera_info("front", camera_info(), rectified=rectified)
    part = read_camera_info("front", camera_info(**changes), rectified=rectified)
    assert (part.width, part.height) == (width // across, height // down)
    point = np.array([0.1, 0.05, 1.0])
    column, row, _ = whole.camera_matrix @ point
    # Pixel i covers i - 0.5 .. i + 0.5.
    expected = ((column - x + 0.5) / across - 0.5, (row - y + 0.5) / down - 0.5)
    np.testing.assert_allclose((part.camera_matrix @ point)[:2], expected)
    assert part.distortion.tolist() == whole.distortion.tolist()


def test_a_region_is_undistorted_as_the_full_picture_is() -> None:
    rows, columns = np.mgrid[:180, :320]
    full = np.stack([columns / 320, rows / 180, np.sin(columns / 9) / 2 + 0.5], -1)
    picture = (255 * full).astype(np.uint8)
    clean = Undistorter()("front", picture, read_camera_info("front", camera_info()))
    part = read_camera_info("front", camera_info(roi=region(40, 20, 200, 120)))
    cut = Undistorter()("front", np.ascontiguousarray(picture[20:140, 40:240]), part)
    difference = np.abs(cut.astype(int) - clean[20:140, 40:240])[10:-10, 10:-10]
    assert difference.max() <= 1
    moved = np.abs(clean.astype(int) - picture)[30:130, 50:230]
    assert moved.max() > 5, "the lens of this test must move something"


def test_rectified_pictures_use_p_and_r() -> None:
    turn = cv2.Rodrigues(np.array([0.0, 0.1, 0.0]))[0]
    intrinsics = read_camera_info("front", camera_info(r=turn.ravel()), rectified=True)
    calibration = intrinsics.calibration(np.eye(4))
    assert calibration.camera_matrix[0].tolist() == [280, 0, 150]
    np.testing.assert_allclose(calibration.reference_from_camera[:3, :3], turn.T)
    assert intrinsics.distortion_model == "none"


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
