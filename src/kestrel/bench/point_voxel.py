# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Between the points and the voxels of a scan, as the point branch of SPVCNN goes, against plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from kestrel.bench.peer import relative_difference
from kestrel.bench.scan import VOXEL_SIZE, street_scan, voxel_indices
from kestrel.bench.timing import medians, timed
from kestrel.ops import coordinate_set, devoxelize, point_to_voxel, torchsparse_offsets, trilinear_neighbours
from kestrel.ops.point_voxel import devoxelize_reference, scatter_mean_reference, trilinear_reference
from kestrel.report import Figure

CHANNELS: Final = 64
AGAINST: Final = {
    "neighbours": "torch around the compiled search",
    "devoxelize": "torch",
    "point to voxel": "torch",
}


def points_and_voxels() -> dict[str, Figure]:
    """Read voxels of 0.05 m and 64 channels at all points of a scan, and average the points of each voxel."""
    torch.manual_seed(0)
    scan = street_scan()
    voxels, rows = coordinate_set(voxel_indices(scan))
    voxels.submanifold_map(torchsparse_offsets(3))
    positions = torch.nn.functional.pad(scan[:, :3] / VOXEL_SIZE, (1, 0))
    owner, stride = rows.int(), voxels.stride
    at_voxels, at_points = torch.randn(len(voxels), CHANNELS), torch.randn(len(scan), CHANNELS)
    near = trilinear_neighbours(positions, voxels)
    ours: dict[str, Callable[[], object]] = {
        "neighbours": lambda: trilinear_neighbours(positions, voxels),
        "devoxelize": lambda: devoxelize(at_voxels, *near),
        "point to voxel": lambda: point_to_voxel(at_points, owner, len(voxels)),
    }
    theirs: dict[str, Callable[[], object]] = {
        "neighbours": lambda: trilinear_reference(positions, voxels.keys, stride),
        "devoxelize": lambda: devoxelize_reference(at_voxels, *near),
        "point to voxel": lambda: scatter_mean_reference(at_points, owner, len(voxels))[0],
    }
    figures = {"points": Figure(len(scan), "points"), "voxels": Figure(len(voxels), "voxels")}
    for name, work in ours.items():
        ms = medians({"ours": timed(work), "torch": timed(theirs[name])}, repeats=5)
        figures[name] = Figure(ms["ours"], "ms", ms["torch"] / ms["ours"], AGAINST[name])
    difference = relative_difference(devoxelize(at_voxels, *near), devoxelize_reference(at_voxels, *near))
    figures["devoxelize, difference"] = Figure(difference, "relative norm", None, "torch")
    return figures
