# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Rigs drawn at random: every seed gives one that can be simulated, and they differ in what matters."""

import numpy as np
import pytest

from kestrel.errors import ConfigError
from kestrel.sim.rig import load_rig
from kestrel.sim.splits import drives

SEEDS = range(300)


@pytest.fixture(scope="module")
def rigs():
    return [load_rig(f"drawn:{seed}") for seed in SEEDS]


def test_a_seed_always_draws_the_same_rig_and_another_seed_another(rigs):
    again = load_rig("drawn:7")
    assert again.name == rigs[7].name == "drawn_7"
    for one, other in zip(again.cameras, rigs[7].cameras, strict=True):
        np.testing.assert_array_equal(one.base_from_camera, other.base_from_camera)
        np.testing.assert_array_equal(one.camera_matrix, other.camera_matrix)
    heights = {rig.lidar.base_from_lidar[2, 3] for rig in rigs}
    assert len(heights) > len(rigs) * 0.9


def test_rigs_have_one_to_eight_cameras_of_many_lenses_and_lidars_of_many_beams(rigs):
    assert {len(rig.cameras) for rig in rigs} == set(range(1, 9))
    assert {len(rig.lidar.elevation_rad) for rig in rigs} == {16, 32, 40, 64, 128}
    focal = np.concatenate(
        [[camera.calibration((352, 128)).camera_matrix[0, 0] for camera in rig.cameras] for rig in rigs]
    )
    view_deg = np.degrees(2 * np.arctan(352 / 2 / focal))
    assert view_deg.min() < 55
    assert view_deg.max() > 105
    heights = [rig.cameras[0].base_from_camera[2, 3] for rig in rigs]
    assert min(heights) < 0.8
    assert max(heights) > 2.5


def test_the_first_camera_looks_ahead_and_the_lidar_sits_above_all(rigs):
    for rig in rigs:
        assert rig.cameras[0].name == "front"
        ahead = rig.cameras[0].base_from_camera[:3, 2]  # optical z
        assert ahead[0] > np.cos(np.radians(15))
        top = max(camera.base_from_camera[2, 3] for camera in rig.cameras)
        assert rig.lidar.base_from_lidar[2, 3] > top


def test_four_cameras_or_more_look_to_all_sides_and_fewer_to_both(rigs):
    several = [rig for rig in rigs if len(rig.cameras) >= 3]
    assert several
    for rig in several:
        left = np.array([camera.base_from_camera[1, 2] for camera in rig.cameras])
        assert left.max() > 0.3
        assert left.min() < -0.3


def test_corners_of_distorted_pictures_move_in_by_a_tenth_at_most(rigs):
    bent = [camera for rig in rigs for camera in rig.cameras if camera.distortion_model == "plumb_bob"]
    assert bent
    for camera in bent:
        corner = (camera.width**2 + camera.height**2) / 4 / camera.camera_matrix[0, 0] ** 2
        assert -0.101 <= camera.distortion[0] * corner < 0


def test_a_split_of_drawn_rigs_has_another_in_each_drive():
    names = [drive.rig for drive in drives("train_cameras_drawn", 20)]
    assert len(set(names)) == 20
    assert all(load_rig(name).cameras for name in names)


@pytest.mark.parametrize("name", ["drawn:", "drawn:-1", "drawn:x", "drawn:1.5", "drawn"])
def test_a_drawn_rig_has_a_whole_seed(name):
    with pytest.raises(ConfigError, match="drawn:SEED"):
        load_rig(name)
