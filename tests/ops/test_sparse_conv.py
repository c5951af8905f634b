# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn.functional import conv3d, conv_transpose3d

from kestrel.errors import InputError
from kestrel.ops import (
    KernelMap,
    centred_offsets,
    coordinate_set,
    pack_weight,
    pointwise,
    sparse_conv,
    torchsparse_offsets,
)
from tests.ops.voxels import from_dense, random_indices, random_voxels, to_dense

CUBE = centred_offsets((3, 3, 3))
HALF = torchsparse_offsets(2)
DTYPES = [pytest.param(torch.float32, 1e-4), pytest.param(torch.float64, 1e-9)]


SIZES = [(3, 3, 3), (5, 5, 5), (1, 1, 3), (3, 1, 1), (5, 3, 1)]


def dense_weight(weight: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """(K, C_in, C_out) with z fastest to the (C_out, C_in, kx, ky, kz) of a dense convolution."""
    return weight.unflatten(0, size).permute(4, 3, 0, 1, 2)


def borders(size: tuple[int, int, int]) -> tuple[int, int, int]:
    return (size[0] // 2, size[1] // 2, size[2] // 2)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_submanifold_equals_a_dense_convolution_at_the_occupied_cells(size, dtype, tolerance):
    voxels = random_voxels(300)
    features = torch.randn(len(voxels), 5, dtype=dtype)
    weight = torch.randn(math.prod(size), 5, 7, dtype=dtype)
    padding = borders(size)
    dense = conv3d(to_dense(features, voxels, 2, (8, 8, 8)), dense_weight(weight, size), padding=padding)
    result = sparse_conv(features, weight, voxels.submanifold_map(centred_offsets(size)))
    torch.testing.assert_close(result, from_dense(dense, voxels), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 1, 2), (1, 2, 1)])
