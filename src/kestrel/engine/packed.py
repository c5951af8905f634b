# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Layers of oneDNN with weights in its own layout and the activation in the same pass.

Torch's plain convolution brings the weights into that layout at every call and runs activations as passes of
their own; its compiler does what is done here. Under autocast torch also rounds the weights at every call.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

ACTIVATIONS: Final[dict[type[nn.Module], tuple[str, list[float]]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.GELU: ("gelu", []),
}
"""Activations that run in the same pass: oneDNN's name and arguments."""

_OPERATORS: Final[dict[type[nn.Module], tuple[str, str]]] = {
    nn.Conv2d: ("_reorder_convolution_weight", "_convolution_pointwise"),
    nn.ConvTranspose2d: ("_reorder_convolution_transpose_weight", "_convolution_transpose_pointwise"),
    nn.Linear: ("_reorder_linear_weight", "_linear_pointwise"),
}
"""What packs the weights of a layer and what runs it, in torch.ops.mkldnn."""


def has_packed_layers(dtype: torch.dtype) -> bool:
    """Whether this build of torch has oneDNN and the operators, and oneDNN this type on this CPU."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and all(hasattr(torch.ops.mkldnn, name) for names in _OPERATORS.values() for name in names)
        and (dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
    )


class PackedLayer(nn.Module):
    """A layer and the activation behind it; no gradients.

    Which layout of the weights is best depends on the size of the input, so that the first call packs them.
    An input of another size gets the same answer, perhaps more slowly.

    Args:
        layer: see ``fits``.
        activation: one of ACTIVATIONS, or None.
        dtype: of weights and result, float32 or bfloat16; inputs are converted.
    """

    def __init__(self, layer: nn.Module, activation: nn.Module | None, dtype: torch.dtype) -> None:
        super().__init__()
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
        self.dtype = dtype
        self.pack, self.run = _OPERATORS[type(layer)]
        name, values = ("none", []) if activation is None else ACTIVATIONS[type(activation)]
        # Of GELU there are two forms, which are told by this.
        algorithm = activation.approximate if isinstance(activation, nn.GELU) else ""
        self.activation: tuple[str, list[float], str] = (name, values, algorithm)
        self.geometry = _geometry(layer)
        self.weight: Tensor | None = layer.weight.detach().to(dtype)
        self.bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        self.packed: Any = None

    @staticmethod
    def fits(layer: nn.Module, dtype: torch.dtype) -> bool:
        """Whether ``layer`` can run like this and gains by it, which a linear layer in float32 does not."""
        if type(layer) not in _OPERATORS or layer.weight.dtype != torch.float32:
            return False
        if layer.weight.device.type != "cpu":
            return False
        if isinstance(layer, nn.Linear):
            return dtype == torch.bfloat16
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)

    def forward(self, x: Tensor) -> Tensor:
        """Return what layer and activation make of ``x``; pictures are fastest in channels_last."""
        if self.weight is not None:
            size = list(x.shape) if self.geometry else x.numel() // x.shape[-1]
            self.packed = getattr(torch.ops.mkldnn, self.pack)(self.weight, *self.geometry, size)
            self.weight = None
        run = getattr(torch.ops.mkldnn, self.run)
        out: Tensor = run(x.to(self.dtype), self.packed, self.bias, *self.geometry, *self.activation)
        return out


def _geometry(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> list[Any]:
    """Return the arguments that say where the weights go."""
    if isinstance(layer, nn.Linear):
        return []
    extra = [list(layer.output_padding)] if isinstance(layer, nn.ConvTranspose2d) else []
    return [list(layer.padding), *extra, list(layer.stride), list(layer.dilation), layer.groups]
