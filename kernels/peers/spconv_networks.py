# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Kestrel's sparse networks built from spconv's layers, with Kestrel's weights: the peers of the benchmarks.

They are written as spconv's users write them: indice keys share the maps, batch norm and ReLU are torch's.
Indices are (batch, x, y, z), so that kernels run along x, y, z.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, TypeAlias

import spconv.pytorch as spconv
import torch
from torch import Tensor, nn

State: TypeAlias = Mapping[str, Tensor]
Triple: TypeAlias = tuple[int, int, int]


def part(state: State, prefix: str) -> dict[str, Tensor]:
    """Return the entries below ``prefix`` without it."""
    return {key[len(prefix) + 1 :]: value for key, value in state.items() if key.startswith(f"{prefix}.")}


def load_slices(conv: Any, slices: Tensor) -> Any:
    """Give a layer the (K, C_in, C_out) matrices whose offsets run along x, y, z with z fastest."""
    size = conv.weight.shape[1:4]
    conv.weight.data = slices.view(*size, *slices.shape[1:]).permute(4, 0, 1, 2, 3).contiguous()
    return conv


def load_norm(state: State, eps: float = 1e-5) -> nn.BatchNorm1d:
    """Return the batch norm of these weights."""
    norm = nn.BatchNorm1d(len(state["weight"]), eps=eps)
    norm.load_state_dict(dict(state))
    return norm


def torchsparse_conv(state: State, make: Callable[..., Any], **options: Any) -> Any:
    """Return the layer of a kernel in the order of the SPVNAS checkpoints (odd sizes: x fastest)."""
    kernel = state["kernel"]
    slices, cin, cout = kernel.shape
    size = round(slices ** (1 / 3))
    if size % 2:
        kernel = kernel.view(size, size, size, cin, cout).permute(2, 1, 0, 3, 4).reshape(slices, cin, cout)
    return load_slices(make(cin, cout, size, bias=False, **options), kernel)


