# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of the point-cloud operators and networks on one scan, against plain torch in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Final

import torch
from torch import Tensor

from kestrel.models.minkunet import MinkUNet
from kestrel.models.spvcnn import SPVCNN
from kestrel.ops import KernelMap, coordinate_set, sparse_conv, torchsparse_offsets, voxelize
from kestrel.ops.backend import NATIVE
from kestrel.ops.sparse_conv import convolve_reference
from kestrel.report import Figure

VOXEL_SIZE: Final = 0.05
CHANNELS: Final = 64
_TORCH: Final = "torch index, mm, index_add"


def street_scan(columns: int = 1800) -> Tensor:
    """Return the (P, 4) points x, y, z, intensity of a 64-beam sensor between uneven walls on flat ground.

    columns: firings per turn; P is about 63 times as large.
    """
    generator = torch.Generator().manual_seed(0)
    elevation = torch.linspace(-24.8, 2.0, 64).deg2rad()[:, None]
    azimuth = (torch.arange(columns) * (2 * torch.pi / columns))[None]
    level = elevation.cos()
    ray = torch.stack(
        (level * azimuth.cos(), level * azimuth.sin(), elevation.sin().expand(-1, columns)), dim=-1
    ).flatten(0, 1)
    to_ground = torch.where(ray[:, 2] < -1e-3, 1.73 / (-ray[:, 2]).clamp(min=1e-3), torch.inf)
    wall = 8 + 3 * torch.sin(torch.arange(len(ray)).div(40, rounding_mode="floor") * 1.3)
    distance = torch.minimum(to_ground, wall / ray[:, 1].abs().clamp(min=1e-3))
    distance = distance + 0.01 * torch.randn(len(ray), generator=generator)
    points = torch.cat((ray * distance[:, None], torch.rand(len(ray), 1, generator=generator)), dim=1)
    return points[distance < 70]


def sparse_conv_forward() -> dict[str, Figure]:
    """Sort a scan, build its map and convolve: submanifold 3x3x3, 64 to 64 channels."""
    indices = _voxel_indices(street_scan())
    found, features, weight = _layer(indices)
    half, half_weight = features.bfloat16(), weight.bfloat16()
    left, right = torch.randn(100_000, CHANNELS).bfloat16(), torch.randn(CHANNELS, CHANNELS).bfloat16()
    ms = medians(
        {
            "map": lambda: _map(indices),
            "fp32": lambda: sparse_conv(features, weight, found),
            "bf16": lambda: sparse_conv(half, half_weight, found),
            "torch": lambda: convolve_reference(features, weight, None, None, found.gather, False),
            "gemm": lambda: left @ right,
        }
    )
    pairs = int((found.gather >= 0).sum())
    share = (pairs / ms["bf16"]) / (len(left) / ms["gemm"])
    return {
        "voxels": Figure(len(features), "voxels"),
        "pairs": Figure(pairs, "pairs"),
        "map with sorting": Figure(ms["map"], "ms"),
        "convolution fp32": Figure(ms["fp32"], "ms", ms["torch"] / ms["fp32"], _TORCH),
        "convolution bf16": Figure(ms["bf16"], "ms", ms["torch"] / ms["bf16"], f"{_TORCH}, fp32"),
        "share of the bf16 matrix product's rate": Figure(share, "", share, "100k x 64 @ 64 x 64"),
        **_levels(features, weight, found, ms["torch"]),
    }


def sparse_conv_backward() -> dict[str, Figure]:
    """Gradients of features and weights of the same layer."""
    found, features, weight = _layer(_voxel_indices(street_scan()))
    leaves = features.requires_grad_(), weight.requires_grad_()
    upstream = torch.randn(len(features), CHANNELS)
    ours = sparse_conv(*leaves, found)
    reference = convolve_reference(*leaves, None, None, found.gather, False)
    ms = medians(
        {
            "ours": lambda: torch.autograd.grad(ours, leaves, upstream, retain_graph=True),
            "torch": lambda: torch.autograd.grad(reference, leaves, upstream, retain_graph=True),
        }
    )
    return {"gradients fp32": Figure(ms["ours"], "ms", ms["torch"] / ms["ours"], f"autograd of {_TORCH}")}


def networks() -> dict[str, Figure]:
    """MinkUNet and SPVCNN of width 1 on one scan at 0.05 m, kernel maps included."""
    points = street_scan()
    positions = torch.cat((torch.zeros(len(points), 1), points[:, :3] / VOXEL_SIZE), dim=1)
    mink, spv = MinkUNet(19).eval(), SPVCNN(19).eval()
    half, half_points = MinkUNet(19).eval().bfloat16(), points.bfloat16()
    with torch.no_grad():
        ms = medians(
            {
                "minkunet": lambda: mink(positions, points),
                "spvcnn": lambda: spv(positions, points),
                "minkunet bf16": lambda: half(positions, half_points),
            },
            repeats=5,
        )
    return {
        "points": Figure(len(points), "points"),
        "MinkUNet fp32": Figure(ms["minkunet"], "ms"),
        "MinkUNet bf16": Figure(ms["minkunet bf16"], "ms", ms["minkunet"] / ms["minkunet bf16"], "fp32"),
        "SPVCNN fp32": Figure(ms["spvcnn"], "ms", ms["minkunet"] / ms["spvcnn"], "MinkUNet fp32"),
    }


def voxelization() -> dict[str, Figure]:
    """Hard voxelization with means: 0.075 m, at most 10 points in a voxel, 160k voxels."""
    figures = {}
    bounds = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
    size = (0.075, 0.075, 0.2)
    for columns in (2100, 4900):
        points = street_scan(columns)
        cells = _voxel_indices(points)
        ms = medians(
            {
                "ours": partial(voxelize, points, size, bounds, max_points=10, max_voxels=160_000),
                "torch": partial(torch.unique, cells, dim=0, return_inverse=True),
            },
            repeats=5,
        )
        ratio = ms["torch"] / ms["ours"]
        figures[f"{len(points)} points"] = Figure(ms["ours"], "ms", ratio, "torch.unique(dim=0)")
    return figures


def _voxel_indices(points: Tensor) -> Tensor:
    cells = (points[:, :3] / VOXEL_SIZE).floor().long()
    return torch.nn.functional.pad(cells, (1, 0))


def _map(indices: Tensor) -> KernelMap:
    return coordinate_set(indices)[0].submanifold_map(torchsparse_offsets(3))


def _layer(indices: Tensor) -> tuple[KernelMap, Tensor, Tensor]:
    torch.manual_seed(0)
    found = _map(indices)
    weight = torch.randn(27, CHANNELS, CHANNELS) / (27 * CHANNELS) ** 0.5
    return found, torch.randn(found.gather.shape[1], CHANNELS), weight


def _levels(features: Tensor, weight: Tensor, found: KernelMap, reference_ms: float) -> dict[str, Figure]:
    """Return the time of the fp32 convolution at every dispatch level of this machine."""
    if NATIVE is None:
        return {}
    figures, before = {}, NATIVE.dispatch_level()
    for name in NATIVE.available_levels():
        NATIVE.set_dispatch_level(name)
        ms = medians({name: lambda: sparse_conv(features, weight, found)}, repeats=5)[name]
        figures[f"convolution fp32 {name}"] = Figure(ms, "ms", reference_ms / ms, _TORCH)
    NATIVE.set_dispatch_level(before)
    return figures


def medians(candidates: dict[str, Callable[[], object]], *, repeats: int = 9) -> dict[str, float]:
    """Return the median time [ms] of each candidate; they take turns, so that all meet the same machine."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: median(values[1:]) for name, values in times.items()}
