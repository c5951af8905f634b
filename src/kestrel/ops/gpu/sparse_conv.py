# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution as one matrix product whose rows are gathered while it runs.

An instance owns a tile of the output: it adds up all kernel slices in registers and writes once. The weight
gradient sums over all outputs; their parts go to instances of their own and are added in a second pass, in a
fixed order, where atomic additions would come in any.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kestrel.ops.gpu.launch import block_of, blocks, launch

_ROWS = 64
_LEAST = 16
"""The smallest side of a matrix product that every GPU multiplies."""

_PART = 4096
"""Outputs that one instance of the weight gradient sums over."""


@triton.jit
def _forward(
    features: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    gather: tl.tensor,
    out: tl.tensor,
    outputs: tl.tensor,
    slices: tl.tensor,
    cin: tl.tensor,
    cout: tl.tensor,
    has_bias: tl.constexpr,
    has_residual: tl.constexpr,
    relu: tl.constexpr,
    precision: tl.constexpr,
    block_rows: tl.constexpr,
    block_in: tl.constexpr,
    block_out: tl.constexpr,
) -> None:
    output = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    column = tl.program_id(1) * block_out + tl.arange(0, block_out)
    there, wanted = output < outputs, column < cout
    total = tl.zeros((block_rows, block_out), tl.float32)
    for _ in range(slices):
        row = tl.load(gather + output, mask=there, other=-1).to(tl.int64)
        # Most tiles have no neighbour at most corners of the kernel.
        if tl.max(row, axis=0) >= 0:
            for start in range(0, cin, block_in):
                channel = start + tl.arange(0, block_in)
                known = channel < cin
                left = tl.load(
                    features + row[:, None] * cin + channel[None, :],
                    mask=(row >= 0)[:, None] & known[None, :],
                    other=0,
                )
                right = tl.load(
                    weight + channel[:, None] * cout + column[None, :],
                    mask=known[:, None] & wanted[None, :],
                    other=0,
                )
                total = tl.dot(left, right, total, input_precision=precision)
        gather += outputs
        weight += cin * cout
    if has_bias:
        total += tl.load(bias + column, mask=wanted, other=0).to(tl.float32)[None, :]
    place = output[:, None] * cout + column[None, :]
    inside = there[:, None] & wanted[None, :]
    if has_residual:
        total += tl.load(residual + place, mask=inside, other=0).to(tl.float32)
    if relu:
        total = tl.where(total < 0, 0.0, total)  # not maximum: NaN must stay
    tl.store(out + place, total, mask=inside)


@triton.jit
def _weight_gradient(
    features: tl.tensor,
    gradient: tl.tensor,
    gather: tl.tensor,
    parts: tl.tensor,
    outputs: tl.tensor,
    slices: tl.tensor,
    cin: tl.tensor,
    cout: tl.tensor,
    precision: tl.constexpr,
    part_rows: tl.constexpr,
    block_rows: tl.constexpr,
    block_in: tl.constexpr,
    block_out: tl.constexpr,
) -> None:
    k = tl.program_id(0) % slices
    across = tl.cdiv(cout, block_out)
    tile = tl.program_id(1)
    channel = tile // across * block_in + tl.arange(0, block_in)
    column = tile % across * block_out + tl.arange(0, block_out)
    known, wanted = channel < cin, column < cout
    first = (tl.program_id(0) // slices).to(tl.int64) * part_rows
    gather += k.to(tl.int64) * outputs
    total = tl.zeros((block_in, block_out), tl.float32)
    for start in range(0, tl.minimum(part_rows, outputs - first), block_rows):
        output = first + start + tl.arange(0, block_rows)
        row = tl.load(gather + output, mask=output < outputs, other=-1).to(tl.int64)
        if tl.max(row, axis=0) >= 0:
            found = row >= 0
            left = tl.load(
                features + row[None, :] * cin + channel[:, None],
                mask=found[None, :] & known[:, None],
                other=0,
            )
            right = tl.load(
                gradient + output[:, None] * cout + column[None, :],
                mask=found[:, None] & wanted[None, :],
                other=0,
            )
            total = tl.dot(left, right, total, input_precision=precision)
    place = (tl.program_id(0).to(tl.int64) * cin + channel[:, None]) * cout + column[None, :]
    tl.store(parts + place, total, mask=known[:, None] & wanted[None, :])


def sparse_conv(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gather: Tensor,
    relu: bool,
) -> Tensor:
    """Compute kestrel::sparse_conv."""
    features, weight, gather = features.contiguous(), weight.contiguous(), gather.contiguous()
    slices, cin, cout = weight.shape
    outputs = gather.shape[1]
    out = features.new_empty(outputs, cout)
    block_out = block_of(cout, least=_LEAST, most=64)
    launch(
        _forward,
        (blocks(outputs, _ROWS), blocks(cout, block_out)),
        *(features, weight),
        *(None if each is None else each.contiguous() for each in (bias, residual)),
        *(gather, out, outputs, slices, cin, cout),
        has_bias=bias is not None,
        has_residual=residual is not None,
        relu=relu,
        precision=_precision(),
        block_rows=_ROWS,
        block_in=block_of(cin, least=_LEAST, most=32),
        block_out=block_out,
    )
    return out


def weight_gradient(features: Tensor, gradient: Tensor, gather: Tensor) -> Tensor:
    """Compute kestrel::sparse_conv_weight_gradient."""
    features, gradient, gather = features.contiguous(), gradient.contiguous(), gather.contiguous()
    slices, outputs = gather.shape
    cin, cout = features.shape[1], gradient.shape[1]
    block_in, block_out = (block_of(size, least=_LEAST, most=64) for size in (cin, cout))
    count = blocks(outputs, _PART)
    parts = torch.empty(count, slices, cin, cout, dtype=torch.float32, device=features.device)
    launch(
        _weight_gradient,
        (count * slices, blocks(cin, block_in) * blocks(cout, block_out)),
        *(features, gradient, gather, parts, outputs, slices, cin, cout),
        precision=_precision(),
        part_rows=_PART,
        block_rows=32,
        block_in=block_in,
        block_out=block_out,
    )
    return parts.sum(0).to(features.dtype)


def _precision() -> str:
    """Return how float32 is multiplied: as torch multiplies matrices in this process."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