class Residual(spconv.SparseModule):  # type: ignore[misc]
    """relu(net(x) + shortcut(x))."""

    def __init__(self, net: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.net, self.shortcut = net, shortcut

    def forward(self, x: Any) -> Any:
        """Run both branches."""
        y = self.net(x)
        return y.replace_feature(torch.relu(y.features + self.shortcut(x).features))


class MinkUNet(nn.Module):
    """The U-Net of kestrel.models.minkunet on voxels, from its state."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.stem = spconv.SparseSequential(
            *self._conv_norm(state, "stem.0", "stem.1", "s0"),
            *self._conv_norm(state, "stem.3", "stem.4", "s0"),
        )
        self.down = nn.ModuleList(self._down(part(state, f"stage{level}"), level) for level in range(1, 5))
        self.up = nn.ModuleList(
            self._up(part(state, f"up{step}.0.net"), f"d{5 - step}") for step in range(1, 5)
        )
        self.refine = nn.ModuleList(
            self._blocks(part(state, f"up{step}.1"), f"s{4 - step}", first=0) for step in range(1, 5)
        )
        weight = state["classifier.0.weight"]
        self.classifier = nn.Linear(weight.shape[1], weight.shape[0])
        self.classifier.load_state_dict(part(state, "classifier.0"))

    def forward(self, x: Any) -> Tensor:
        """Return the (M, classes) logits of the voxels."""
        levels = [self.stem(x)]
        for stage in self.down:
            levels.append(stage(levels[-1]))
        y = levels.pop()
        for up, refine in zip(self.up, self.refine, strict=True):
            y = up(y)
            y = refine(y.replace_feature(torch.cat((y.features, levels.pop().features), dim=1)))
        logits: Tensor = self.classifier(y.features)
        return logits

    def _conv_norm(self, state: State, conv: str, norm: str, key: str, *, act: bool = True) -> list[Any]:
        layers = [torchsparse_conv(part(state, conv), spconv.SubMConv3d, indice_key=key, padding=1)]
        layers.append(load_norm(part(state, norm)))
        return [*layers, nn.ReLU(True)] if act else layers

    def _blocks(self, state: State, key: str, *, first: int) -> Any:
        return spconv.SparseSequential(
            *(self._block(part(state, str(number)), key) for number in (first, first + 1))
        )

    def _block(self, state: State, key: str) -> Residual:
        net = spconv.SparseSequential(
            *self._conv_norm(state, "net.0", "net.1", key),
            *self._conv_norm(state, "net.3", "net.4", key, act=False),
        )
        if "downsample.0.kernel" not in state:
            return Residual(net, nn.Identity())
        # spconv reads the weight of a 1x1x1 layer in another order than that of its other layers.
        kernel = state["downsample.0.kernel"]
        mix = nn.Linear(kernel.shape[0], kernel.shape[1], bias=False)
        mix.weight.data = kernel.T.contiguous()
        return Residual(net, spconv.SparseSequential(mix, load_norm(part(state, "downsample.1"))))

    def _down(self, state: State, level: int) -> Any:
        conv = torchsparse_conv(part(state, "0.net.0"), spconv.SparseConv3d, stride=2, indice_key=f"d{level}")
        norm = load_norm(part(state, "0.net.1"))
        return spconv.SparseSequential(conv, norm, nn.ReLU(True), self._blocks(state, f"s{level}", first=1))

    def _up(self, state: State, key: str) -> Any:
        conv = torchsparse_conv(part(state, "0"), spconv.SparseInverseConv3d, indice_key=key)
        return spconv.SparseSequential(conv, load_norm(part(state, "1")), nn.ReLU(True))


class SparseEncoder(nn.Module):
    """The encoder of kestrel.models.sparse_encoder from its state.

    paddings: of the strided layer of each stage.
    """

    def __init__(self, state: State, paddings: list[Triple]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self._conv_norm(state, "conv_input.0", "conv_input.1", indice_key="s0")])
        for stage in count(1):
            blocks = part(state, f"encoder_layers.encoder_layer{stage}")
            if not blocks:
                break
            for number in range(1 + max(int(key.split(".")[0]) for key in blocks)):
                block = part(blocks, str(number))
                if "conv1.weight" in block:
                    self.layers.append(self._block(block, f"s{stage - 1}"))
                else:
                    options: dict[str, Any] = {"stride": 2, "padding": paddings[stage - 1]}
                    self.layers.append(self._conv_norm(block, "0", "1", **options))
        last = self._conv_norm(state, "conv_out.0", "conv_out.1", stride=(1, 1, 2), padding=0)
        self.layers.append(last)

    def forward(self, x: Any) -> Tensor:
        """Return the (batch, C * nz, nx, ny) map, channel = c * nz + z."""
        for layer in self.layers:
            x = layer(x)
        dense: Tensor = x.dense()
        return dense.permute(0, 1, 4, 2, 3).flatten(1, 2)

    def _conv_norm(self, state: State, conv: str, norm: str, *, act: bool = True, **options: Any) -> Any:
        weight = state[f"{conv}.weight"]
        make = spconv.SparseConv3d if "stride" in options else spconv.SubMConv3d
        options = {"padding": 1, **options}
        size, (cin, cout) = tuple(weight.shape[:3]), weight.shape[3:]
        layer = load_slices(
            make(cin, cout, size, bias=False, **options), weight.reshape(math.prod(size), cin, cout)
        )
        layers = [layer, load_norm(part(state, norm), eps=1e-3)]
        return spconv.SparseSequential(*layers, nn.ReLU(True)) if act else spconv.SparseSequential(*layers)

    def _block(self, state: State, key: str) -> Residual:
        net = spconv.SparseSequential(
            self._conv_norm(state, "conv1", "bn1", indice_key=key),
            self._conv_norm(state, "conv2", "bn2", indice_key=key, act=False),
        )
        return Residual(net, nn.Identity())
