# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Velocities of boxes from the points around them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kestrel.classes import DETECTION_CLASSES
from kestrel.models.kestrel_fusion import KestrelFusion
from kestrel.models.kestrel_fusion_motion import BoxMotion
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.pipelines.fusion import CLASSES
from kestrel.pipelines.runtime import load_network

PEDESTRIAN = DETECTION_CLASSES.index("pedestrian")


def random_motion(seed: int = 0) -> BoxMotion:
    torch.manual_seed(seed)
    motion = BoxMotion(FusionConfig())
    torch.nn.init.normal_(motion.correction[-1].weight)
    return motion.eval().requires_grad_(False)


def walker(
    velocity: tuple[float, float], told: tuple[float, float], count: int = 40
) -> tuple[Tensor, Tensor]:
    """Points of three sweeps on somebody 12 m ahead who moves, and the box with the velocity that is told."""
    generator = torch.Generator().manual_seed(5)
    body = torch.rand(count, 3, generator=generator) - 0.5
    body = body * torch.tensor([0.4, 0.5, 1.6]) + torch.tensor([12.0, 3.0, 0.95])
    sweeps = []
    for age in (0.0, 0.2, 0.4):
        noise = 0.02 * torch.randn(count, 3, generator=generator)
        then = body + noise - age * torch.tensor([*velocity, 0.0])
        sweeps.append(torch.cat((then, torch.full((count, 1), 0.3), torch.full((count, 1), age)), 1))
    return torch.cat(sweeps), torch.tensor([[12.0, 3.0, 0.9, 0.7, 0.7, 1.8, 0.4, *told]])


def test_points_lie_where_they_would_if_the_box_moved_as_told() -> None:
    points, box = walker((1.2, -0.8), (1.2, -0.8))
    around, there, count = BoxMotion(FusionConfig()).points_of(points, box)
    assert count.tolist() == [[40, 40, 40]]
    assert there.sum(2).tolist() == [[40, 40, 40]]
    now, before = around[0, 0, :40], around[0, 2, :40]
    assert float((now[:, :3] - before[:, :3]).abs().max()) < 0.15  # noise
    along = torch.stack((box[0, 6].cos(), box[0, 6].sin()))
    torch.testing.assert_close(now[:, 0], (points[:40, :2] - box[0, :2]) @ along)
    torch.testing.assert_close(now[:, 2], points[:40, 2])  # the bottom of the box is at 0
    assert set(before[:, 4].tolist()) == {0.4000000059604645}


def test_ground_and_what_is_beside_is_not_looked_at() -> None:
    points, box = walker((0, 0), (0, 0))
    ground, wall = points.clone(), points.clone()
    ground[:, 2], wall[:, 0] = 0.1, 16.5
    _, _, count = BoxMotion(FusionConfig()).points_of(torch.cat((points, ground, wall)), box)
    assert count.tolist() == [[40, 40, 40]]


def test_untrained_it_leaves_boxes_as_they_are() -> None:
    points, box = walker((1, 1), (0.5, -2.5))
    motion = BoxMotion(FusionConfig())
    torch.testing.assert_close(motion(points, box, torch.tensor([PEDESTRIAN])), box)


@pytest.mark.parametrize("left", ["nothing", "now", "before"])
def test_without_points_now_and_before_the_estimate_stays(left: str) -> None:
    points, box = walker((1, 1), (0.5, -2.5))
    age = points[:, 4]
    kept = {"nothing": age > 9, "now": age == 0, "before": age > 0}[left]
    motion, label = random_motion(), torch.tensor([PEDESTRIAN])
    assert torch.equal(motion(points[kept], box, label)[:, 7:9], box[:, 7:9])
    assert float((motion(points, box, label) - box)[:, 7:9].norm()) > 0.1


def test_in_a_turned_world_velocities_are_turned() -> None:
    points, box = walker((1, 1), (0.5, -1))
    angle = torch.tensor(2.0)
    turn = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos())).view(2, 2)
    turned, other = points.clone(), box.clone()
    turned[:, :2] = points[:, :2] @ turn.T
    other[:, :2], other[:, 7:9] = box[:, :2] @ turn.T, box[:, 7:9] @ turn.T
    other[:, 6] += angle
    motion, label = random_motion(), torch.tensor([PEDESTRIAN])
    answer, found = motion(points, box, label), motion(turned, other, label)
    torch.testing.assert_close(found[:, 7:9], answer[:, 7:9] @ turn.T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close((found[:, 6] - other[:, 6]).cos(), (answer[:, 6] - box[:, 6]).cos())


@pytest.mark.parametrize("yaw", [0.4, -0.4, 0.0, 3.0])
def test_what_heads_backwards_is_turned_around_where_there_are_points(yaw: float) -> None:
    points, box = walker((0, 0), (0, 0))
    box[:, 6] = yaw
    motion, label = BoxMotion(FusionConfig()).requires_grad_(False), torch.tensor([PEDESTRIAN])
    motion.correction[-1].bias[2] = 1.0
    for seen in (points, points[:40]):
        answer = motion(seen, box, label)
        assert abs(float((answer[0, 6] - yaw).cos()) + 1) < 1e-6
        assert abs(float(answer[0, 6])) < torch.pi + 1e-6
        assert torch.equal(answer[:, :6], box[:, :6])
        torch.testing.assert_close(answer[:, 7:9], box[:, 7:9])
    assert torch.equal(motion(points[40:], box, label), box)


def test_boxes_do_not_influence_each_other() -> None:
    points, box = walker((1, 1), (0.5, -1))
    more = torch.cat((box, box + torch.tensor([0.5, 0.2, 0, 1, 0, 0, 1, 3, 0]), box + 100))
    labels = torch.tensor([PEDESTRIAN, 0, 3])
    motion = random_motion()
    together = motion(points, more, labels)
    torch.testing.assert_close(together[:1], motion(points, box, labels[:1]))
    assert torch.equal(together[2], more[2])
    assert motion(points, box[:0], labels[:0]).shape == (0, 9)


@pytest.mark.parametrize("velocity", [(1.4, 0.0), (0.0, -1.4), (-1.0, 1.0), (0.0, 0.0)])
def test_the_shipped_weights_see_how_somebody_walks(velocity: tuple[float, float]) -> None:
    network, _ = load_network(KestrelFusion, "kestrel-fusion", CLASSES)
    points, box = walker(velocity, (0, 0))
    box[0, 6] = float(torch.atan2(torch.tensor(velocity[1]), torch.tensor(velocity[0])))
    answer = network.motion(points, box, torch.tensor([PEDESTRIAN]))[0, 7:9]
    assert float((answer - torch.tensor(velocity)).norm()) < 0.45
