# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Whole point-cloud networks on one scan, kernel maps included, against the same network made of spconv."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from kestrel.bench.peer import Worker, race, relative_difference, spconv_peer
from kestrel.bench.scan import VOXEL_SIZE, street_scan, ten_sweeps
from kestrel.bench.timing import THREADS, medians, timed
from kestrel.models.minkunet import MinkUNet
from kestrel.models.sparse_encoder import SparseEncoder
from kestrel.models.spvcnn import SPVCNN
from kestrel.nn.sparse import use_int8
from kestrel.ops import coordinate_set, int8_is_fast, voxelize
from kestrel.report import Figure

NetworkT = TypeVar("NetworkT", bound=nn.Module)

CLASSES = 19
GRID = (1440, 1440, 41)
BOUNDS = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
CELL = (0.075, 0.075, 0.2)
PADDINGS = ((1, 1, 1), (1, 1, 1), (1, 1, 0))
_COARSEST = 16


class Scan:
    """A scan as points in voxels of 0.05 m, none of them negative (spconv knows no such index)."""

    def __init__(self) -> None:
        points = street_scan()
        low = (points[:, :3].amin(0) / VOXEL_SIZE / _COARSEST).floor() * _COARSEST
        self.features = points
        self.positions = nn.functional.pad(points[:, :3] / VOXEL_SIZE - low, (1, 0))

    def rows(self, network: MinkUNet) -> Tensor:
        """Return the voxel of every point, at the positions that the network rounds to."""
        scaled = network.points(self.positions, self.features).positions
        return coordinate_set(scaled.floor().long())[1]

    def prepare(self, worker: Worker, network: MinkUNet) -> int:
        """Give the voxels and the network's weights to a worker; return its memory [KiB]."""
        voxels = network.points(self.positions, self.features).voxelized()
        indices = voxels.coordinates.indices
        cells = indices[:, 1:].amax(0) // _COARSEST + 1
        arrays = {"indices": indices, "features": voxels.features, **_state(network)}
        shape = [int(extent) * _COARSEST for extent in cells]
        return worker.prepare("minkunet", "minkunet", arrays, spatial_shape=shape)


def minkunet() -> dict[str, Figure]:
    """MinkUNet of width 1: points in, logits of the points out; spconv gets voxels and returns voxels."""
    scan, network = Scan(), settled(MinkUNet(CLASSES))
    half = settled(MinkUNet(CLASSES)).bfloat16()
    features = scan.features.bfloat16()
    figures = {"points": Figure(len(scan.features), "points")}
    with torch.no_grad(), spconv_peer() as peer:
        exact = network(scan.positions, scan.features)
        if peer is not None:
            for worker in peer.workers.values():
                scan.prepare(worker, network)
            theirs = peer.workers[1].output("minkunet")[scan.rows(network)]
            figures["fp32 against spconv"] = Figure(
                relative_difference(exact, theirs), "relative norm", None, f"{peer.name(1)}: equality"
            )
        figures |= _rounding("bf16", exact, half(scan.positions, features))
        runs: dict[str, Callable[[], Tensor]] = {
            "MinkUNet fp32": lambda: network(scan.positions, scan.features),
            "MinkUNet bf16": lambda: half(scan.positions, features),
        }
        if int8_is_fast():
            quick = in_bytes(MinkUNet(CLASSES))
            runs["MinkUNet int8"] = lambda: quick(scan.positions, scan.features)
            figures |= _rounding("int8", exact, runs["MinkUNet int8"]())
        figures |= race(runs, peer, "minkunet", repeats=3)
    return figures


