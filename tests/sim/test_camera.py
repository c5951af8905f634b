# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kestrel.errors import CalibrationError
from kestrel.sim.drive import simulate
from kestrel.sim.lens import pixel_directions, project
from kestrel.sim.rig import load_rig
from kestrel.sim.samples import CameraSample
from kestrel.sim.semantics import Semantic
from tests.sim.street import MOVING, PARKED, Street, daylight

LENSES = {
    "none": [],
    "plumb_bob": [-0.28, 0.07, 0.0002, -0.0004, 0.01],
    "equidistant": [-0.02, 0.004, -0.002, 0.0003],
}


def with_lens(rig, model):
    cameras = tuple(
        replace(camera, distortion_model=model, distortion=np.array(LENSES[model])) for camera in rig.cameras
    )
    return replace(rig, cameras=cameras)


def pictures(world, rig=None, size=(352, 128), cameras=("front",), seconds=0.1, **options):
    rig = rig or load_rig("nuscenes")
    samples = simulate(world, rig, seconds=seconds, image_size=size, cameras=cameras, **options)
    return [sample for sample in samples if isinstance(sample, CameraSample)]


def test_delivered_picture_is_the_native_one_scaled_with_its_top_cut_off():
    camera = load_rig("nuscenes").cameras[0]
    matrix = camera.calibration((704, 256)).camera_matrix
    assert matrix[0, 0] == pytest.approx(1266 * 0.44)
    assert matrix[0, 2] == pytest.approx((704 - 1) / 2)
    assert matrix[1, 2] == pytest.approx((900 * 0.44 - 1) / 2 - 140)


@pytest.mark.parametrize("model", list(LENSES))
def test_pixels_look_where_camera_info_says(model):
    calibration = with_lens(load_rig("nuscenes"), model).cameras[0].calibration((352, 128))
    directions = pixel_directions(calibration).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1, atol=1e-6)
    pixels = project(directions.reshape(-1, 3), calibration).reshape(128, 352, 2)
    columns, rows = np.meshgrid(np.arange(352), np.arange(128))
    np.testing.assert_allclose(pixels, np.stack([columns, rows], -1), atol=0.01)


def test_lens_that_folds_the_picture_is_refused():
    camera = load_rig("nuscenes").cameras[0]
    folded = replace(camera, distortion_model="plumb_bob", distortion=np.array([-3.0, 0, 0, 0, 0]))
    with pytest.raises(CalibrationError, match="lens distortion"):
        pixel_directions(folded.calibration((352, 128)))


@pytest.mark.parametrize("model", list(LENSES))
def test_projected_car_lands_on_its_pixels(model):
    world = Street(car=(14.0, 1.0), ego_speed=5.0)
    sample = pictures(world, with_lens(load_rig("nuscenes"), model))[0]
    time_s = (sample.stamp_ns % 1_000_000_000) / 1e9
    camera_from_map = np.linalg.inv(
        world.ego(time_s).map_from_base @ sample.calibration.reference_from_camera
    )
    for state in world.actor_states(time_s):
        size = world.actors[state.track_id].size
        grid = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 15)] * 3), -1).reshape(-1, 3) * size
        grid[:, 2] += size[2] / 2
        cosine, sine = np.cos(state.yaw), np.sin(state.yaw)
        turned = grid @ np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]]) + state.position
        seen = project(turned @ camera_from_map[:3, :3].T + camera_from_map[:3, 3], sample.calibration)
        rows, columns = np.nonzero(sample.instance == state.track_id)
        low, high = np.array([columns.min(), rows.min()]), np.array([columns.max(), rows.max()])
        limit = np.array([sample.calibration.width - 1, sample.calibration.height - 1])
        np.testing.assert_allclose(low, np.clip(seen.min(0), 0, limit), atol=1.5)
        np.testing.assert_allclose(high, np.clip(seen.max(0), 0, limit), atol=1.5)


def test_semantics_and_instances_agree():
    sample = pictures(Street())[0]
    assert set(np.unique(sample.instance)) == {0, MOVING, PARKED}
    assert (sample.semantic[sample.instance > 0] == Semantic.CAR).all()
    assert (sample.semantic[sample.instance == 0] != Semantic.CAR).all()
    assert sample.semantic[-1].min() == sample.semantic[-1].max() == Semantic.ROAD


def test_sky_is_blue_and_the_car_is_red():
    sample = pictures(Street(), size=(352, 198), cameras=("back", "front"))
    back, front = sample[-1], sample[0]
    views = {view.name: view for view in (back, front)}
    sky = views["back"].image.data[views["back"].semantic == Semantic.SKY].mean(0)
    car = views["front"].image.data[views["front"].instance == MOVING].mean(0)
    assert sky[2] > sky[0]
    assert car[0] > 2 * car[1]


@pytest.mark.parametrize(
    ("sun_y", "dark_point", "lit_point"),
    [
        pytest.param(0.7, (13.0, 0.3, 0.0), (13.0, -1.5, 0.0), id="moving car"),
        pytest.param(-0.7, (15.0, -4.5, 0.0), (15.0, -3.0, 0.0), id="parked car"),
    ],
)
def test_cars_throw_shadows_away_from_the_sun(sun_y, dark_point, lit_point):
    sun = np.array([0.0, sun_y, 0.714], np.float32)
    sample = pictures(
        Street(car=(13.0, 3.0), car_velocity=(0.0, -0.001), weather=daylight(sun_direction=sun))
    )[0]

    def brightness(point):
        camera_from_base = np.linalg.inv(sample.calibration.reference_from_camera)
        seen = camera_from_base[:3, :3] @ point + camera_from_base[:3, 3]
        column, row = np.round(project(seen[None], sample.calibration)[0]).astype(int)
        patch = slice(row - 1, row + 2), slice(column - 2, column + 3)
        assert (sample.semantic[patch] == Semantic.ROAD).all()
        return float(sample.image.data[patch].mean())

    assert brightness(np.array(dark_point)) < 0.8 * brightness(np.array(lit_point))


def test_fog_hides_the_distance():
    def contrast(weather):
        sample = pictures(Street(weather=weather))[0]
        return float(sample.image.data[sample.semantic == Semantic.BUILDING].std())

    assert contrast(daylight(fog_per_m=0.1)) < 0.5 * contrast(daylight())


def test_cameras_are_triggered_at_their_own_phase():
    rig = load_rig("nuscenes")
    samples = pictures(Street(), cameras=None, size=(64, 32), seconds=0.2)
    assert len(rig.cameras) == 6
    for camera in rig.cameras:
        stamps = [sample.stamp_ns for sample in samples if sample.name == camera.name]
        assert stamps[0] % 1_000_000_000 == pytest.approx(camera.phase_s * 1e9)
        assert np.diff(stamps) == pytest.approx(1e9 / 12, abs=1)
    assert [s.stamp_ns for s in samples] == sorted(s.stamp_ns for s in samples)
    assert all((s.event == "clear") == (s.name == "front") for s in samples)
