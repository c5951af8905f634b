# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Torch with less to do: batch normalisation in the weights, cheaper 3x3 convolutions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights, fuse_linear_bn_eval

from kestrel.engine.packed import ACTIVATIONS, PackedLayer, has_packed_layers
from kestrel.nn.axis_sampler import AxisSampler
from kestrel.nn.patch_merging import PatchMerging
from kestrel.nn.shifted_windows import ShiftedWindows
from kestrel.ops.axis_sampling import sample_axes
from kestrel.ops.backend import NATIVE
from kestrel.ops.int8_conv import int8_conv, pack_int8_conv
from kestrel.ops.packed_weight import Int8Weight
from kestrel.ops.window_attention import window_attention
from kestrel.ops.winograd import PANEL, winograd_conv, winograd_weight

_MULTIPLYING = (_ConvNd, nn.Linear, nn.MultiheadAttention)
"""Layers whose products autocast does in its own type."""


class WinogradConv2d(nn.Module):
    """A 3x3 convolution with stride 1 and border 1, and the ReLU behind it; see kestrel.ops.winograd."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, *, relu: bool) -> None:
        super().__init__()
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()
        self.register_buffer("weight", winograd_weight(conv.weight))
        self.register_buffer("bias", bias)
        self.relu = relu

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Whether ``conv`` is a convolution that can run like this."""
        return (
            isinstance(conv, nn.Conv2d)
            and conv.kernel_size == (3, 3)
            and conv.stride == conv.dilation == conv.padding == (1, 1)
            and conv.groups == 1
            and conv.padding_mode == "zeros"
            and min(conv.in_channels, conv.out_channels) >= PANEL
            and conv.weight.device.type == "cpu"
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, cin, H, W) to (B, cout, H, W), channels last."""
        return winograd_conv(x, self.weight, self.bias, relu=self.relu)


class Int8Conv2d(nn.Module):
    """A 3x3 convolution with border 1, and the ReLU behind it, in bytes; see kestrel.ops.int8_conv.

    Args:
        conv: one that has ``packed`` weights.
        weight: these.
        floats: does the same in float32, for inputs that bytes cannot stand for.
        relu: whether a ReLU is behind it.
    """

    def __init__(self, conv: nn.Conv2d, weight: Int8Weight, floats: nn.Module, *, relu: bool) -> None:
        super().__init__()
        self.weight, self.floats = weight, floats
        self.bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()
        self.stride, self.relu = conv.stride[0], relu

    @staticmethod
    def packed(layer: nn.Module) -> Int8Weight | None:
        """Return the weights in bytes of a layer that can run like this and gains by it, or None."""
        fits = (
            isinstance(layer, nn.Conv2d)
            and layer.kernel_size == (3, 3)
            and layer.stride in ((1, 1), (2, 2))
            and layer.dilation == layer.padding == (1, 1)
            and layer.groups == 1
            and layer.padding_mode == "zeros"
        )
        return pack_int8_conv(cast(nn.Conv2d, layer).weight) if fits else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, cin, H, W) to (B, cout, H', W'), channels last."""
        answer = int8_conv(x, self.weight, self.bias, stride=self.stride, relu=self.relu)
        plain: Tensor = self.floats(x) if answer is None else answer
        return plain


