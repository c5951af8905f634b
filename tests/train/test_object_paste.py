# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from torch import Tensor

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.train.fusion_sample import FusionSample
from kestrel.train.object_paste import inside, paste_objects

CONFIG = FusionConfig()
BUS, CAR = DETECTION_CLASSES.index("bus"), DETECTION_CLASSES.index("car")


def frame(points: Tensor, boxes: list[list[float]], label: int, road: bool = True) -> FusionSample:
    drawn = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 9)
    layers = torch.zeros(len(MAP_LAYERS), 200, 200)
    layers[MAP_LAYERS.index("drivable_area")] = float(road)
    return FusionSample(
        points=points,
        pictures=torch.zeros(0, 3, 128, 352, dtype=torch.uint8),
        earlier=torch.zeros(0, 0, 3, 128, 352, dtype=torch.uint8),
        rays=torch.zeros(0, 16, 44, 3),
        origins=torch.zeros(0, 3),
        has_lidar=True,
        boxes=drawn,
        box_label=torch.full((len(drawn),), label),
        box_points=torch.full((len(drawn),), 40),
        map_truth=layers,
        depth=torch.zeros(0, 16, 44, dtype=torch.int64),
    )


def bus_at(x: float, y: float, speed: float = 0.0) -> list[float]:
    return [x, y, 1.6, 11.0, 2.6, 3.2, 0.4, speed, 0.0]


def points_of(box: list[float], ages: tuple[float, ...] = (0.0,)) -> Tensor:
    """Return some points in a box, in each sweep where it was then."""
    made = torch.rand(40, 5, generator=torch.Generator().manual_seed(1)) - 0.5
    made[:, 3:] = 0.3
    made[:, :3] = made[:, :3] * 0.5 * torch.tensor([2.6, 2.6, 3.2]) + torch.tensor(box[:3])
    sweeps = []
    for age in ages:
        sweep = made.clone()
        sweep[:, 4] = age
        sweep[:, 0] -= box[7] * age
        sweeps.append(sweep)
    return torch.cat(sweeps)


def ground(x: float, y: float) -> Tensor:
    made = torch.zeros(30, 5)
    made[:, 0], made[:, 1] = x + torch.linspace(-3, 3, 30), y
    return made


def paste(sample: FusionSample, other: FusionSample) -> FusionSample:
    return paste_objects(sample, other, CONFIG, torch.Generator().manual_seed(0))


def test_an_object_comes_with_its_points_of_all_sweeps_and_hides_the_ground() -> None:
    box = bus_at(15, 5, speed=10.0)
    other = frame(torch.cat((points_of(box, (0.0, 0.1, 0.2)), ground(-20, 0))), [box], BUS)
    sample = frame(torch.cat((ground(15, 5), ground(-30, 9))), [], CAR)
    found = paste(sample, other)
    assert found.box_label.tolist() == [BUS]
    torch.testing.assert_close(found.boxes[0], torch.tensor(box))
    assert (found.points[:, 4] > 0.05).sum() == 80
    assert not inside(sample.points[:30], torch.tensor(box)).logical_not().any()
    assert len(found.points) == 120 + 30


def test_nothing_is_set_into_a_wall_or_another_object_or_off_the_ground() -> None:
    box = bus_at(15, 5)
    other = frame(points_of(box), [box], BUS)
    wall = ground(15, 5)
    wall[:, 2] = 2.0
    assert len(paste(frame(wall, [], CAR), other).boxes) == 0
    car = [19.0, 6.0, 0.8, 4.5, 1.9, 1.6, 0.0, 0.0, 0.0]
    assert paste(frame(ground(30, 5), [car], CAR), other).box_label.tolist() == [CAR]
    assert len(paste(frame(ground(30, 5), [], CAR, road=False), other).boxes) == 0
    assert len(paste(frame(ground(30, 5), [], CAR), other).boxes) == 1


def test_cars_stay_where_they_are() -> None:
    box = bus_at(15, 5)
    assert len(paste(frame(ground(0, 0), [], CAR), frame(points_of(box), [box], CAR)).boxes) == 0


def test_an_object_whose_motion_nobody_knows_stays_where_it_is() -> None:
    box, unknown = bus_at(15, 5), [*bus_at(15, 5)[:7], float("nan"), float("nan")]
    empty = frame(ground(-30, 9), [], CAR)
    assert len(paste(empty, frame(points_of(box), [box], BUS)).boxes) == 1
    assert len(paste(empty, frame(points_of(box), [unknown], BUS)).boxes) == 0
