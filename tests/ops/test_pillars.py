# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The canvas of pillars in one pass is the one that the layers give."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from kestrel.errors import InputError
from kestrel.nn.pillar_encoder import FEATURE_SCALE, PillarEncoder
from kestrel.ops import PillarGrid, pillar_canvas
from kestrel.ops.pillars import pillar_canvas_reference, pillar_features, pillar_maximum
from tests.ops.levels import needs_kernels, on_every_level

GRID = PillarGrid(4.8, 0.4, (-3.0, 6.0))


def cloud(count: int, frames: int = 2) -> tuple[Tensor, Tensor]:
    """Points of which some are outside, many share a pillar, and some lie on borders of pillars."""
    generator = torch.Generator().manual_seed(count)
    points = torch.randn(count, 5, generator=generator) * torch.tensor([3.0, 3.0, 3.0, 1.0, 0.1])
    points[::7, :2] = (points[::7, :2] / 0.4).round() * 0.4
    points[1::2, :2] *= 0.2
    return points, torch.randint(frames, (count,), generator=generator)


def layer(channels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(channels)
    return torch.randn(9, channels, generator=generator), torch.randn(channels, generator=generator)


@pytest.mark.parametrize("channels", [1, 7, 32, 70])
@pytest.mark.parametrize("count", [0, 2, 3000])
def test_equals_the_reference(count: int, channels: int) -> None:
    points, batch = cloud(count)
    found = pillar_canvas(points, batch, *layer(channels), GRID, 2)
    assert found.is_contiguous(memory_format=torch.channels_last)
    wanted = pillar_canvas_reference(points, batch, *layer(channels), GRID, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert bool((found > 0).any()) or count < 3000
    assert torch.equal(found.sum(1) > 0, wanted.sum(1) > 0)


def test_what_a_point_is_described_by() -> None:
    points = torch.tensor([[0.1, -0.3, 1.0, 0.5, 0.05], [0.3, -0.1, 2.0, 0.7, 0.0], [9.0, 0, 0, 0, 0]])
    features, pillar = pillar_features(points, torch.tensor([1, 1, 1]), GRID, 2)
    assert pillar.tolist() == [(24 + 12) * 24 + 11] * 2
    wanted = [[0.1, -0.3, 1.0, 0.5, 0.05, -0.1, -0.1, -0.1, -0.1], [0.3, -0.1, 2, 0.7, 0, 0.1, 0.1, 0.1, 0.1]]
    torch.testing.assert_close(features, torch.tensor(wanted))


def test_the_folded_encoder_answers_like_the_encoder() -> None:
    torch.manual_seed(1)
    encoder = PillarEncoder(GRID, 32)
    for _ in range(3):
        encoder(*cloud(2000), 2)  # moves the running statistics
    encoder.eval()
    for points, batch in (cloud(2000), cloud(1), cloud(0)):
        with torch.no_grad():
            wanted = encoder(points, batch, 2)
            torch.testing.assert_close(encoder.folded()(points, batch, 2), wanted, rtol=1e-5, atol=1e-5)


def test_the_encoder_passes_gradients_to_its_weights() -> None:
    encoder = PillarEncoder(GRID, 32)
    encoder(*cloud(500), 2).square().sum().backward()
    assert encoder.linear.weight.grad is not None
    assert (encoder.linear.weight.grad != 0).any(1).all()


@needs_kernels
def test_all_levels_and_thread_counts_agree() -> None:
    points, batch = cloud(3000)
    wanted = pillar_canvas_reference(points, batch, *layer(40), GRID, 2)
    for found in on_every_level(lambda: pillar_canvas(points, batch, *layer(40), GRID, 2)).values():
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compute", [pillar_canvas, pillar_canvas_reference])
def test_what_is_not_a_number_is_outside_as_a_place_and_passed_on_as_a_value(compute) -> None:
    points = torch.tensor([[0.1, 0.1, 0.0, 0.5, 0.0]]).repeat(9, 1)
    points[0, 0] = points[1, 1] = points[2, 2] = torch.nan
    points[3, 0], points[4, 1] = torch.inf, -1e30
    batch = torch.zeros(9, dtype=torch.int64)
    weight, bias = torch.ones(9, 3), torch.ones(3)
    assert compute(points, batch, weight, bias, GRID, 1).isfinite().all()
    points[6, 3] = torch.nan
    found = compute(points, batch, weight, bias, GRID, 1)
    assert found[0, :, 12, 12].isnan().all()
    assert int(found.isnan().sum()) == 3


@pytest.mark.parametrize("compute", [pillar_canvas, pillar_canvas_reference])
@pytest.mark.parametrize("frame", [-1, 2])
def test_a_frame_that_does_not_exist_is_refused(compute, frame: int) -> None:
    points, batch = cloud(10)
    batch[3] = frame
    with pytest.raises(InputError, match=r"frame of a point.*0 to 1"):
        compute(points, batch, *layer(4), GRID, 2)


def test_other_shapes_are_refused() -> None:
    points, batch = cloud(10)
    for wrong in (
        (points[:, :4], batch, *layer(4)),
        (points, batch[:9], *layer(4)),
        (points, batch.int(), *layer(4)),
    ):
        with pytest.raises(InputError, match="points of pillars"):
            pillar_canvas(*wrong, GRID, 2)


def test_the_maximum_and_its_gradients_are_those_of_torch() -> None:
    random = torch.Generator().manual_seed(3)
    features = torch.randn(300, 9, generator=random, dtype=torch.float64)
    pillar = torch.randint(0, 50, (300,), generator=random)
    weight, bias = (each.double().requires_grad_() for each in layer(5))
    found = pillar_maximum(features, pillar, weight, bias, 2, 7)
    answers = torch.relu(features @ weight + bias)
    expected = answers.new_zeros(98, 5).scatter_reduce(0, pillar[:, None].expand_as(answers), answers, "amax")
    expected = expected.view(2, 7, 7, 5).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected)
    share = torch.rand(found.shape, generator=random, dtype=torch.float64)
    wanted = torch.autograd.grad((expected * share).sum(), (weight, bias))
    torch.testing.assert_close(torch.autograd.grad((found * share).sum(), (weight, bias)), wanted)


def test_the_encoder_trains_as_its_layers_would() -> None:
    """Linear layer, batch normalisation and ReLU of every point: same canvas, statistics and gradients."""
    torch.manual_seed(2)
    encoder = PillarEncoder(GRID, 32)
    torch.nn.init.uniform_(encoder.norm.weight)
    layers = copy.deepcopy(encoder)
    points, batch = cloud(3000)
    canvas = encoder(points, batch, 2)
    features, pillar = pillar_features(points, batch, GRID, 2)
    scale = features.new_tensor(FEATURE_SCALE)
    answers = torch.relu(layers.norm(layers.linear(features * scale)))
    empty = answers.new_zeros(2 * 24 * 24, 32)
    expected = empty.scatter_reduce(0, pillar[:, None].expand_as(answers), answers, "amax")
    expected = expected.view(2, 24, 24, 32).permute(0, 3, 1, 2)
    torch.testing.assert_close(canvas, expected, rtol=1e-4, atol=1e-4)
    for name, value in layers.norm.named_buffers():
        torch.testing.assert_close(encoder.norm.get_buffer(name), value, rtol=1e-4, atol=1e-5)
    share = torch.rand(canvas.shape)
    (canvas * share).sum().backward()
    (expected * share).sum().backward()
    for mine, other in zip(encoder.parameters(), layers.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-2)
