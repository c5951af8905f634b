# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The 3x3 convolution with fewer products gives what the direct one gives."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kestrel.errors import InputError
from kestrel.ops.winograd import winograd_conv, winograd_reference, winograd_weight
from tests.ops.levels import needs_kernels, on_every_level

SHAPES = [(1, 16, 16, 8, 8), (2, 32, 48, 13, 6), (1, 98, 64, 9, 21), (3, 19, 37, 1, 1), (1, 128, 128, 16, 5)]


def problem(shape: tuple[int, int, int, int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, cin, cout, height, width = shape
    generator = torch.Generator().manual_seed(cin)
    x = torch.randn(batch, cin, height, width, generator=generator)
    weight = torch.randn(cout, cin, 3, 3, generator=generator) / (3 * cin**0.5)
    return x, weight, torch.randn(cout, generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu", [False, True])
def test_equals_the_direct_convolution(shape: tuple[int, int, int, int, int], relu: bool) -> None:
    x, weight, bias = problem(shape)
    direct = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    wanted = (direct.relu() if relu else direct).float()
    prepared = winograd_weight(weight)
    for found in (
        winograd_conv(x, prepared, bias, relu=relu),
        winograd_conv(x.contiguous(memory_format=torch.channels_last), prepared, bias, relu=relu),
        winograd_reference(x, prepared, bias, relu),
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        assert found.is_contiguous(memory_format=torch.channels_last)


@needs_kernels
def test_all_levels_and_thread_counts_agree() -> None:
    x, weight, bias = problem((1, 32, 40, 30, 26))
    prepared = winograd_weight(weight)
    wanted = winograd_reference(x, prepared, bias, True)
    for found in on_every_level(lambda: winograd_conv(x, prepared, bias, relu=True)).values():
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_not_a_number_spreads_and_is_not_hidden_by_the_relu() -> None:
    x, weight, bias = problem((1, 16, 16, 8, 8))
    x[0, 0, 2, 2] = torch.nan
    assert winograd_conv(x, winograd_weight(weight), bias, relu=True)[0, :, 2, 2].isnan().all()


@pytest.mark.parametrize("shape", [(16, 16, 1, 1), (8, 16, 3, 3), (16, 8, 3, 3)])
def test_other_kernels_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="Winograd"):
        winograd_weight(torch.zeros(shape))


@pytest.mark.parametrize(("cout", "length"), [(32, 16), (32, 33), (32, 64), (16, 15), (16, 5), (16, 0)])
def test_a_bias_of_another_length_than_the_outputs_is_refused(cout: int, length: int) -> None:
    x, weight, _ = problem((1, 16, cout, 8, 8))
    with pytest.raises(InputError, match="length of the bias"):
        winograd_conv(x, winograd_weight(weight), torch.zeros(length))
    with pytest.raises(InputError, match="length of the bias"):
        winograd_conv(x, winograd_weight(weight), torch.zeros(cout, 1))


def test_a_weight_that_winograd_weight_did_not_make_and_an_input_that_does_not_fit_are_refused() -> None:
    x, weight, bias = problem((1, 16, 32, 8, 8))
    prepared = winograd_weight(weight)
    for wrong in (weight, prepared[:35], prepared[0], prepared[..., :8], prepared[:, :, :8]):
        with pytest.raises(InputError, match="weight of a Winograd convolution"):
            winograd_conv(x, wrong, bias)
    for other in (x[:, :15], x[0]):
        with pytest.raises(InputError, match=r"input of a Winograd convolution: expected \(B, 16, H, W\)"):
            winograd_conv(other, prepared, bias)
