# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from kestrel.errors import ModelError
from kestrel.models.spvnas_space import SearchSpace
from kestrel.models.spvnas_supernet import SPVNASSuperNet
from tests.models.points.test_networks import cloud

TINY = SearchSpace(widths=(4, 8, 12, 16, 24, 24, 16, 8, 8), least=(4, 4, 4, 8, 8, 8, 8, 4, 4), divisor=4)
KEYS = Path(__file__).parent / "spvnas_keys.json"


def supernet() -> SPVNASSuperNet:
    """A tiny super-network whose batch norms have seen several sub-networks."""
    torch.manual_seed(0)
    built = SPVNASSuperNet(5, TINY, pres=1.0, vres=1.0).train()
    with torch.no_grad():
        for seed in range(4):
            built(*cloud(500, seed=seed), TINY.sample(random.Random(seed)))
    return built.eval()


@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_a_determinized_network_answers_like_the_super_network_with_its_configuration(seed):
    built, config = supernet(), TINY.sample(random.Random(seed))
    alone = built.determinize(config)
    torch.testing.assert_close(alone(*cloud(400)), built(*cloud(400), config), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_configurations_of_a_super_network_answer_differently():
    built = supernet()
    first, second = (built(*cloud(100), TINY.sample(random.Random(seed))) for seed in (0, 1))
    assert not torch.allclose(first, second, atol=1e-3)


def test_a_determinized_network_has_its_own_copy_of_the_weights():
    built, config = supernet(), TINY.sample(random.Random(0))
    alone = built.determinize(config)
    before = alone.stem[0].kernel.clone()
    with torch.no_grad():
        built.stem[0].kernel.zero_()
    assert torch.equal(alone.stem[0].kernel, before)


def test_training_a_sub_network_moves_its_part_of_the_shared_weights_and_no_other():
    built = supernet().train()
    config = TINY.sample(random.Random(3))
    built(*cloud(200), config).square().mean().backward()
    width = config["output_channels"][1]
    kernel = built.downsample[0].feature.layers[0].net.layers[1].net.conv.kernel
    inner = config["downsample.0.feature.layers.0.net.layers.0"]
    assert kernel.grad[:, :inner, :width].abs().sum() > 0
    assert not kernel.grad[:, inner:].any()
    assert not kernel.grad[..., width:].any()


def test_key_lists_and_shapes_are_the_released_ones():
    """The lists hold what the release has: the super-network, and one configuration with its network."""
    lists = json.loads(KEYS.read_text())
    with torch.device("meta"):
        built = SPVNASSuperNet(19)
    assert {key: list(value.shape) for key, value in built.state_dict().items()} == lists["supernet"]
    with torch.device("meta"):
        alone = built.determinize(lists["config"])
    assert {key: list(value.shape) for key, value in alone.state_dict().items()} == lists["determinized"]


@pytest.mark.parametrize("seed", range(20))
def test_samples_mutants_and_children_are_configurations_of_the_space(seed):
    space, rng = SearchSpace(), random.Random(seed)
    first, second = space.sample(rng), space.sample(rng)
    for config in (first, second, space.mutate(first, 0.3, rng), space.cross(first, second, rng)):
        space.check(config)
        assert all(width % 16 == 0 for width in config["output_channels"])
        assert config["point_transforms.1"] == config["output_channels"][6]


def test_a_child_has_every_width_from_one_of_its_parents():
    rng = random.Random(0)
    first, second = TINY.sample(rng), TINY.sample(rng)
    child = TINY.cross(first, second, rng)
    for width, *parents in zip(
        child["output_channels"], first["output_channels"], second["output_channels"], strict=True
    ):
        assert width in parents


def test_mutation_keeps_what_it_does_not_draw_again():
    rng = random.Random(0)
    config = SearchSpace().sample(rng)
    assert SearchSpace().mutate(config, 0.0, rng) == config
    changed = SearchSpace().mutate(config, 0.3, rng)
    assert changed != config
    assert sum(changed[key] == config[key] for key in config) > len(config) / 3


def test_a_configuration_beyond_the_super_network_is_named():
    config = TINY.sample(random.Random(0))
    config["upsample.1.transition"] = 17
    with pytest.raises(ModelError, match=r"upsample\.1\.transition: expected 1 .. 16, found 17"):
        supernet().determinize(config)


def test_a_space_whose_least_width_is_above_its_largest_is_refused():
    with pytest.raises(ModelError, match="search space"):
        SearchSpace(widths=(4,) * 9, least=(8,) * 9)
