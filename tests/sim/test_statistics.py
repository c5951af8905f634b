# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from kestrel.sim.drive import simulate
from kestrel.sim.rig import load_rig
from kestrel.sim.samples import LidarSample
from kestrel.sim.statistics import visibility
from tests.sim.street import MOVING, PARKED, Street


def shares(car):
    rig = load_rig("nuscenes")
    world = Street(car=car, car_velocity=(0.001, 0.0))
    sweep = next(s for s in simulate(world, rig, seconds=0.1, cameras=()) if isinstance(s, LidarSample))
    return dict(zip(sweep.truth.track_id.tolist(), visibility(sweep, rig.lidar).tolist(), strict=True))


def test_a_box_shaped_object_in_the_open_returns_the_shots_at_its_box():
    open_air = shares((12.0, 4.0))
    assert 0.9 < open_air[MOVING] < 1.05
    assert 0.9 < open_air[PARKED] < 1.05


def test_what_stands_behind_another_car_is_less_visible():
    assert shares((10.5, -4.0))[PARKED] < 0.5
