# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Point-voxel convolution (Liu et al., Point-Voxel CNN for Efficient 3D Deep Learning, NeurIPS 2019, sec. 4).

Neighbours meet on a coarse dense grid, single points keep their details in a shared MLP. Names and shapes of
the parameters follow the PVCNN release. Clouds come as (B, C, N): N points each, of C channels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kestrel.errors import InputError, describe
from kestrel.ops import devoxelize, point_to_voxel


@dataclass(frozen=True)
class GridPositions:
    """Where the points of B clouds lie in grids of resolution^3 cells.

    cell: (B * N,) int32 nearest cell, x slowest, after those of the clouds before.
    corners: (B * N, 8) int32 cells around each point. weights: (B * N, 8) of trilinear interpolation.
    """

    cell: Tensor
    corners: Tensor
    weights: Tensor
    clouds: int
    resolution: int

    @classmethod
    def of(cls, positions: Tensor, resolution: int) -> GridPositions:
        """Place points (B, 3, N) in grids around the middle of their cloud that just hold it."""
        if positions.ndim != 3 or positions.shape[1] != 3 or not positions.shape[2]:
            raise InputError(describe("positions", expected="shape (B, 3, N)", found=tuple(positions.shape)))
        centred = positions.detach() - positions.detach().mean(2, keepdim=True)
        radius = centred.norm(dim=1, keepdim=True).amax(2, keepdim=True)
        # A cloud whose points all coincide has no radius: it lies in the middle of its grid.
        unit = torch.where(radius > 0, centred / (2 * radius), 0) + 0.5
        scaled = (unit * resolution).clamp(0, resolution - 1)
        clouds, _, count = scaled.shape
        scaled = scaled.transpose(1, 2).reshape(-1, 3)
        first = torch.arange(clouds, device=positions.device).repeat_interleave(count) * resolution**3
        strides = torch.tensor((resolution**2, resolution, 1), device=positions.device)
        lower = scaled.floor()
        corners, weights = [], []
        for corner in itertools.product((0.0, 1.0), repeat=3):
            offset = torch.tensor(corner, device=positions.device)
            away = 1 - offset + (2 * offset - 1) * (scaled - lower)
            place = (lower + offset).clamp(max=resolution - 1).long()
            corners.append(first + (place * strides).sum(1))
            weights.append(away.prod(1))
        nearest = first + (scaled.round().long() * strides).sum(1)
        return cls(nearest.int(), torch.stack(corners, 1).int(), torch.stack(weights, 1), clouds, resolution)


class SharedMLP(nn.Module):
    """The same linear layer with batch norm and ReLU on every point."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(in_channels, out_channels, 1), nn.BatchNorm1d(out_channels), nn.ReLU(inplace=True)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, C_in, N) to (B, C_out, N)."""
        result: Tensor = self.layers(features)
        return result


class SqueezeExcite3d(nn.Module):
    """Weighs channels by the mean of the whole grid (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channels // reduction, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, grid: Tensor) -> Tensor:
        """(B, C, R, R, R) to the same shape."""
        weights: Tensor = self.fc(grid.mean((2, 3, 4)))
        return grid * weights[:, :, None, None, None]


class VoxelBranch(nn.Sequential):
    """Two 3D convolutions with batch norm and leaky ReLU, and optional squeeze-and-excitation."""

    def __init__(self, in_channels: int, out_channels: int, *, with_se: bool = False) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [
                nn.Conv3d(channels, out_channels, 3, padding=1),
                nn.BatchNorm3d(out_channels, eps=1e-4),
                nn.LeakyReLU(0.1, inplace=True),
            ]
        super().__init__(*layers, *([SqueezeExcite3d(out_channels)] if with_se else []))


class PVConv(nn.Module):
    """A voxel branch and a point branch, added.

    Args:
        in_channels: of the points.
        out_channels: of both branches.
        resolution: cells along each side of the grid.
        with_se: squeeze-and-excitation at the end of the voxel branch.
    """

    def __init__(
        self, in_channels: int, out_channels: int, resolution: int, *, with_se: bool = False
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.voxel_layers = VoxelBranch(in_channels, out_channels, with_se=with_se)
        self.point_features = SharedMLP(in_channels, out_channels)

    def forward(self, features: Tensor, places: GridPositions) -> Tensor:
        """(B, C_in, N) at ``places``, made for this resolution, to (B, C_out, N)."""
        result: Tensor = self.point_features(features)
        return result + through_grid(features, places, self.voxel_layers)


def through_grid(features: Tensor, places: GridPositions, layers: nn.Module) -> Tensor:
    """Average points (B, C, N) per cell, run ``layers`` on the grid, read it at the points: (B, C_out, N)."""
    side, cells = places.resolution, places.clouds * places.resolution**3
    rows = features.transpose(1, 2).flatten(0, 1)
    grid = point_to_voxel(rows, places.cell, cells).view(places.clouds, side, side, side, -1)
    changed: Tensor = layers(grid.movedim(4, 1))
    read = devoxelize(changed.movedim(1, 4).flatten(0, 3), places.corners, places.weights)
    return read.view(places.clouds, -1, read.shape[1]).transpose(1, 2)
