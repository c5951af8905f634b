# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Submanifold 3x3x3 convolution, 64 to 64 channels, on one scan: against spconv, and against plain torch."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from kestrel.bench.peer import Peer, race, relative_difference, spconv_peer
from kestrel.bench.scan import street_scan, voxel_indices
from kestrel.bench.timing import THREADS, medians, timed
from kestrel.ops import (
    CoordinateSet,
    KernelMap,
    coordinate_set,
    int8_is_fast,
    pack_weight,
    sparse_conv,
    torchsparse_offsets,
)
from kestrel.ops.backend import NATIVE
from kestrel.ops.sparse_conv import convolve_reference
from kestrel.report import Figure

CHANNELS = 64
_TORCH = "torch index, mm, index_add"


class _Layer:
    """The work of one layer: voxels in no order, their features, the weight."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        indices = torch.unique(voxel_indices(street_scan()), dim=0)
        indices[:, 1:] -= indices[:, 1:].amin(0)
        self.indices = indices[torch.randperm(len(indices), generator=generator)]
        self.features = torch.randn(len(indices), CHANNELS, generator=generator)
        scale = (27 * CHANNELS) ** -0.5
        self.weight = torch.randn(27, CHANNELS, CHANNELS, generator=generator) * scale
        self.voxels, self.rows = coordinate_set(self.indices)
        self.map = submanifold(self.voxels)
        self.sorted = torch.empty_like(self.features).index_copy_(0, self.rows, self.features)

    @property
    def pairs(self) -> int:
        return int((self.map.gather >= 0).sum())

    def whole(self, dtype: torch.dtype) -> Tensor:
        """Sort, build the map, convolve; return the result in the order of the sorted voxels."""
        voxels, rows = coordinate_set(self.indices)
        features, weight = self.features.to(dtype), self.weight.to(dtype)
        # Rows are read in the new order: torch does that with all threads, unlike writing them there.
        order = torch.empty_like(rows).scatter_(0, rows, torch.arange(len(rows)))
        return sparse_conv(features.index_select(0, order), weight, submanifold(voxels))

    def prepare(self, peer: Peer) -> None:
        shape = [int(extent) + 1 for extent in self.indices[:, 1:].amax(0)]
        # spconv's kernels run along x, y, z with z fastest, those of torchsparse_offsets with x fastest.
        weight = self.weight.view(3, 3, 3, CHANNELS, CHANNELS).permute(2, 1, 0, 3, 4).flatten(0, 2)
        arrays = {"indices": self.indices, "features": self.features, "weight": weight.contiguous()}
        for kind in ("submanifold", "submanifold_map", "submanifold_conv"):
            peer.prepare(kind, kind, arrays, spatial_shape=shape)


def forward() -> dict[str, Figure]:
    """Sort the voxels of a scan, build their map and convolve; also each part alone."""
    layer = _Layer()
    half, half_weight = layer.sorted.bfloat16(), layer.weight.bfloat16()
    with torch.no_grad(), spconv_peer() as peer:
        figures = {
            "voxels": Figure(len(layer.voxels), "voxels"),
            "pairs": Figure(layer.pairs, "pairs"),
        }
        if peer is not None:
            layer.prepare(peer)
            ours = layer.whole(torch.float32)[layer.rows]
            figures["fp32 against spconv"] = peer.difference("submanifold", ours)
        figures |= race(
            {
                "whole fp32": lambda: layer.whole(torch.float32),
                "whole bf16": lambda: layer.whole(torch.bfloat16),
            },
            peer,
            "submanifold",
        )
        figures |= race(
            {"map with sorting": lambda: submanifold(coordinate_set(layer.indices)[0])},
            peer,
            "submanifold_map",
        )
        runs = {
            "convolution fp32": lambda: sparse_conv(layer.sorted, layer.weight, layer.map),
            "convolution bf16": lambda: sparse_conv(half, half_weight, layer.map),
        }
        if int8_is_fast():
            # As behind a ReLU: what is negative somewhere is not multiplied in bytes.
            positive, packed = layer.sorted.relu(), pack_weight(layer.weight, int8=True)
            runs["convolution int8"] = lambda: sparse_conv(positive, packed, layer.map)
            exact = sparse_conv(positive, layer.weight, layer.map)
            difference = relative_difference(runs["convolution int8"](), exact)
            figures["int8 against fp32"] = Figure(difference, "relative norm")
        figures |= race(runs, peer, "submanifold_conv")
    exact = sparse_conv(layer.sorted, layer.weight, layer.map)
    rounded = sparse_conv(half, half_weight, layer.map)
    figures["bf16 against fp32"] = Figure(relative_difference(rounded, exact), "relative norm")
    return {**figures, **_ceiling(layer), **_levels(layer)}


def backward() -> dict[str, Figure]:
    """Gradients of features and weights of the same layer."""
    layer = _Layer()
    figures: dict[str, Figure] = {}
    leaves = layer.sorted.requires_grad_(), layer.weight.requires_grad_()
    upstream = torch.randn(len(layer.sorted), CHANNELS)
    reference = convolve_reference(*leaves, None, None, layer.map.gather, False)
    exact = torch.autograd.grad(reference, leaves, upstream, retain_graph=True)
    candidates = {"torch": timed(lambda: torch.autograd.grad(reference, leaves, upstream, retain_graph=True))}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        typed = tuple(leaf.detach().to(dtype).requires_grad_() for leaf in leaves)
        ours = sparse_conv(typed[0], typed[1], layer.map)
        above = upstream.to(dtype)
        found = torch.autograd.grad(ours, typed, above, retain_graph=True)
        for part, one, other in zip(("features", "weight"), found, exact, strict=True):
            label = f"{name}, gradient of the {part}, difference"
            figures[label] = Figure(relative_difference(one, other), "relative norm", None, _TORCH)
        candidates[name] = timed(
            lambda ours=ours, typed=typed, above=above: torch.autograd.grad(  # type: ignore[misc]
                ours, typed, above, retain_graph=True
            )
        )
    ms = medians(candidates)
    for name in ("fp32", "bf16"):
        label = f"gradients {name}, {THREADS} threads"
        figures[label] = Figure(ms[name], "ms", ms["torch"] / ms[name], f"autograd of {_TORCH}, fp32")
    return figures


def submanifold(voxels: CoordinateSet) -> KernelMap:
    """Return the map of a 3x3x3 layer of these voxels."""
    return voxels.submanifold_map(torchsparse_offsets(3))


def _ceiling(layer: _Layer) -> dict[str, Figure]:
    """Return the share of the rate of a dense product of the same shape, rows per second over pairs."""
    figures = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        features, weight = layer.sorted.to(dtype), layer.weight.to(dtype)
        left, right = torch.randn(100_000, CHANNELS).to(dtype), weight[0]
        candidates = {
            "ours": timed(partial(sparse_conv, features, weight, layer.map)),
            "gemm": timed(partial(torch.mm, left, right)),
        }
        ms = medians(candidates)
        share = (layer.pairs / ms["ours"]) / (len(left) / ms["gemm"])
        against = f"{name} product 100k x 64 @ 64 x 64"
        figures[f"share of the {name} matrix product's rate"] = Figure(share, "", share, against)
    return figures


def _levels(layer: _Layer) -> dict[str, Figure]:
    """Return the time of the convolution alone at every dispatch level of this machine."""
    if NATIVE is None:
        return {}
    before = NATIVE.dispatch_level()
    reference = timed(
        lambda: convolve_reference(layer.sorted, layer.weight, None, None, layer.map.gather, False)
    )
    figures = {}
    for level in NATIVE.available_levels():
        NATIVE.set_dispatch_level(level)
        ours = timed(lambda: sparse_conv(layer.sorted, layer.weight, layer.map))
        ms = medians({"ours": ours, "torch": reference}, repeats=5)
        figures[f"convolution fp32 at {level}"] = Figure(ms["ours"], "ms", ms["torch"] / ms["ours"], _TORCH)
    NATIVE.set_dispatch_level(before)
    return figures
