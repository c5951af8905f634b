# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Sparse convolutions without gradients: over packed weights, in the type of the features or in bytes."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from kestrel.errors import InputError, describe
from kestrel.ops.backend import call, native_for
from kestrel.ops.operator import operator
from kestrel.ops.packed_weight import NUMBERS, Int8Weight
from kestrel.ops.point_voxel import check_rows

Reading: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Voxel features, rows and weights, as ``devoxelize`` takes them."""


class Epilogue(NamedTuple):
    """What ends a convolution, as in `sparse_conv` and `pointwise`."""

    bias: Tensor | None
    residual: Tensor | None
    relu: bool
    read: Reading | None


def run_native(
    native: ModuleType,
    features: Tensor,
    packed: Tensor,
    width: int,
    gather: Tensor | None,
    epilogue: Epilogue,
    units: Tensor | None = None,
) -> Tensor:
    """Run the compiled kernel; ``units`` (C_out,) say that features are bytes, and what their sums mean."""
    bias, residual, relu, read = epilogue
    slices, outputs = (1, len(features)) if gather is None else gather.shape
    number = torch.int8 if units is not None else features.dtype
    out = torch.empty(
        outputs, width, dtype=torch.float32 if units is not None else features.dtype, device="cpu"
    )
    voxels, rows, weights = (None, None, None) if read is None else (*read[:2], read[2].float())
    if voxels is not None and rows is not None:
        check_rows(rows, len(voxels))
    call(
        native.sparse_conv,
        *(features, packed, units, bias, residual, gather, out),
        *(outputs, slices, features.shape[1], width),
        NUMBERS[number],
        relu,
        torch.get_num_threads(),
        *(voxels, rows, weights, 0 if rows is None else rows.shape[1]),
    )
    return out


def convolve_int8(
    native: ModuleType, features: Tensor, weight: Int8Weight, gather: Tensor, epilogue: Epilogue
) -> Tensor | None:
    """Convolve float32 features (N, C_in) in bytes; None where one is negative, infinite or undefined."""
    quantized = torch.empty(features.shape, dtype=torch.uint8, device="cpu")
    step = call(native.quantize, features, quantized, features.numel(), torch.get_num_threads())
    if step < 0:
        return None
    units = weight.step * step
    return run_native(native, quantized, weight.packed, len(weight.step), gather, epilogue, units)


@operator("packed_conv")
def packed_conv(
    features: Tensor,
    packed: Tensor,
    width: int,
    bias: Tensor | None,
    residual: Tensor | None,
    gather: Tensor | None,
    relu: bool,
    voxels: Tensor | None,
    rows: Tensor | None,
    weights: Tensor | None,
) -> Tensor:
    """Convolve to ``width`` channels, row by row where ``gather`` is None; voxels are read as in `pointwise`.

    packed: as of `pack_for` at the dispatch level in use.
    """
    read = None if voxels is None or rows is None or weights is None else (voxels, rows, weights)
    native = compiled_for(features, bias, residual, voxels)
    return run_native(native, features, packed, width, gather, Epilogue(bias, residual, relu, read))


@packed_conv.register_fake
def _(
    features: Tensor,
    packed: Tensor,
    width: int,
    bias: Tensor | None,
    residual: Tensor | None,
    gather: Tensor | None,
    relu: bool,
    voxels: Tensor | None,
    rows: Tensor | None,
    weights: Tensor | None,
) -> Tensor:
    return features.new_empty(features.shape[0] if gather is None else gather.shape[1], width)


@operator("packed_int8_conv")
def packed_int8_conv(
    features: Tensor,
    int8: Tensor,
    step: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gather: Tensor,
    relu: bool,
) -> Tensor:
    """Convolve float32 features in bytes where these can stand for them, and as they are where not.

    int8, step: of an `Int8Weight`. packed: the same matrices in float32, as of `pack_for`.
    """
    native, epilogue = compiled_for(features, bias, residual), Epilogue(bias, residual, relu, None)
    result = convolve_int8(native, features, Int8Weight(int8, step), gather, epilogue)
    return run_native(native, features, packed, len(step), gather, epilogue) if result is None else result


@packed_int8_conv.register_fake
def _(
    features: Tensor,
    int8: Tensor,
    step: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gather: Tensor,
    relu: bool,
) -> Tensor:
    return features.new_empty(gather.shape[1], step.shape[0])


def compiled_for(features: Tensor, *others: Tensor | None) -> ModuleType:
    """Return the compiled module, which alone can read what is packed.

    Raises:
        InputError: it cannot take these floating-point tensors.
    """
    native = native_for(features, *others)
    if native is None:
        found = f"{features.dtype} on {features.device}"
        raise InputError(describe("packed weights", expected="what compiled kernels take", found=found))
    return native
