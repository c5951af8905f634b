# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What the point-cloud benchmarks look at: LiDAR sweeps between houses and parked cars, always the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

import torch
from torch import Tensor

VOXEL_SIZE: Final = 0.05
"""Edge length [m] of the voxels of SemanticKITTI networks."""

SENSOR_HEIGHT: Final = 1.73
MAX_RANGE: Final = 75.0
RANGE_NOISE: Final = 0.02

_Corner: TypeAlias = tuple[float, float, float]


def street_scan(columns: int = 1800) -> Tensor:
    """Return the (P, 4) points x, y, z [m], intensity of a 64-beam sensor in a street.

    With the default columns the scan has about 80k voxels of 0.05 m and 570k pairs of neighbours in 3x3x3;
    P is about 63 times the columns.
    """
    return _sweep(64, (-24.8, 2.0), columns, 0.0, torch.Generator().manual_seed(0))


def ten_sweeps(columns: int = 1000) -> Tensor:
    """Return the (P, 4) points of ten 32-beam sweeps from a car that drives 0.5 m between two of them."""
    generator = torch.Generator().manual_seed(0)
    sweeps = [_sweep(32, (-30.7, 10.7), columns, -0.5 * number, generator) for number in range(10)]
    return torch.cat(sweeps)


def voxel_indices(points: Tensor) -> Tensor:
    """Return the (P, 4) int64 voxel of every point, columns batch (0), x, y, z."""
    cells = (points[:, :3] / VOXEL_SIZE).floor().long()
    return torch.nn.functional.pad(cells, (1, 0))


def _sweep(
    beams: int, elevation: tuple[float, float], columns: int, forward: float, generator: torch.Generator
) -> Tensor:
    """Return the points of one turn of a sensor ``forward`` metres along the street, in the axes of x = 0."""
    up = torch.linspace(*elevation, beams).deg2rad()[:, None]
    azimuth = (torch.arange(columns) * (2 * torch.pi / columns))[None]
    ray = torch.stack(
        (up.cos() * azimuth.cos(), up.cos() * azimuth.sin(), up.sin().expand(-1, columns)), dim=-1
    ).flatten(0, 1)
    ray = torch.where(ray.abs() < 1e-6, 1e-6, ray)
    origin = torch.tensor((forward, 0.0, 0.0))
    distance = torch.where(ray[:, 2] < 0, -SENSOR_HEIGHT / ray[:, 2], torch.inf)
    for lower, upper in _boxes():
        first, second = ((torch.tensor(corner) - origin) / ray for corner in (lower, upper))
        enter, leave = torch.minimum(first, second).amax(1), torch.maximum(first, second).amin(1)
        hit = (enter < leave) & (enter > 0)
        distance = torch.where(hit, torch.minimum(distance, enter), distance)
    seen = distance < MAX_RANGE
    distance = distance + RANGE_NOISE * torch.randn(len(ray), generator=generator)
    intensity = torch.rand(len(ray), 1, generator=generator)
    return torch.cat((origin + ray * distance[:, None], intensity), dim=1)[seen]


def _boxes() -> Iterator[tuple[_Corner, _Corner]]:
    """Yield the lower and upper corners of houses at uneven depths and of a parked car before each."""
    for number in range(-6, 6):
        start = 12.0 * number
        for side, prime in ((-1, 5), (1, 7)):
            house = 6.0 + 0.75 * (number * prime % 3)
            yield _box(side, start, 10.5, house, 10.0, 8.0)
            yield _box(side, start + 2 + side, 4.2, 3.5, 1.8, -0.25)


def _box(
    side: int, start: float, length: float, near: float, depth: float, top: float
) -> tuple[_Corner, _Corner]:
    low, high = sorted((side * near, side * (near + depth)))
    return (start, low, -SENSOR_HEIGHT), (start + length, high, top)
