# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""3x3 convolution with a quarter of the products: F(4x4, 3x3).

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, section 4.3: a patch of 6x6
inputs and the kernel are transformed, multiplied element by element (a matrix product over the channels)
and transformed back to 4x4 outputs. In float32 the result differs from the direct sum by about 1e-5 of the
largest value.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from kestrel.errors import InputError, describe
from kestrel.ops.backend import call, native_for
from kestrel.ops.operator import operator

PANEL: Final = 16
"""Width of the panels in which the transformed weights lie; convolutions have at least so many channels."""

_KERNEL: Final = torch.tensor(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64
) / torch.tensor([24, 24, 24, 24, 24, 24], dtype=torch.float64).view(6, 1)
_INPUT: Final = torch.tensor(
    [
        [4.0, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_OUTPUT: Final = torch.tensor(
    [[1.0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)
"""G, B^T and A^T of the paper for the points 0, 1, -1, 2, -2 and infinity."""


def winograd_weight(weight: Tensor) -> Tensor:
    """Transform the weights of a convolution.

    Args:
        weight: (cout, cin, 3, 3).

    Returns:
        (36, panels, cin, PANEL) float32; output channel p * PANEL + c is column c of panel p.

    Raises:
        InputError: the kernel is not 3x3 or has fewer than PANEL channels.
    """
    cout, cin = weight.shape[:2]
    if tuple(weight.shape[2:]) != (3, 3) or min(cin, cout) < PANEL:
        expected = f"(cout, cin, 3, 3) with at least {PANEL} channels"
        raise InputError(describe("weight of a Winograd convolution", expected=expected, found=weight.shape))
    spread = torch.einsum("ia,ocab,jb->ijco", _KERNEL, weight.detach().double(), _KERNEL).flatten(0, 1)
    padded = F.pad(spread, (0, -cout % PANEL)).view(36, cin, -1, PANEL)
    return padded.transpose(1, 2).float().contiguous()


def winograd_conv(x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool = False) -> Tensor:
    """Convolve with stride 1 and a border of one zero; no gradients.

    Args:
        x: (B, cin, H, W) float32; fastest in channels_last.
        weight: from winograd_weight.
        bias: (cout,) float32.
        relu: whether max(x, 0) follows.

    Returns:
        (B, cout, H, W) in channels_last.

    Raises:
        InputError: input, weight and bias of shapes that do not fit each other.
    """
    _check(x, weight, bias)
    out: Tensor = torch.ops.kestrel.winograd_conv(x, weight, bias, relu)
    return out


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    fits = weight.ndim == 4 and len(weight) == 36 and weight.shape[2] >= weight.shape[3] == PANEL
    if not fits:
        expected = f"(36, panels, cin >= {PANEL}, {PANEL}), as of winograd_weight"
        raise InputError(describe("weight of a Winograd convolution", expected=expected, found=weight.shape))
    panels, cin = weight.shape[1:3]
    if x.ndim != 4 or x.shape[1] != cin:
        found = tuple(x.shape)
        raise InputError(
            describe("input of a Winograd convolution", expected=f"(B, {cin}, H, W)", found=found)
        )
    # The compiled code writes whole panels, of which the last may overlap the one before.
    least, most = max(PANEL, PANEL * (panels - 1) + 1), PANEL * panels
    if bias.ndim != 1 or not least <= len(bias) <= most:
        found = tuple(bias.shape)
        raise InputError(describe("length of the bias", expected=f"{least} to {most}", found=found))


@operator("winograd_conv")
def _winograd_conv(x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    native = native_for(x, weight, bias)
    if native is None or x.dtype != torch.float32:
        return winograd_reference(x, weight, bias, relu)
    batch, cin, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    out = x.new_empty((batch, height, width, len(bias))).permute(0, 3, 1, 2)
    threads = torch.get_num_threads()
    call(
        native.winograd,
        x.permute(0, 2, 3, 1),
        weight,
        bias,
        out.permute(0, 2, 3, 1),
        batch,
        height,
        width,
        cin,
        len(bias),
        relu,
        threads,
    )
    return out


@_winograd_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    shape = (x.shape[0], len(bias), *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def winograd_reference(x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """Do the same in torch."""
    batch, _, height, width = x.shape
    down, across = -(-height // 4), -(-width // 4)
    padded = F.pad(x, (1, 4 * across - width + 1, 1, 4 * down - height + 1))
    patches = padded.unfold(2, 6, 4).unfold(3, 6, 4)
    spread = torch.einsum("ia,bcyxae,je->ijbyxc", _INPUT.to(x), patches, _INPUT.to(x))
    matrix = weight.transpose(1, 2).flatten(2)[..., : len(bias)].to(x.dtype)
    products = torch.matmul(spread.flatten(0, 1).flatten(1, 3), matrix)
    products = products.view(6, 6, batch, down, across, len(bias))
    tiles = torch.einsum("ia,aebyxc,je->bcyixj", _OUTPUT.to(x), products, _OUTPUT.to(x))
    out = tiles.reshape(batch, len(bias), 4 * down, 4 * across)[..., :height, :width] + bias.view(-1, 1, 1)
    return (out.relu() if relu else out).contiguous(memory_format=torch.channels_last)