def spvcnn() -> dict[str, Figure]:
    """SPVCNN of width 1 on all points of the scan, against MinkUNet in the same run."""
    scan = Scan()
    figures = {"points": Figure(len(scan.features), "points")}
    with torch.no_grad():
        runs: dict[str, Callable[[], Tensor]] = {}
        names = ["fp32", "bf16", *(["int8"] if int8_is_fast() else [])]
        for name in names:
            dtype = torch.bfloat16 if name == "bf16" else torch.float32
            features = scan.features.to(dtype)
            for kind in (MinkUNet, SPVCNN):
                network = in_bytes(kind(CLASSES)) if name == "int8" else settled(kind(CLASSES)).to(dtype)
                runs[f"{kind.__name__} {name}"] = lambda network=network, features=features: network(  # type: ignore[misc]
                    scan.positions, features
                )
        for name in names[1:]:
            figures |= _rounding(name, runs["SPVCNN fp32"](), runs[f"SPVCNN {name}"]())
        ms = medians({name: timed(run) for name, run in runs.items()}, repeats=3)
    for name in names:
        mink, spv = ms[f"MinkUNet {name}"], ms[f"SPVCNN {name}"]
        figures[f"MinkUNet {name}, {THREADS} threads"] = Figure(mink, "ms")
        figures[f"SPVCNN {name}, {THREADS} threads"] = Figure(spv, "ms", mink / spv, f"MinkUNet {name}")
    return figures


def second_encoder() -> dict[str, Figure]:
    """The sparse encoder of BEVFusion on ten sweeps at 0.075 m: voxels in, bird's-eye view out."""
    voxels = voxelize(ten_sweeps(), CELL, BOUNDS, max_points=10, max_voxels=160_000)
    indices = nn.functional.pad(voxels.indices.long(), (1, 0))
    network = settled(SparseEncoder(4, GRID, encoder_paddings=PADDINGS))
    half = settled(SparseEncoder(4, GRID, encoder_paddings=PADDINGS)).bfloat16()
    features = voxels.features.bfloat16()
    figures = {"voxels": Figure(len(indices), "voxels")}
    with torch.no_grad(), spconv_peer() as peer:
        exact = network(voxels.features, indices, 1)
        if peer is not None:
            arrays = {"indices": indices, "features": voxels.features, **_state(network)}
            options = {"spatial_shape": GRID, "network": {"paddings": PADDINGS}}
            peer.prepare("encoder", "sparse_encoder", arrays, **options)
            figures["fp32 against spconv"] = peer.difference("encoder", exact)
        runs = {
            "encoder fp32": lambda: network(voxels.features, indices, 1),
            "encoder bf16": lambda: half(features, indices, 1),
        }
        if int8_is_fast():
            quick = in_bytes(SparseEncoder(4, GRID, encoder_paddings=PADDINGS))
            runs["encoder int8"] = lambda: quick(voxels.features, indices, 1)
        for name in list(runs)[1:]:
            label = f"{name.split()[1]} against fp32"
            figures[label] = Figure(relative_difference(runs[name](), exact), "relative norm")
        figures |= race(runs, peer, "encoder", repeats=3)
    return figures


def in_bytes(network: NetworkT) -> NetworkT:
    """Return the network as `settled` does, with convolutions that multiply bytes."""
    use_int8(network, True)
    return settled(network)


def settled(network: NetworkT) -> NetworkT:
    """Return the network ready to answer, with weights and batch statistics that depend on nothing but it."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if not value.is_floating_point():
                continue
            if isinstance(module, nn.BatchNorm1d) and name in ("weight", "running_var"):
                value.data.uniform_(0.5, 1.5, generator=generator)
            elif value.ndim > 1:
                fan_in = value[..., 0].numel() if not isinstance(module, nn.Linear) else value.shape[1]
                value.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            else:
                value.data.normal_(0, 0.1, generator=generator)
    return network.eval().requires_grad_(False)


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {f"state.{name}": value for name, value in network.state_dict().items()}


def _rounding(name: str, exact: Tensor, rounded: Tensor) -> dict[str, Figure]:
    """Return how far the answer in bf16 or int8 is from that in float32."""
    same = float((exact.argmax(1) == rounded.argmax(1)).double().mean())
    return {
        f"{name} against fp32": Figure(relative_difference(rounded, exact), "relative norm"),
        f"{name} names the class of fp32": Figure(same, "share of the points"),
    }