def test_strided_layers_and_their_inverses_equal_dense_ones_with_gradients(size, stride):
    voxels, _ = coordinate_set(random_indices(120), spatial_shape=(8, 8, 8))
    coarse, down = voxels.downsample(centred_offsets(size), stride, dilate=True)
    slices, padding = math.prod(size), borders(size)
    features = torch.randn(len(voxels), 4, requires_grad=True)
    weight = torch.randn(slices, 4, 6, requires_grad=True)
    back = torch.randn(slices, 6, 3, requires_grad=True)
    middle = sparse_conv(features, weight, down)
    result = sparse_conv(middle, back, down.transposed())

    dense = to_dense(features, voxels, 2, (8, 8, 8))
    dense = conv3d(dense, dense_weight(weight, size), padding=padding, stride=stride)
    at_coarse = from_dense(dense, coarse)
    torch.testing.assert_close(middle, at_coarse, atol=1e-4, rtol=1e-4)
    # Every other cell of the dense result is zero: no input reaches it.
    rest = [
        8 - ((n - 1) * s - 2 * p + k)
        for n, s, p, k in zip(dense.shape[2:], stride, padding, size, strict=True)
    ]
    kernel = dense_weight(back, size).transpose(0, 1)
    dense = conv_transpose3d(dense, kernel, stride=stride, padding=padding, output_padding=rest)
    expected = from_dense(dense, voxels)
    torch.testing.assert_close(result, expected, atol=1e-3, rtol=1e-4)
    upstream, leaves = torch.randn(len(voxels), 3), (features, weight, back)
    for found, wanted in zip(
        torch.autograd.grad(result, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
        strict=True,
    ):
        assert (found - wanted).norm() < 1e-5 * wanted.norm()


def test_a_transposed_layer_equals_a_dense_one_at_the_finer_voxels():
    voxels = random_voxels(200)
    coarse, found = voxels.downsample(HALF, (2, 2, 2))
    features, weight = torch.randn(len(coarse), 4), torch.randn(8, 4, 6)
    dense = conv_transpose3d(
        to_dense(features, coarse, 2, (4, 4, 4)), dense_weight(weight, (2, 2, 2)).transpose(0, 1), stride=2
    )
    result = sparse_conv(features, weight, found.transposed())
    torch.testing.assert_close(result, from_dense(dense, voxels), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("relu", [False, True])
def test_bias_residual_and_relu_end_the_sum(relu):
    voxels = random_voxels()
    found = voxels.submanifold_map(CUBE)
    features, weight = torch.randn(len(voxels), 8), torch.randn(27, 8, 9)
    bias, residual = torch.randn(9), torch.randn(len(voxels), 9)
    plain = sparse_conv(features, weight, found) + bias + residual
    result = sparse_conv(features, weight, found, bias=bias, residual=residual, relu=relu)
    torch.testing.assert_close(result, plain.relu() if relu else plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("relu", [False, True])
def test_gradients_of_all_inputs_are_those_of_finite_differences(relu):
    voxels = random_voxels(25, extent=4)
    coarse, found = voxels.downsample(HALF, (2, 2, 2))
    inputs = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((len(voxels), 3), (8, 3, 2), (2,), (len(coarse), 2))
    ]

    def run(features, weight, bias, residual):
        return sparse_conv(features, weight, found, bias=bias, residual=residual, relu=relu)

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("transposed", [False, True])
def test_single_precision_gradients_equal_those_of_plain_torch(transposed):
    voxels = random_voxels(400)
    found = voxels.downsample(HALF, (2, 2, 2))[1]
    found = found.transposed() if transposed else found
    features = torch.randn(found.scatter.shape[1], 6, requires_grad=True)
    weight = torch.randn(8, 6, 10, requires_grad=True)
    upstream = torch.randn(found.gather.shape[1], 10)
    padded = torch.cat((features, features.new_zeros(1, 6)))
    plain = sum(padded[rows.long()] @ matrix for rows, matrix in zip(found.gather, weight, strict=True))
    expected = torch.autograd.grad(plain, (features, weight), upstream)
    result = torch.autograd.grad(sparse_conv(features, weight, found), (features, weight), upstream)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


def test_bfloat16_accumulates_in_single_precision():
    voxels = random_voxels(500, extent=6)
    found = voxels.submanifold_map(CUBE)
    features, weight = torch.randn(len(voxels), 64).bfloat16(), (torch.randn(27, 64, 32) / 30).bfloat16()
    result = sparse_conv(features, weight, found)
    exact = sparse_conv(features.double(), weight.double(), found)
    assert result.dtype == torch.bfloat16
    assert (result - exact).norm() / exact.norm() < 4e-3


def test_transposed_views_are_read_in_their_own_order():
    voxels = random_voxels()
    found = voxels.submanifold_map(CUBE)
    features, weight = torch.randn(6, len(voxels)).T, torch.randn(27, 5, 6).transpose(1, 2)
    expected = sparse_conv(features.contiguous(), weight.contiguous(), found)
    torch.testing.assert_close(sparse_conv(features, weight, found), expected, atol=1e-5, rtol=1e-5)


def test_no_input_voxels_give_no_output():
    voxels = random_voxels(0)
    result = sparse_conv(torch.zeros(0, 4), torch.zeros(27, 4, 5), voxels.submanifold_map(CUBE), relu=True)
    assert result.shape == (0, 5)


def test_shapes_that_do_not_fit_are_named():
    voxels = random_voxels()
    found = voxels.submanifold_map(CUBE)
    features = torch.zeros(len(voxels), 4)
    with pytest.raises(InputError, match="sparse convolution"):
        sparse_conv(features, torch.zeros(27, 5, 4), found)
    with pytest.raises(InputError, match="sparse convolution"):
        sparse_conv(features[1:], torch.zeros(27, 4, 4), found)
    with pytest.raises(InputError, match="residual"):
        sparse_conv(features, torch.zeros(27, 4, 4), found, residual=torch.zeros(1, 4))
    with pytest.raises(InputError, match=r"weight.*expected torch.bfloat16, found torch.float32"):
        sparse_conv(features.bfloat16(), torch.zeros(27, 4, 4), found)


def test_what_the_compiled_code_would_read_or_divide_by_is_checked_first():
    voxels = random_voxels()
    found = voxels.submanifold_map(CUBE)
    features, weight = torch.zeros(len(voxels), 4), torch.zeros(27, 4, 6)
    with pytest.raises(InputError, match=r"bias: expected \(6,\), found \(1,\)"):
        sparse_conv(features, weight, found, bias=torch.ones(1))
    with pytest.raises(InputError, match="sparse convolution"):
        sparse_conv(features, weight[..., 0], found)
    with pytest.raises(InputError, match="C_out >= 1"):
        sparse_conv(features, weight[..., :0], found)


def test_a_table_of_rows_that_there_are_not_is_no_kernel_map():
    voxels = random_voxels()
    gather, coarse = voxels.submanifold_map(CUBE).gather, voxels.downsample(CUBE, (2, 2, 2))[1]
    with pytest.raises(InputError, match=r"gather of a kernel map: expected torch\.int32 \(27"):
        KernelMap(gather.long(), None)
    for row, found in ((len(voxels), f"-1 .. {len(voxels)}"), (-2, "-2 ..")):
        broken = gather.clone()
        broken[3, 5] = row
        with pytest.raises(InputError, match=rf"rows below {len(voxels)}, or -1, found {found}"):
            KernelMap(broken, None)
    with pytest.raises(InputError, match="scatter of a kernel map"):
        KernelMap(coarse.gather, torch.full_like(coarse.scatter, coarse.gather.shape[1]))
    with pytest.raises(InputError, match=r"scatter of a kernel map: expected torch\.int32 \(27"):
        KernelMap(coarse.gather, coarse.scatter[:8])
    assert torch.equal(KernelMap(coarse.gather, coarse.scatter).transposed().gather, coarse.scatter)


@pytest.mark.parametrize("grad", [True, False])
def test_rows_that_do_not_fit_a_matrix_are_named_with_and_without_gradients(grad):
    features, weight = torch.zeros(9, 4), torch.zeros(4, 6)
    read = torch.zeros(3, 6), torch.zeros(9, 8, dtype=torch.int32), torch.zeros(9, 8)
    with torch.set_grad_enabled(grad):
        assert pointwise(features, weight, bias=torch.ones(6), read=read).shape == (9, 6)
        for rows in (features[:, :3], features[None]):
            with pytest.raises(InputError, match="features and weight"):
                pointwise(rows, pack_weight(weight))
        with pytest.raises(InputError, match="weight"):
            pointwise(features, weight[None])
        with pytest.raises(InputError, match="bias"):
            pointwise(features, weight, bias=torch.ones(4))
        with pytest.raises(InputError, match="residual"):
            pointwise(features, weight, residual=torch.ones(3, 6))
        for wrong in (
            (read[0][:, :5], *read[1:]),
            (read[0], read[1].long(), read[2]),
            (read[0], *(each[:5] for each in read[1:])),
        ):
            with pytest.raises(InputError, match="voxels to read"):
                pointwise(features, weight, read=wrong)
        for beyond in (3, 2**31 - 1):
            with pytest.raises(InputError, match=f"row of a voxel: expected less than 3, found {beyond}"):
                pointwise(features, weight, read=(read[0], read[1] + beyond, read[2]))


@torch.no_grad()
def test_convolutions_without_gradients_can_be_traced_without_values():
    voxels = random_voxels()
    found, weight = voxels.submanifold_map(CUBE), torch.randn(27, 16, 6)
    read = torch.zeros(3, 6), torch.zeros(len(voxels), 8, dtype=torch.int32), torch.zeros(len(voxels), 8)
    packed, single, bytes_ = pack_weight(weight), pack_weight(weight[0]), pack_weight(weight, int8=True)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        features, matrices = (mode.from_tensor(each) for each in (torch.rand(len(voxels), 16), weight))
        shapes = [
            sparse_conv(features, packed, found, relu=True).shape,
            sparse_conv(features, bytes_, found).shape,
            sparse_conv(features, pack_weight(matrices), found).shape,
            pointwise(features, single, read=read).shape,
            pointwise(features, matrices[0], read=read).shape,
        ]
    assert shapes == [(len(voxels), 6)] * 5


def test_an_infinite_gradient_above_a_dead_unit_stays_where_it_is():
    voxels = random_voxels()
    found = voxels.submanifold_map(CUBE)
    features = torch.rand(len(voxels), 4, requires_grad=True)
    weight = torch.full((27, 4, 2), -1.0)
    out = sparse_conv(features, weight, found, relu=True)
    assert not out.any()
    out.backward(torch.full_like(out, torch.inf))
    assert features.grad is not None
    assert not features.grad.any()


def test_a_convolution_of_no_channels_is_refused():
    voxels = random_voxels()
    empty = torch.zeros(len(voxels), 0)
    with pytest.raises(InputError, match="C_in >= 1"):
        sparse_conv(empty, torch.zeros(27, 0, 4), voxels.submanifold_map(CUBE))