class InstanceNorm(nn.Module):
    """nn.InstanceNorm2d that leaves channels last, which torch's does not.

    Torch reduces over a picture whose channels are last several times more slowly than over the columns of a
    matrix. So every moment is taken over the rows of the picture first, and then along what is one row.
    """

    def __init__(self, norm: nn.InstanceNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    @staticmethod
    def fits(norm: nn.Module) -> bool:
        """Whether ``norm`` is an instance normalisation that can run like this."""
        return isinstance(norm, nn.InstanceNorm2d) and norm.affine and not norm.track_running_stats

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape, each channel of each sample normalised by itself."""
        batch, channels, height, width = x.shape

        def rows(values: Tensor) -> Tensor:
            return values.permute(0, 2, 3, 1).reshape(batch, height, width * channels)

        def along_row(moments: Tensor) -> Tensor:
            return moments.view(batch, width, channels).mean(1)[:, :, None, None]

        centred = x - along_row(rows(x).mean(1))
        variance = along_row(torch.linalg.vector_norm(rows(centred), dim=1).square() / height)
        scale = self.weight[:, None, None] * torch.rsqrt(variance + self.eps)
        return centred.mul_(scale).add_(self.bias[:, None, None])


class FoldedEngine:
    """Runs a folded copy of a module in torch, where its weights are: on a GPU with torch's convolutions.

    Args:
        module: in evaluation mode.
        bfloat16: compute in bfloat16 (with oneDNN's convolutions, which have it) what autocast would.
        dynamic_int8: parts, by the names of modules, whose 3x3 convolutions may multiply bytes: where the
            processor is fast with them and their input is nowhere negative. Not with bfloat16 or
            torch.compile.
        compiled: let torch.compile fuse what is left; takes a C++ compiler and a minute.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        bfloat16: bool = False,
        compiled: bool = False,
        dynamic_int8: Sequence[str] = (),
    ) -> None:
        self.name = "compiled" if compiled else "folded"
        self.bfloat16 = bfloat16
        self.module = fold(
            module,
            winograd=NATIVE is not None and not bfloat16,
            packed=not compiled,
            dtype=torch.bfloat16 if bfloat16 else torch.float32,
            int8=() if bfloat16 or compiled else dynamic_int8,
        )
        self._run = torch.compile(self.module) if compiled else self.module

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the module's outputs."""
        with torch.autocast(inputs[0].device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            outputs = self._run(*inputs)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def fold(
    module: nn.Module,
    *,
    winograd: bool,
    packed: bool = False,
    dtype: torch.dtype = torch.float32,
    int8: Sequence[str] = (),
) -> nn.Module:
    """Return a copy without batch normalisation behind convolutions and linear layers.

    A layer and a batch normalisation that were registered one after the other belong together, and so does
    the ReLU after them in an nn.Sequential.

    Args:
        module: in evaluation mode.
        winograd: whether 3x3 convolutions become WinogradConv2d.
        packed: whether the others, and what else gains, become PackedLayer where torch has what they need.
        dtype: of the weights of all convolutions and products; with bfloat16 the copy runs under autocast.
        int8: names of parts in which 3x3 convolutions become Int8Conv2d where that is faster; "": all.
    """
    packed = packed and has_packed_layers(dtype)
    copied = copy.deepcopy(module).eval().requires_grad_(False)
    copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for path, part in list(copied.named_modules()):
        _fold_children(part)
        for name, norm in part.named_children():
            if InstanceNorm.fits(norm):
                setattr(part, name, InstanceNorm(cast(nn.InstanceNorm2d, norm)))
        if isinstance(part, AxisSampler):
            part.sample = sample_axes
        if isinstance(part, ShiftedWindows):
            part.attend = window_attention
        if isinstance(part, PatchMerging):
            part.order_by_place()
        rounded = any(f"{path}.".startswith(f"{name}." if name else "") for name in int8)
        _replace_layers(part, winograd=winograd, packed=dtype if packed else None, int8=rounded)
    for part in copied.modules():
        # Autocast would round the weights that are left at every call.
        if dtype == torch.bfloat16 and isinstance(part, _MULTIPLYING):
            part.to(dtype)
    return copied


def _fold_children(parent: nn.Module) -> None:
    children = list(parent.named_children())
    for (name, layer), (norm_name, norm) in pairwise(children):
        folded: nn.Module
        if isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
            folded = fuse_linear_bn_eval(layer, norm)
        elif isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            folded = fuse_conv_bn_eval(layer, norm)
        elif isinstance(layer, nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d):
            folded = _folded_transpose(layer, norm)
        else:
            continue
        setattr(parent, name, folded.requires_grad_(False))
        setattr(parent, norm_name, nn.Identity())


def _folded_transpose(conv: nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> nn.Module:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
        transpose=True,
    )
    conv.weight, conv.bias = weight, bias
    return conv


def _replace_layers(parent: nn.Module, *, winograd: bool, packed: torch.dtype | None, int8: bool) -> None:
    children = [pair for pair in parent.named_children() if not isinstance(pair[1], nn.Identity)]
    behind = [*children[1:], ("", nn.Identity())]
    for (name, layer), (after, activation) in zip(children, behind, strict=False):
        in_order = isinstance(parent, nn.Sequential)
        replaced: nn.Module
        if winograd and WinogradConv2d.fits(layer):
            fused = in_order and isinstance(activation, nn.ReLU)
            replaced = WinogradConv2d(cast(nn.Conv2d, layer), relu=fused)
        elif packed is not None and PackedLayer.fits(layer, packed):
            fused = in_order and type(activation) in ACTIVATIONS
            replaced = PackedLayer(layer, activation if fused else None, packed)
        else:
            continue
        relu = isinstance(activation, nn.ReLU)
        weight = Int8Conv2d.packed(layer) if int8 and fused in (False, relu) else None
        if weight is not None:
            replaced = Int8Conv2d(cast(nn.Conv2d, layer), weight, replaced, relu=fused)
        setattr(parent, name, replaced)
        if fused:
            setattr(parent, after, nn.Identity())
