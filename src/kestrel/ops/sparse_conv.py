# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution over a kernel map, with bias, residual and ReLU in the same pass."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from kestrel.errors import InputError, describe
from kestrel.ops.backend import call, native_for, triton_for
from kestrel.ops.kernel_map import KernelMap
from kestrel.ops.operator import differentiable, operator
from kestrel.ops.packed_conv import Epilogue, Reading, packed_conv, packed_int8_conv, run_native
from kestrel.ops.packed_weight import PackedWeight, matrices_for, pack_for, quantize_weight
from kestrel.ops.point_voxel import check_reading, devoxelize


def sparse_conv(
    features: Tensor,
    weight: Tensor | PackedWeight,
    kernel_map: KernelMap,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Return ``out[j] = sum_k features[gather[k, j]] @ weight[k]``, plus bias and residual, through ReLU.

    One function serves submanifold, strided and transposed convolutions: the map makes the difference.

    Args:
        features: (N, C_in).
        weight: (K, C_in, C_out), same dtype; packed ones pass no gradient on.
        kernel_map: tables of shape (K, M) and (K, N).
        bias: (C_out,) or None.
        residual: (M, C_out), added before the ReLU, or None.
        relu: whether negative results become zero.

    Returns:
        (M, C_out) in the dtype of the features; bfloat16 accumulates in float32.

    Raises:
        InputError: shapes or types that do not fit each other.
    """
    _check_map(features, weight.shape, kernel_map)
    _check_rows(features, weight.shape, kernel_map.gather.shape[1], bias, residual)
    if isinstance(weight, Tensor) and weight.dtype != features.dtype:
        raise InputError(describe("weight of a convolution", expected=features.dtype, found=weight.dtype))
    if isinstance(weight, PackedWeight) and weight.native_for(features, bias, residual) is not None:
        return _run_packed(features, weight, kernel_map.gather, bias, residual, relu)
    result: Tensor = _sparse_conv(
        features, matrices_for(weight, features), bias, residual, kernel_map.gather, kernel_map.inverse, relu
    )
    return result


def _check_map(features: Tensor, weight: torch.Size, kernel_map: KernelMap) -> None:
    slices, inputs = len(kernel_map.gather), kernel_map.inputs
    if len(weight) != 3 or weight[:2] != (slices, features.shape[-1]) or len(features) != inputs:
        wanted = f"features ({inputs}, C_in), weight ({slices}, C_in, C_out)"
        found = f"{tuple(features.shape)}, {tuple(weight)}"
        raise InputError(describe("sparse convolution", expected=wanted, found=found))


def _check_rows(
    features: Tensor, weight: torch.Size, outputs: int, bias: Tensor | None, residual: Tensor | None
) -> None:
    """Raise InputError unless the last two dimensions of the weight fit all the others."""
    channels, width = weight[-2:]
    if features.ndim != 2 or features.shape[1] != channels or not channels or not width:
        wanted = "features (N, C_in >= 1), weight (..., C_in, C_out >= 1)"
        found = f"{tuple(features.shape)}, {tuple(weight)}"
        raise InputError(describe("features and weight", expected=wanted, found=found))
    if bias is not None and tuple(bias.shape) != (width,):
        raise InputError(describe("bias", expected=(width,), found=tuple(bias.shape)))
    if residual is not None and tuple(residual.shape) != (outputs, width):
        raise InputError(describe("residual", expected=(outputs, width), found=tuple(residual.shape)))


def _run_packed(
    features: Tensor,
    weight: PackedWeight,
    gather: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """Convolve in bytes where weight and features allow it, in the type of the features otherwise."""
    packed = cast(Tensor, weight.packed)
    if weight.int8 is not None and features.dtype == torch.float32:
        inputs = features, weight.int8.packed, weight.int8.step, packed
        result: Tensor = packed_int8_conv(*inputs, bias, residual, gather, relu)
        return result
    result = packed_conv(features, packed, weight.shape[-1], bias, residual, gather, relu, None, None, None)
    return result


def pointwise(
    features: Tensor,
    weight: Tensor | PackedWeight,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    read: Reading | None = None,
) -> Tensor:
    """Return ``features @ weight`` plus bias and residual, through ReLU: a kernel of size one, row by row.

    Without gradients this is one pass; with them it is composed of torch operators.

    Args:
        features: (N, C_in).
        weight: (C_in, C_out); a packed one passes no gradient on.
        bias: (C_out,) or None.
        residual: (N, C_out) or None.
        relu: whether negative results become zero.
        read: voxels with C_out features that are read at the rows and added after the ReLU, or None.

    Returns:
        (N, C_out) in the dtype of the features.

    Raises:
        InputError: shapes that do not fit each other, or a row of ``read`` of no voxel (on a CPU).
    """
    if len(weight.shape) != 2:
        raise InputError(describe("weight", expected="(C_in, C_out)", found=tuple(weight.shape)))
    _check_rows(features, weight.shape, len(features), bias, residual)
    if read is not None:
        check_reading(*read, shape=(len(features), weight.shape[1]))
    voxels, rows, weights = (None, None, None) if read is None else read
    result: Tensor
    if isinstance(weight, PackedWeight):
        if weight.native_for(features, bias, residual, voxels) is not None:
            packed, width = cast(Tensor, weight.packed), weight.shape[1]
            result = packed_conv(features, packed, width, bias, residual, None, relu, voxels, rows, weights)
            return result
    elif not torch.is_grad_enabled() and native_for(features, weight, bias, residual, voxels) is not None:
        result = _pointwise(features, weight, bias, residual, relu, voxels, rows, weights)
        return result
    return pointwise_reference(features, matrices_for(weight, features), bias, residual, relu, read)


@operator("pointwise")
def _pointwise(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    voxels: Tensor | None,
    rows: Tensor | None,
    weights: Tensor | None,
) -> Tensor:
    read = None if voxels is None or rows is None or weights is None else (voxels, rows, weights)
    native = native_for(features, weight, bias, residual, voxels)
    if native is None:
        return pointwise_reference(features, weight, bias, residual, relu, read)
    epilogue = Epilogue(bias, residual, relu, read)
    return run_native(native, features, pack_for(native, weight), weight.shape[1], None, epilogue)


@_pointwise.register_fake
def _(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    voxels: Tensor | None,
    rows: Tensor | None,
    weights: Tensor | None,
) -> Tensor:
    return features.new_empty(features.shape[0], weight.shape[1])


def pointwise_reference(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    read: Reading | None,
) -> Tensor:
    """Compute the operator in torch, with gradients."""
    result = features @ weight if bias is None else torch.addmm(bias, features, weight)
    result = result if residual is None else result + residual
    result = torch.relu(result) if relu else result
    return result if read is None else result + devoxelize(*read)


def convolve_reference(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gather: Tensor,
    relu: bool,
) -> Tensor:
    """Compute the convolution in torch: gather, multiply and add, one kernel slice after the other."""
    wide = torch.promote_types(features.dtype, torch.float32)
    result = torch.zeros(gather.shape[1], weight.shape[2], dtype=wide, device=features.device)
    for rows, matrix in zip(gather, weight, strict=True):
        outputs = (rows >= 0).nonzero().squeeze(1)
        if len(outputs):
            result.index_add_(0, outputs, (features.index_select(0, rows[outputs]) @ matrix).to(wide))
    if bias is not None:
        result += bias
    if residual is not None:
        result += residual
    return (result.relu_() if relu else result).to(features.dtype)


def convolve_int8_reference(
    features: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, gather: Tensor, relu: bool
) -> Tensor:
    """Compute in torch what bytes give: the sums of their products are exact, all else is float32.

    Args are those of `convolve_reference`, float32, with features that are nowhere negative.
    """
    quantized, weight_step = quantize_weight(weight)
    largest = features.max()
    whole = torch.floor(features * (255 / largest) + 0.5)
    sums = convolve_reference(whole.double(), quantized.double(), None, None, gather, False)
    result = sums.float() * (weight_step * (largest / 255))
    result = result if bias is None else result + bias
    result = result if residual is None else result + residual
    return result.relu() if relu else result


def weight_gradient_reference(features: Tensor, gradient: Tensor, gather: Tensor) -> Tensor:
    """Compute ``sum_j features[gather[k, j]]^T gradient[j]`` for every slice k in torch."""
    result = features.new_zeros(len(gather), features.shape[1], gradient.shape[1])
    for rows, into in zip(gather, result, strict=True):
        outputs = (rows >= 0).nonzero().squeeze(1)
        if len(outputs):
            into.copy_(features.index_select(0, rows[outputs]).T @ gradient.index_select(0, outputs))
    return result


@differentiable("sparse_conv")
def _sparse_conv(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gather: Tensor,
    inverse: Tensor | None,
    relu: bool,
) -> Tensor:
    """Convolve; an ``inverse`` of None is ``gather`` with its slices in the opposite order."""
    native = native_for(features, weight, bias, residual)
    if native is None:
        return convolve_reference(features, weight, bias, residual, gather, relu)
    epilogue = Epilogue(bias, residual, relu, None)
    return run_native(native, features, pack_for(native, weight), weight.shape[2], gather, epilogue)


@_sparse_conv.register_cuda
def sparse_conv_cuda(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gather: Tensor,
    inverse: Tensor | None,
    relu: bool,
) -> Tensor:
    """Compute the operator on a GPU: in Triton where it is installed."""
    if not triton_for(features, weight, bias, residual):
        return convolve_reference(features, weight, bias, residual, gather, relu)
    from kestrel.ops.gpu import sparse_conv as gpu

    return gpu.sparse_conv(features, weight, bias, residual, gather, relu)


@_sparse_conv.register_fake
def _(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gather: Tensor,
    inverse: Tensor | None,
    relu: bool,
) -> Tensor:
    return features.new_empty(gather.shape[1], weight.shape[2])


@operator("sparse_conv_weight_gradient")
def _weight_gradient(features: Tensor, gradient: Tensor, gather: Tensor) -> Tensor:
    native, dtype = native_for(features, gradient), features.dtype
    if native is None:
        return weight_gradient_reference(features, gradient, gather)
    if dtype == torch.bfloat16:
        kernel = native.weight_gradient_bfloat16
    else:
        kernel, features, gradient = native.weight_gradient, features.float(), gradient.float()
    shape = len(gather), features.shape[1], gradient.shape[1]
    out = torch.empty(shape, dtype=torch.float32, device="cpu")
    call(kernel, features, gradient, gather, out, len(gradient), *shape, torch.get_num_threads())
    return out.to(dtype)


@_weight_gradient.register_cuda
def weight_gradient_cuda(features: Tensor, gradient: Tensor, gather: Tensor) -> Tensor:
    """Compute the operator on a GPU: in Triton where it is installed."""
    if not triton_for(features, gradient):
        return weight_gradient_reference(features, gradient, gather)
    from kestrel.ops.gpu import sparse_conv as gpu

    return gpu.weight_gradient(features, gradient, gather)


@_weight_gradient.register_fake
def _(features: Tensor, gradient: Tensor, gather: Tensor) -> Tensor:
    return features.new_empty(gather.shape[0], features.shape[1], gradient.shape[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, weight, _bias, _residual, gather, inverse, relu = inputs
    ctx.relu = relu
    ctx.save_for_backward(features, weight, gather, inverse, output if relu else None)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    features, weight, gather, inverse, output = ctx.saved_tensors
    gradient = gradient.contiguous()
    if ctx.relu:
        gradient = torch.where(output > 0, gradient, 0)  # a product would make NaN of infinity
    needed = ctx.needs_input_grad
    to_features = to_weight = to_bias = None
    if needed[0]:
        # The input gradient is the convolution over the inverse map with transposed matrices.
        turned = weight.transpose(1, 2)
        if inverse is None:
            to_features = _sparse_conv(gradient, turned.flip(0), None, None, gather, None, False)
        else:
            to_features = _sparse_conv(gradient, turned.contiguous(), None, None, inverse, gather, False)
    if needed[1]:
        to_weight = _weight_gradient(features, gradient, gather)
    if needed[2]:
        to_bias = gradient.sum(0)
    return to_features, to_weight, to_bias, gradient if needed[3] else None, None, None, None


_sparse_conv.register_autograd(_backward, setup_context=_save)
