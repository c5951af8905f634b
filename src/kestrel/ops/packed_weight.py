# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Weights of convolutions in the order in which the compiled kernels read them, in floats and in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Final

import torch
from torch import Tensor

from kestrel.errors import InputError, SetupError, describe
from kestrel.ops.backend import NATIVE, call, dispatch_level, native_for
from kestrel.ops.operator import operator

NUMBERS: Final = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
"""The types of packed weights as the compiled kernels name them."""

FEWEST_INT8_CHANNELS: Final = 16
"""With fewer input channels bytes are not faster than floats."""

MOST_PRODUCTS: Final = (2**31 - 1) // (255 * 127)
"""So many products of bytes, K * C_in, certainly fit into the sums of 32 bits."""


@dataclass(frozen=True, eq=False)
class Int8Weight:
    """Kernel slices as packed signed bytes, and the ``step`` (C_out,) float32 that one stands for."""

    packed: Tensor
    step: Tensor


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """Kernel slices in the order in which one dispatch level reads them, for many calls without gradients.

    shape, dtype: of the matrices, (K, C_in, C_out) or (C_in, C_out).
    level: dispatch level that they are packed for.
    packed: bytes of the compiled kernels; None where these do not run, which is where the matrices are kept.
    plain: the matrices, or None.
    int8: the same in bytes, for features that are nowhere negative; None where only floats are multiplied.
    """

    shape: torch.Size
    dtype: torch.dtype
    level: str
    packed: Tensor | None
    plain: Tensor | None
    int8: Int8Weight | None = None

    def native_for(self, features: Tensor, *others: Tensor | None) -> ModuleType | None:
        """Return the compiled module if these tensors can be convolved with the packed bytes now."""
        native = native_for(features, *others)
        usable = self.packed is not None and features.dtype == self.dtype and not torch.is_grad_enabled()
        return native if native is not None and usable and native.dispatch_level() == self.level else None


def pack_weight(weight: Tensor, *, int8: bool = False) -> PackedWeight:
    """Pack (K, C_in, C_out) kernel slices, or one (C_in, C_out) matrix, once for many convolutions.

    The result does not follow later changes of ``weight``.

    Args:
        weight: float32 or bfloat16.
        int8: multiply bytes wherever that is possible: float32 weights with a C_in that is a multiple of 4
            and at least 16, a processor for which `int8_is_fast` holds, and features that are nowhere
            negative. These are quantized when they come, by their largest value, weights by that of a column.
    """
    weight = weight.detach()
    shape, dtype, level, native = weight.shape, weight.dtype, dispatch_level(), native_for(weight)
    if native is None:
        return PackedWeight(shape, dtype, level, None, weight.clone(memory_format=torch.contiguous_format))
    bytes_too = pack_int8(weight) if int8 and dtype == torch.float32 else None
    return PackedWeight(shape, dtype, level, _pack_matrices(weight), None, bytes_too)


def matrices_for(weight: Tensor | PackedWeight, features: Tensor) -> Tensor:
    """Return the matrices that torch multiplies ``features`` with.

    Raises:
        InputError: a packed weight that the compiled kernels cannot use for ``features`` here.
    """
    if isinstance(weight, Tensor):
        return weight
    if weight.plain is not None:
        return weight.plain
    expected = f"{weight.dtype} on the CPU, no gradients, dispatch level {weight.level}"
    gradients = "gradients" if torch.is_grad_enabled() else "no gradients"
    found = f"{features.dtype} on {features.device}, {gradients}, {dispatch_level()}"
    raise InputError(describe("use of a packed weight", expected=expected, found=found))


def int8_is_fast() -> bool:
    """Return whether the level in use multiplies bytes (AVX-512 VNNI)."""
    return NATIVE is not None and call(NATIVE.pack_weight, None, None, 1, 4, 1, NUMBERS[torch.int8], 1) > 0


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return (..., C_in, C_out) weights as int8 and the step (C_out,) of each column, float32."""
    step = weight.abs().amax(dim=tuple(range(weight.ndim - 1))) / 127
    step = torch.where(step == 0, 1.0, step)
    return torch.round(weight / step).to(torch.int8), step


def pack_int8(weight: Tensor) -> Int8Weight | None:
    """Pack (K, C_in, C_out) float32 kernel slices in bytes, None where bytes are not faster."""
    native = native_for(weight)
    few = weight.shape[-2] < FEWEST_INT8_CHANNELS or weight[..., 0].numel() > MOST_PRODUCTS
    if native is None or few:
        return None
    quantized, step = quantize_weight(weight)
    if not step.isfinite().all():  # in floats that shows in the answer
        return None
    packed = _pack_matrices(quantized)
    return Int8Weight(packed, step) if len(packed) else None


@operator("pack_matrices")
def _pack_matrices(weight: Tensor) -> Tensor:
    return pack_for(_compiled(), weight)


@_pack_matrices.register_fake
def _(weight: Tensor) -> Tensor:
    size = call(_compiled().pack_weight, None, None, *_sizes(weight))
    return weight.new_empty(size, dtype=torch.uint8)


def pack_for(native: ModuleType, weight: Tensor) -> Tensor:
    """Return the (K, C_in, C_out) or (C_in, C_out) weights as the level in use reads them, uint8."""
    sizes = _sizes(weight)
    packed = torch.empty(call(native.pack_weight, None, None, *sizes), dtype=torch.uint8, device="cpu")
    call(native.pack_weight, weight, packed, *sizes)
    return packed


def _sizes(weight: Tensor) -> tuple[int, int, int, int, int]:
    slices, channels, width = weight.shape if weight.ndim == 3 else (1, *weight.shape)
    # Of a weight that is traced they may be symbols, which the compiled code does not take.
    return int(slices), int(channels), int(width), NUMBERS[weight.dtype], torch.get_num_threads()


def _compiled() -> ModuleType:
    if NATIVE is None:
        raise SetupError(describe("packed weights", expected="compiled kernels", found=dispatch_level()))
    return NATIVE
