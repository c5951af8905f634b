# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Points into voxels with limits on both, as in front of BEVFusion's encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from kestrel.bench.networks import BOUNDS, CELL
from kestrel.bench.peer import Peer, race, relative_difference, spconv_peer
from kestrel.bench.scan import street_scan
from kestrel.ops import Voxels, voxelize
from kestrel.report import Figure

MAX_POINTS = 10
MAX_VOXELS = 160_000


def voxelization() -> dict[str, Figure]:
    """Voxels of 0.075 m with at most 10 points each, with their means; spconv is timed without the means."""
    figures: dict[str, Figure] = {}
    with spconv_peer() as peer:
        for columns in (2060, 4780):
            points = street_scan(columns)
            found = _voxels(points)
            task = f"{len(points)} points"
            figures[f"{task}: voxels"] = Figure(len(found.indices), "voxels")
            if peer is not None:
                peer.prepare(
                    task,
                    "point_to_voxel",
                    {"points": points},
                    voxel_size=CELL,
                    point_cloud_range=BOUNDS,
                    max_points=MAX_POINTS,
                    max_voxels=MAX_VOXELS,
                )
                figures[f"{task}: difference"] = _difference(found, peer, task)
            figures |= race({task: lambda points=points: _voxels(points)}, peer, task)  # type: ignore[misc]
    return figures


def _voxels(points: Tensor) -> Voxels:
    return voxelize(points, CELL, BOUNDS, max_points=MAX_POINTS, max_voxels=MAX_VOXELS)


def _difference(found: Voxels, peer: Peer, task: str) -> Figure:
    """Compare cells, numbers of points and means, each in the order of the cells."""
    theirs = peer.workers[1].output(task).double()
    ours = torch.cat((found.indices, found.counts[:, None], found.features), dim=1).double()
    if ours.shape != theirs.shape:
        return Figure(abs(len(ours) - len(theirs)), "voxels more or less", None, peer.name(1))
    one, other = (_by_cell(table) for table in (ours, theirs))
    return Figure(relative_difference(one, other), "relative norm", None, f"{peer.name(1)}: equality")


def _by_cell(table: Tensor) -> Tensor:
    x, y, z = table[:, :3].long().unbind(1)
    return table[((x * 10_000 + y) * 10_000 + z).argsort()]
