# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Generators and discriminators: sizes, sub-networks, conditioning."""

from __future__ import annotations

import pytest
import torch

from kestrel.errors import ConfigError
from kestrel.models.anycost import AnyCostDiscriminator, AnyCostGenerator, architecture_code, channels_at
from kestrel.models.gan_compression import PatchDiscriminator, ResnetGenerator, SuperResnetGenerator
from kestrel.models.spade import MobileSpadeGenerator

NARROW = (4, 2, 4, 2, 3, 4, 2, 3)


def anycost() -> AnyCostGenerator:
    torch.manual_seed(0)
    return AnyCostGenerator(32, channel_multiplier=0.02, style_channels=8, n_mlp=2).eval()


def test_anycost_draws_every_resolution_at_every_ratio() -> None:
    network = anycost()
    with torch.no_grad():
        w = network.map_styles(torch.randn(2, 1, 8))
        for resolution in (4, 8, 16, 32):
            for ratio in (0.25, 1.0):
                assert network(w, resolution, ratio).shape == (2, 3, resolution, resolution)


def test_anycost_widths_halve_with_the_resolution_and_are_limited() -> None:
    assert [channels_at(size, 2) for size in (4, 64, 128, 1024)] == [512, 512, 256, 32]
    assert [channels_at(size, 0.5) for size in (4, 8, 16, 32, 256)] == [512, 512, 512, 256, 32]


def test_anycost_width_of_each_layer_can_be_chosen() -> None:
    network = anycost()
    widths = network.layer_channels(1.0)
    with torch.no_grad():
        w = network.map_styles(torch.randn(1, 1, 8))
        assert torch.equal(network(w, channels=widths), network(w))
        assert not torch.equal(network(w, channels=[4] * len(widths)), network(w))


def test_anycost_refuses_a_resolution_that_it_has_not() -> None:
    with pytest.raises(ConfigError, match="48"):
        anycost()(torch.randn(1, 1, 8), target_res=48)


def test_anycost_styles_may_differ_per_layer() -> None:
    network = anycost()
    with torch.no_grad():
        w = network.map_styles(torch.randn(1, network.n_style, 8))
        mixed = network(w)
        assert not torch.allclose(mixed, network(w[:, :1]))


def test_anycost_discriminator_judges_all_resolutions_and_sees_the_generator() -> None:
    torch.manual_seed(0)
    network = AnyCostDiscriminator(32, channel_multiplier=0.02, n_res=2)
    with torch.no_grad():
        small, large = (architecture_code([ratio] * 8) for ratio in (0.25, 1.0))
        for size in (32, 16):
            pictures = torch.randn(4, 3, size, size)
            assert network(pictures, small).shape == (4, 1)
            assert not torch.allclose(network(pictures, small), network(pictures, large))


def test_anycost_gradients_reach_every_parameter() -> None:
    generator, judge = anycost().train(), AnyCostDiscriminator(32, 0.02, 2, conditioned=False)
    judge(generator(generator.map_styles(torch.randn(2, 1, 8)))).sum().backward()
    # Only the entry for the other resolution stays out of it.
    assert [name for name, value in generator.named_parameters() if value.grad is None] == []
    assert {name for name, value in judge.named_parameters() if value.grad is None} == {
        "convs.1.0.weight",
        "convs.1.1.bias",
    }


def test_super_network_equals_the_extracted_one() -> None:
    torch.manual_seed(0)
    network = SuperResnetGenerator([4] * 8).eval()
    x = torch.randn(1, 3, 16, 16)
    narrow, weights = network.subnetwork_weights(NARROW)
    narrow.load_state_dict(weights, assign=True)
    with torch.no_grad():
        torch.testing.assert_close(network(x, NARROW), narrow.eval()(x))
        torch.testing.assert_close(network(x, [4] * 8), network(x))
        assert not torch.allclose(network(x, NARROW), network(x))


def test_training_a_sub_network_trains_its_part_of_the_super_network() -> None:
    network = SuperResnetGenerator([4] * 8)
    network(torch.randn(1, 3, 16, 16), NARROW).square().sum().backward()
    gradient = network.model[26].weight.grad
    assert gradient is not None
    assert gradient[:, :3].any()
    assert not gradient[:, 3:].any()


@pytest.mark.parametrize("separable", [True, False])
def test_generator_keeps_the_size_and_answers_within_bounds(separable: bool) -> None:
    picture = ResnetGenerator(NARROW, 5, 3, separable=separable)(torch.randn(1, 5, 24, 16) * 10)
    assert picture.shape == (1, 3, 24, 16)
    assert picture.abs().max() <= 1


def test_patch_discriminator_scores_patches() -> None:
    scores = PatchDiscriminator(4, width=4)(torch.randn(1, 4, 64, 64))
    assert scores.shape == (1, 1, 6, 6)


@pytest.mark.parametrize("upsampling", ["normal", "more", "most"])
def test_spade_draws_what_the_labels_say(upsampling: str) -> None:
    torch.manual_seed(0)
    network = MobileSpadeGenerator(3, 4, (128, 256), upsampling=upsampling, norm="instance")  # type: ignore[arg-type]
    labels = torch.zeros(2, 3, 128, 256)
    labels[0, 0] = 1
    labels[1, 1] = 1
    pictures = network(labels)
    assert pictures.shape == (2, 3, 128, 256)
    assert not torch.allclose(pictures[0], pictures[1])
    pictures.sum().backward()
    assert all(value.grad is not None for value in network.parameters())
