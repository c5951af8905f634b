# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kestrel.models.kestrel_fusion import KestrelFusion
from kestrel.nn.conv import conv_bn_relu
from kestrel.train.optimizers import OptimizerName, build_optimizer, hidden_matrices


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*conv_bn_relu(3, 16, 3), *conv_bn_relu(16, 8, 3), nn.Conv2d(8, 2, 1))


def test_muon_moves_what_mixes_channels_and_answers_nothing() -> None:
    network = KestrelFusion()
    network.camera.requires_grad_(False)
    chosen = {id(parameter) for parameter in hidden_matrices(network)}
    names = {name for name, parameter in network.named_parameters() if id(parameter) in chosen}
    assert {"lidar_stem.0.weight", "decoder.1.4.0.weight", "up.0.weight", "heatmap.0.0.weight"} <= names
    answers = {"heatmap.1.weight", "map_head.answer.weight", "regression.answer.weight"}
    assert not names & answers
    assert not {name for name in names if name.startswith(("camera.", "pillars.")) or name.endswith("bias")}
    depthwise = nn.Conv2d(8, 8, 3, groups=8, bias=False)
    assert hidden_matrices(depthwise) == []


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_trained_parameter_is_moved_once_and_no_frozen_one(name: OptimizerName) -> None:
    network = small_network()
    frozen = network[0]
    frozen.requires_grad_(False)
    optimizer = build_optimizer(name, network, 1e-3, 0.01)
    moved = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(moved) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def test_a_step_of_muon_is_as_long_in_all_directions_and_as_large_as_one_of_adamw() -> None:
    network = small_network()
    before = copy.deepcopy(network)
    lr = 1e-2
    optimizer = build_optimizer("muon", network, lr, 0.0)
    picture = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    network(picture).square().mean().backward()
    optimizer.step()
    hidden = hidden_matrices(network)
    assert hidden
    for old, new in zip(hidden_matrices(before), hidden, strict=True):
        step = (new - old).detach().flatten(1)
        lengths = torch.linalg.svdvals(step) / (lr * 0.2 * max(step.shape) ** 0.5)
        assert lengths.min() > 0.5
        assert lengths.max() < 1.4
    answer = (network[-1].weight - before[-1].weight).detach().abs()
    torch.testing.assert_close(answer, torch.full_like(answer, lr), rtol=1e-2, atol=0)


def test_muon_goes_on_from_its_saved_state_as_if_it_had_not_stopped() -> None:
    pictures = torch.randn(3, 2, 3, 8, 8, generator=torch.Generator().manual_seed(2))

    def step(network: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        optimizer.zero_grad()
        network(pictures[number]).square().mean().backward()
        optimizer.step()

    whole = small_network()
    optimizer = build_optimizer("muon", whole, 1e-2, 0.01)
    step(whole, optimizer, 0)
    resumed = copy.deepcopy(whole)
    state = copy.deepcopy(optimizer.state_dict())
    after = build_optimizer("muon", resumed, 1e-2, 0.01)
    after.load_state_dict(state)
    for number in (1, 2):
        step(whole, optimizer, number)
        step(resumed, after, number)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
