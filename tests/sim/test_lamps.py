# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from kestrel.sim.drive import simulate
from kestrel.sim.lamps import SIGNAL_GROUP, Lamp, Lights
from kestrel.sim.rig import load_rig
from kestrel.sim.samples import CameraSample, LidarSample
from kestrel.sim.scene import Actor, ActorState
from kestrel.sim.semantics import Semantic
from tests.sim.street import MOVING, Street, box_mesh, coloured, daylight, joined

LENS = (90, 12, 12)
AWAY = 20.0


def lens(lamp, x, y, z, size=(0.1, 0.3, 0.18), semantic=Semantic.CAR):
    box = box_mesh(size, (x, y, z), semantic)
    return coloured(box.vertices, box.triangles, semantic, LENS, lamp=lamp)


@dataclass
class Lit(Street):
    """A grey car straight ahead that shows its tail, and a signal above it, with the lights given."""

    lights: int = 0
    signal: int = 0

    def __post_init__(self):
        super().__post_init__()
        size = (4.0, 1.8, 1.5)
        body = box_mesh(size, colour=(120, 120, 120))
        lamps = [lens(Lamp.REAR, -2.05, side * 0.65, 0.7) for side in (-1, 1)]
        lamps += [lens(Lamp.LEFT, -2.05, 0.65, 0.5), lens(Lamp.RIGHT, -2.05, -0.65, 0.5)]
        lamps += [lens(Lamp.STOP, -2.05, 0.0, 1.3, (0.1, 0.4, 0.08))]
        self.actors[MOVING] = Actor(MOVING, Semantic.CAR, (4.1, 1.8, 1.5), (joined(body, *lamps),))
        head = (0.1, 0.5, 0.5)
        lenses = [
            lens(lamp + SIGNAL_GROUP, 25.0, 0.0, z, head, Semantic.TRAFFIC_LIGHT)
            for lamp, z in ((Lamp.RED, 3.4), (Lamp.AMBER, 2.8), (Lamp.GREEN, 2.2))
        ]
        self.static = joined(self.static, *lenses)

    def actor_states(self, time_s):
        moving = ActorState(MOVING, (AWAY, 0.0, 0.0), 0.0, (5.0, 0.0), lights=self.lights)
        return [moving, super().actor_states(time_s)[1]]

    def signals(self, time_s):
        return np.array([Lights.GREEN, self.signal], np.uint8)


def samples(kind, **options):
    made = simulate(
        Lit(**options),
        load_rig("nuscenes"),
        seconds=0.1,
        image_size=(704, 256),
        cameras=("front",),
    )
    return next(sample for sample in made if isinstance(sample, kind))


def picture(**options):
    return samples(CameraSample, **options)


def redness(image):
    return image[..., 0].astype(int) - image[..., 1:].max(-1)


def changed(first, second):
    """Return the pixels in which two pictures differ by more than glare makes."""
    return np.abs(first.image.data.astype(int) - second.image.data).max(-1) > 100


NIGHT = daylight(sun=0.0, ambient=0.15)


@pytest.mark.parametrize("weather", [daylight(), NIGHT], ids=["day", "night"])
def test_brake_lights_are_saturated_red_whatever_the_light(weather):
    off, on = picture(weather=weather), picture(weather=weather, lights=Lights.BRAKE)
    pixels = changed(off, on) & (on.image.data[..., 0] > 230)
    assert (on.instance[pixels] == MOVING).all()
    assert pixels.sum() > 40
    assert np.median(on.image.data[pixels][:, 1:]) < 110
    assert redness(on.image.data)[pixels].mean() > redness(off.image.data)[pixels].mean() + 80


def test_lights_leave_classes_instances_and_the_cloud_alone():
    off, on = picture(), picture(lights=Lights.BRAKE | Lights.LEFT)
    np.testing.assert_array_equal(off.semantic, on.semantic)
    np.testing.assert_array_equal(off.instance, on.instance)
    dark, bright = samples(LidarSample), samples(LidarSample, lights=Lights.BRAKE | Lights.DRIVING)
    assert dark.cloud.points.tobytes() == bright.cloud.points.tobytes()


def test_tail_lights_are_dimmer_than_brake_lights():
    off, tail, brake = (picture(weather=NIGHT, lights=on) for on in (0, Lights.DRIVING, Lights.BRAKE))
    pixels = changed(off, brake)
    red = [sample.image.data[pixels][:, 0].mean() for sample in (off, tail, brake)]
    assert red[0] + 40 < red[1] < red[2] - 40


@pytest.mark.parametrize(("light", "side"), [(Lights.LEFT, -1), (Lights.RIGHT, 1)])
def test_indicators_are_amber_on_their_side(light, side):
    off, on = picture(), picture(lights=light)
    pixels = changed(off, on)
    columns = np.nonzero(pixels)[1]
    assert len(columns) > 10
    assert (np.sign(columns - 351.5) == side).all()
    red, green, blue = np.median(on.image.data[pixels], axis=0)
    assert red > green + 30 > blue + 60


def test_glare_spreads_around_a_lamp_but_not_far():
    off, on = picture(weather=NIGHT), picture(weather=NIGHT, lights=Lights.BRAKE)
    gain = on.image.data[..., 0].astype(int) - off.image.data[..., 0]
    rows, columns = np.nonzero(gain > 3)
    lit_rows, lit_columns = np.nonzero(changed(off, on) & (on.image.data[..., 0] > 230))
    assert rows.min() < lit_rows.min()
    assert rows.max() > lit_rows.max()
    assert lit_columns.min() - 15 < columns.min() < lit_columns.min()


@pytest.mark.parametrize(("light", "channel"), [(Lights.RED, 0), (Lights.AMBER, 0), (Lights.GREEN, 1)])
def test_signals_show_the_light_of_their_group(light, channel):
    dark, lit = picture(), picture(signal=light)
    pixels = changed(dark, lit)
    assert (lit.semantic[pixels] == Semantic.TRAFFIC_LIGHT).mean() > 0.8
    assert pixels.sum() > 50
    assert lit.image.data[pixels].mean(0).argmax() == channel
    heights = {
        on: np.nonzero(changed(dark, picture(signal=on)))[0].mean() for on in (Lights.RED, Lights.GREEN)
    }
    assert heights[Lights.RED] < heights[Lights.GREEN]


def test_lamps_of_resting_vehicles_shine_too():
    class Waiting(Lit):
        def actor_states(self, time_s):
            first, second = super().actor_states(time_s)
            return [replace(first, velocity=(0.0, 0.0), lights=Lights.BRAKE * (time_s > 0.05)), second]

    made = simulate(Waiting(), load_rig("kitti"), seconds=0.2, image_size=(704, 256), cameras=("front",))
    first, later = [s for s in made if isinstance(s, CameraSample)][:2]
    assert redness(later.image.data)[later.instance == MOVING].max() > 140
    assert redness(first.image.data)[first.instance == MOVING].max() < 140
