# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Convolutions of oneDNN with weights in its own layout and the activation in the same pass.

Torch's plain convolution brings the weights into that layout at every call and runs activations as passes of
their own; its compiler does what is done here.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

ACTIVATIONS: Final[dict[type[nn.Module], tuple[str, list[float]]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}
"""Activations that run in the same pass: oneDNN's name and arguments."""


def has_packed_convolutions() -> bool:
    """Whether this build of torch has oneDNN and the two operators that are needed of it."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
    )


class PackedConv2d(nn.Module):
    """A float32 convolution and the activation behind it; no gradients.

    Args:
        conv: see ``fits``.
        activation: one of ACTIVATIONS, or None.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        self.geometry = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups
        name, values = ("none", []) if activation is None else ACTIVATIONS[type(activation)]
        self.activation: tuple[str, list[float]] = (name, values)
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        self.weight: Any = reorder(conv.weight.detach().to_mkldnn(), *self.geometry, None)
        self.bias = None if conv.bias is None else conv.bias.detach()

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Whether ``conv`` is a convolution that can run like this."""
        return (
            isinstance(conv, nn.Conv2d)
            and conv.padding_mode == "zeros"
            and not isinstance(conv.padding, str)
            and conv.weight.dtype == torch.float32
            and conv.weight.device.type == "cpu"
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, cin, H, W) to (B, cout, H', W'); fastest in channels_last."""
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self.geometry, *self.activation, ""
        )
        return out
