# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib

import pytest
import torch
from torch.nn import functional as F

from kestrel.errors import InputError
from kestrel.ops import int8_is_fast
from kestrel.ops.int8_conv import grid_map, int8_conv, pack_int8_conv

needs_int8 = pytest.mark.skipif(not int8_is_fast(), reason="the processor multiplies no bytes")


def _in_whole_steps(batch: int, cin: int, height: int, width: int, lowest: int) -> torch.Tensor:
    """Return values of which none lies between two bytes: 255 or, with negative ones, 254 steps of 1/32."""
    generator = torch.Generator().manual_seed(3)
    highest = lowest + (254 if lowest else 255)
    steps = torch.randint(lowest, highest + 1, (batch, cin, height, width), generator=generator)
    steps[0, 0, 0, 0], steps[-1, -1, -1, -1] = lowest, highest
    return steps / 32


@needs_int8
@pytest.mark.parametrize("lowest", [0, -100])
@pytest.mark.parametrize(("stride", "relu"), [(1, False), (2, True)])
@pytest.mark.parametrize(
    ("batch", "cin", "cout", "height", "width"),
    [(1, 16, 16, 8, 8), (2, 32, 64, 9, 7), (1, 100, 24, 5, 12), (3, 64, 10, 1, 1)],
)
def test_is_the_convolution_with_weights_of_whole_bytes(
    batch: int, cin: int, cout: int, height: int, width: int, stride: int, relu: bool, lowest: int
) -> None:
    x = _in_whole_steps(batch, cin, height, width, lowest)
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(cout, cin, 3, 3, generator=generator)
    bias = torch.randn(cout, generator=generator)
    packed = pack_int8_conv(weight)
    assert packed is not None
    answer = int8_conv(x, packed, bias, stride=stride, relu=relu)
    assert answer is not None
    assert answer.is_contiguous(memory_format=torch.channels_last)
    rounded = torch.round(weight / packed.step.view(-1, 1, 1, 1)) * packed.step.view(-1, 1, 1, 1)
    for used, tolerance in ((rounded, 1e-6), (weight, 0.02)):
        exact = F.conv2d(x.double(), used.double(), bias.double(), stride=stride, padding=1)
        exact = exact.relu() if relu else exact
        assert answer.shape == exact.shape
        assert (answer - exact).norm() < tolerance * exact.norm()


@needs_int8
def test_values_between_two_bytes_go_to_the_nearest() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 16, 20, 20, generator=generator)
    weight = torch.zeros(16, 16, 3, 3)
    weight[torch.arange(16), torch.arange(16), 1, 1] = 1  # what comes in goes out
    packed = pack_int8_conv(weight)
    assert packed is not None
    for values in (x, x.abs(), -x.abs()):
        answer = int8_conv(values, packed, torch.zeros(16))
        assert answer is not None
        step = float(values.max().clamp(min=0) - values.min().clamp(max=0)) / 254
        assert (answer - values).abs().max() < 1.01 * step, "half a step, and half of one for zero"
        assert 0.2 * step < (answer - values).abs().mean() < 0.5 * step


@needs_int8
def test_what_bytes_cannot_stand_for_is_left_to_floats() -> None:
    x = torch.rand(1, 16, 6, 6)
    packed, bias = pack_int8_conv(torch.randn(16, 16, 3, 3)), torch.randn(16)
    assert packed is not None
    for value in (float("nan"), float("inf"), -float("inf")):
        wrong = x.clone()
        wrong[0, 3, 2, 1] = value
        assert int8_conv(wrong, packed, bias) is None
    assert int8_conv(x.double(), packed, bias.double()) is None
    zeros = int8_conv(torch.zeros_like(x), packed, bias)
    assert zeros is not None
    assert torch.equal(zeros, bias.view(1, -1, 1, 1).expand_as(zeros))


def test_few_channels_or_another_level_have_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pack_int8_conv(torch.randn(16, 12, 3, 3)) is None
    # By attributes the name is that of the function.
    module = importlib.import_module("kestrel.ops.sparse_conv")
    monkeypatch.setattr(module, "native_for", lambda *_: None)
    assert pack_int8_conv(torch.randn(16, 16, 3, 3)) is None


def test_another_kernel_is_refused() -> None:
    with pytest.raises(InputError, match=r"weight: expected \(cout, cin, 3, 3\)"):
        pack_int8_conv(torch.zeros(16, 16, 1, 1))


def test_every_cell_of_the_map_has_the_neighbours_of_its_own_sample() -> None:
    gather = grid_map(2, 3, 4, 1)
    assert gather.shape == (9, 24)
    assert gather[4].tolist() == list(range(24)), "the middle of the kernel"
    assert gather[0, 0] == gather[0, 12] == 24, "above the first row of a sample there is the border"
    assert (gather[0, 5], gather[8, 5], gather[1, 16]) == (0, 10, 12)
    assert grid_map(2, 3, 4, 2).shape == (9, 8)
    assert grid_map(2, 3, 4, 2)[4].tolist() == [0, 2, 8, 10, 12, 14, 20, 22]
