# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from kestrel.errors import InputError
from kestrel.ops import packed_weight
from kestrel.ops.int8_conv import grid_map, int8_conv, pack_int8_conv
from tests.ops.levels import needs_int8


@needs_int8
@pytest.mark.parametrize(("stride", "relu"), [(1, False), (2, True)])
@pytest.mark.parametrize(
    ("batch", "cin", "cout", "height", "width"),
    [(1, 16, 16, 8, 8), (2, 32, 64, 9, 7), (1, 100, 24, 5, 12), (3, 64, 10, 1, 2)],
)
def test_is_the_convolution_of_whole_bytes(
    batch: int, cin: int, cout: int, height: int, width: int, stride: int, relu: bool
) -> None:
    generator = torch.Generator().manual_seed(3)
    steps = torch.randint(0, 256, (batch, cin, height, width), generator=generator)
    steps[0, 0, 0, 0] = 255
    x = steps / 32  # none lies between two bytes
    weight = torch.randn(cout, cin, 3, 3, generator=generator)
    bias = torch.randn(cout, generator=generator)
    packed = pack_int8_conv(weight)
    assert packed is not None
    answer = int8_conv(x, packed, bias, stride=stride, relu=relu)
    assert answer is not None
    assert answer.is_contiguous(memory_format=torch.channels_last)
    step = packed.step.view(-1, 1, 1, 1)
    for used, tolerance in ((torch.round(weight / step) * step, 1e-6), (weight, 0.02)):
        exact = F.conv2d(x.double(), used.double(), bias.double(), stride=stride, padding=1)
        exact = exact.relu() if relu else exact
        assert answer.shape == exact.shape
        assert (answer - exact).norm() < tolerance * exact.norm()


@needs_int8
def test_what_bytes_cannot_stand_for_is_left_to_floats() -> None:
    x = torch.rand(1, 16, 6, 6)
    packed, bias = pack_int8_conv(torch.randn(16, 16, 3, 3)), torch.randn(16)
    assert packed is not None
    for value in (-0.1, float("nan"), float("inf")):
        wrong = x.clone()
        wrong[0, 3, 2, 1] = value
        assert int8_conv(wrong, packed, bias) is None
    assert int8_conv(x.double(), packed, bias.double()) is None
    zeros = int8_conv(torch.zeros_like(x), packed, bias)
    assert zeros is not None
    assert torch.equal(zeros, bias.view(1, -1, 1, 1).expand_as(zeros))


@needs_int8
@pytest.mark.parametrize(
    ("shape", "biases", "stride"),
    [((1, 20, 6, 6), 24, 1), ((16, 6, 6), 24, 1), ((1, 16, 6, 6), 16, 1), ((1, 16, 6, 6), 24, 0)],
)
def test_what_does_not_fit_is_refused_before_memory_is_read(
    shape: tuple[int, ...], biases: int, stride: int
) -> None:
    packed = pack_int8_conv(torch.randn(24, 16, 3, 3))
    assert packed is not None
    with pytest.raises(InputError, match=r"expected x \(B, 16, H, W\), bias \(24,\) and a stride"):
        int8_conv(torch.rand(shape), packed, torch.zeros(biases), stride=stride)


def test_few_channels_or_another_level_have_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pack_int8_conv(torch.randn(16, 12, 3, 3)) is None
    assert pack_int8_conv(torch.randn(16, 18, 3, 3)) is None
    monkeypatch.setattr(packed_weight, "native_for", lambda *_: None)
    assert pack_int8_conv(torch.randn(16, 16, 3, 3)) is None


def test_another_kernel_is_refused() -> None:
    with pytest.raises(InputError, match=r"weight: expected \(cout, cin, 3, 3\)"):
        pack_int8_conv(torch.zeros(16, 16, 1, 1))


def test_every_cell_of_the_map_has_the_neighbours_of_its_own_sample() -> None:
    gather = grid_map(2, 3, 4, 1)
    assert gather.shape == (9, 24)
    assert gather[4].tolist() == list(range(24)), "the middle of the kernel"
    assert gather[0, 0] == gather[0, 12] == -1, "above the first row of a sample there is none"
    assert (gather[0, 5], gather[8, 5], gather[1, 16]) == (0, 10, 12)
    assert grid_map(2, 3, 4, 2).shape == (9, 8)
    assert grid_map(2, 3, 4, 2)[4].tolist() == [0, 2, 8, 10, 12, 14, 20, 22]


@needs_int8
def test_it_says_that_it_passes_no_gradient_on() -> None:
    packed, x = pack_int8_conv(torch.randn(16, 16, 3, 3)), torch.rand(1, 16, 6, 6, requires_grad=True)
    assert packed is not None
    answer = int8_conv(x, packed, torch.zeros(16))
    assert answer is not None
    with pytest.raises(RuntimeError, match="kestrel::int8_conv passes no gradient on"):
        answer.sum().backward()


@needs_int8
def test_a_tensor_without_values_is_left_to_floats() -> None:
    packed, bias = pack_int8_conv(torch.randn(16, 16, 3, 3)), torch.zeros(16)
    assert packed is not None
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert int8_conv(mode.from_tensor(torch.rand(1, 16, 6, 6)), packed, bias) is None


@needs_int8
def test_weights_that_are_no_numbers_are_not_hidden_in_bytes() -> None:
    weight = torch.randn(16, 16, 3, 3)
    weight[3, 2, 1, 1] = torch.nan
    assert pack_int8_conv(weight) is None
