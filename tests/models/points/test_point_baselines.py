# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What the two baselines see and what they do not: the difference that point-voxel networks remove."""

from __future__ import annotations

import torch
from torch import Tensor

from kestrel.models.dense_voxel import DenseVoxelNet
from kestrel.models.point_baselines import NETWORKS, point_logits
from kestrel.models.pointnet import PointNet


def cloud() -> Tensor:
    points = torch.randn(1, 4, 60, generator=torch.Generator().manual_seed(1))
    points[0, :3, 0] = 5.0  # The farthest point: the size of the grid does not depend on the others.
    points[0, :3, 1] = -5.0
    return points


@torch.no_grad()
def test_answers_follow_the_order_of_the_points() -> None:
    torch.manual_seed(0)
    order = torch.randperm(60)
    for network in (PointNet(6, width=0.25).eval(), DenseVoxelNet(6, channels=(8, 8), resolution=8).eval()):
        expected = network(cloud())
        assert expected.shape == (1, 6, 60)
        torch.testing.assert_close(network(cloud()[:, :, order]), expected[:, :, order])


@torch.no_grad()
def test_a_point_sees_the_features_of_its_neighbours_through_the_grid() -> None:
    torch.manual_seed(0)
    network = DenseVoxelNet(6, channels=(8, 8), resolution=8).eval()
    changed = cloud()
    changed[0, :3, 2] = changed[0, :3, 3] + 0.01
    before = network(changed)
    changed[0, 3, 2] += 10
    assert (network(changed) - before)[0, :, 3].abs().max() > 1e-3


def test_every_parameter_of_both_learns() -> None:
    torch.manual_seed(0)
    for network in (PointNet(6, width=0.25), DenseVoxelNet(6, channels=(8, 8), resolution=8)):
        network(cloud()).square().sum().backward()
        assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in network.parameters())


def test_compared_networks_have_about_the_same_number_of_parameters() -> None:
    counts = [sum(each.numel() for each in make().parameters()) for make in NETWORKS.values()]
    assert max(counts) < 1.1 * min(counts)


@torch.no_grad()
def test_clouds_of_a_batch_are_judged_as_if_each_were_alone() -> None:
    torch.manual_seed(0)
    clouds = torch.rand(2, 4, 300) * 20
    for make in NETWORKS.values():
        network = make().eval()
        together = point_logits(network, clouds)
        assert together.shape == (2, 16, 300)
        torch.testing.assert_close(together[1:], point_logits(network, clouds[1:]), rtol=1e-3, atol=1e-4)
