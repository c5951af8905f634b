# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""3x3 convolution of dense grids in bytes, quantized on their way as sparse ones are (ADR 6).

The kernel is that of the sparse convolution: a grid is a set of voxels of which none is missing.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from kestrel.errors import InputError, describe
from kestrel.ops.backend import native_for
from kestrel.ops.operator import operator
from kestrel.ops.packed_conv import Epilogue, compiled_for, convolve_int8
from kestrel.ops.packed_weight import Int8Weight, int8_is_fast, pack_int8


def pack_int8_conv(weight: Tensor) -> Int8Weight | None:
    """Pack the weights of a 3x3 convolution in bytes.

    Args:
        weight: (cout, cin, 3, 3) float32.

    Returns:
        what ``int8_conv`` takes, or None where bytes would not be faster: see ``pack_weight``.

    Raises:
        InputError: the kernel is not 3x3.
    """
    if weight.ndim != 4 or tuple(weight.shape[2:]) != (3, 3):
        raise InputError(describe("weight", expected="(cout, cin, 3, 3)", found=tuple(weight.shape)))
    return pack_int8(weight.detach().permute(2, 3, 1, 0).flatten(0, 1).contiguous())


def int8_conv(
    x: Tensor, weight: Int8Weight, bias: Tensor, *, stride: int = 1, relu: bool = False
) -> Tensor | None:
    """Convolve with a border of one zero; no gradients.

    Args:
        x: (B, cin, H, W) float32; fastest in channels_last.
        weight: from pack_int8_conv.
        bias: (cout,) float32.
        stride: cells from one result to the next, both ways.
        relu: whether max(x, 0) follows.

    Returns:
        (B, cout, H', W') float32 in channels_last, or None where bytes cannot stand for ``x``, because a
        value is negative, infinite or undefined or ``x`` has none (FakeTensor), or the compiled kernels
        cannot be used.

    Raises:
        InputError: channels, bias or stride that do not fit.
    """
    usable = native_for(x, bias) is not None and x.dtype == torch.float32 and int8_is_fast()
    if not usable or isinstance(x, FakeTensor):
        return None
    _check(x, weight, bias, stride)
    result, fits = _int8_conv(x, weight.packed, weight.step, bias, stride, relu)
    return result if fits else None


@operator("int8_conv")
def _int8_conv(
    x: Tensor, packed: Tensor, step: Tensor, bias: Tensor, stride: int, relu: bool
) -> tuple[Tensor, Tensor]:
    """Return the result and whether bytes can stand for ``x``; NaN where they cannot."""
    batch, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels).contiguous()
    gather = grid_map(batch, height, width, stride)
    weight, epilogue = Int8Weight(packed, step), Epilogue(bias, None, relu, None)
    found = convolve_int8(compiled_for(x, bias), rows, weight, gather, epilogue)
    result = x.new_full((gather.shape[1], len(step)), torch.nan) if found is None else found
    result = result.view(batch, -(-height // stride), -(-width // stride), -1).permute(0, 3, 1, 2)
    return result, x.new_full((), found is not None, dtype=torch.bool)


@_int8_conv.register_fake
def _(
    x: Tensor, packed: Tensor, step: Tensor, bias: Tensor, stride: int, relu: bool
) -> tuple[Tensor, Tensor]:
    batch, _, height, width = x.shape
    result = x.new_empty(batch, -(-height // stride), -(-width // stride), step.shape[0])
    return result.permute(0, 3, 1, 2), x.new_empty((), dtype=torch.bool)


def _check(x: Tensor, weight: Int8Weight, bias: Tensor, stride: int) -> None:
    cout = len(weight.step)
    # The packed bytes do not keep their shape: columns are padded to whole vectors of 16.
    cin = len(weight.packed) // (9 * -(-cout // 16) * 16)
    if x.ndim != 4 or x.shape[1] != cin or tuple(bias.shape) != (cout,) or stride < 1:
        expected = f"x (B, {cin}, H, W), bias ({cout},) and a stride of 1 or more"
        found = f"{tuple(x.shape)}, {tuple(bias.shape)} and {stride}"
        raise InputError(describe("3x3 convolution in bytes", expected=expected, found=found))


@lru_cache(maxsize=32)
def grid_map(batch: int, height: int, width: int, stride: int) -> Tensor:
    """Return the row of the input that each result takes at each offset, (9, M) int32, -1 for none."""
    rows = torch.arange(batch * height * width, dtype=torch.int32, device="cpu").view(batch, height, width)
    bordered = F.pad(rows, (1, 1, 1, 1), value=-1)
    shifted = [
        bordered[:, down : down + height : stride, right : right + width : stride].flatten()
        for down in range(3)
        for right in range(3)
    ]
    return torch.stack(shifted)
