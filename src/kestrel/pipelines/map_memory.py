# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What earlier frames told about the map, kept on a grid that stands still while the vehicle moves.

A road does not move: what is far away now, or behind the vehicle, was or will be close. So the log-odds of
each cell are averaged over all frames that saw it, those from close by counting most. Each frame is resampled
once into the grid, and the grid once out of it, so that nothing blurs however often frames come.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from kestrel.engine.device import CPU
from kestrel.types import Float64Array

CLOSE_M: Final = 10.0
"""Distance from the vehicle at which a cell counts half."""

CAMERAS_ALONE: Final = 0.03
"""How much a frame without LiDAR counts: where the LiDAR fails, what it saw is better for long."""

VIEW_S: Final = 0.5
"""Seconds for which a frame counts at most, as one view: more frames a second are not more views."""

MOST_VIEWS: Final = 4.0
"""Close views after which older ones are forgotten, so that what changes is seen."""

HALVED_M: Final = 100.0
"""Way after which a view counts half: odometry drifts."""

FASTEST_MPS: Final = 100.0
JUMP_M: Final = 2.0
"""A pose that is further away than a vehicle gets, and than this, is one of another odometry."""

SLACK: Final = 6
"""Cells by which the vehicle may be beside the middle of the grid before the grid is moved."""

LIKELIEST: Final = 8.0
"""Log-odds are limited to this much, so that no frame outvotes all others."""


class MapMemory:
    """Averaged log-odds of map layers around the vehicle.

    Args:
        layers: how many.
        extent: half side of the map, metres.
        resolution: side of a cell, metres.
        device: where it is kept.
    """

    def __init__(self, layers: int, extent: float, resolution: float, device: torch.device = CPU) -> None:
        self._layers, self._device = layers, device
        self._extent, self._resolution = extent, resolution
        cells = round(2 * extent / resolution)
        # The map turned by any angle, wherever in its slack.
        self._side = math.ceil(math.sqrt(2) * cells) + 2 * SLACK + 2
        middle = (torch.arange(cells) + 0.5) * resolution - extent
        self._closeness = closeness(torch.hypot(middle[:, None], middle)).to(device)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._sums = torch.zeros(self._layers + 2, self._side, self._side, device=self._device)
        """By cell of the grid: sum of weighted log-odds, sum of weights, weight of the closest view."""
        self._corner = (0, 0)
        """Number of the grid's first cell along x and y, counted from the origin of the fixed frame."""
        self._last: tuple[int, Float64Array] | None = None

    def look(
        self, logits: Tensor, *, has_lidar: bool, stamp_ns: int, fixed_from_base: Float64Array | None
    ) -> Tensor:
        """Add a frame and return what it and those before it say about its cells.

        Everything is forgotten where time or place jumped. A frame whose place nobody knows stands alone, and
        those after it go on without it.

        Args:
            logits: (layers, X, Y) of the frame, around the vehicle, finite.
            has_lidar: whether the LiDAR took part.
            stamp_ns: its stamp.
            fixed_from_base: (4, 4) pose of the vehicle in a frame that stands still; height and slope do not
                count. None: not known.

        Returns:
            (2 * layers + 2, X, Y): log-odds of this frame; averaged ones; weight of the closest view of each
            cell and of this one, 0..1.
        """
        limited = logits.clamp(-LIKELIEST, LIKELIEST)
        weight = ((1.0 if has_lidar else CAMERAS_ALONE) * self._closeness)[None]
        if fixed_from_base is None:
            return torch.cat((limited, limited, weight, weight))
        share = self._move_to(stamp_ns, fixed_from_base)
        base_from_grid = self._base_from_grid(fixed_from_base)
        seen = _sampled(torch.cat((weight * limited, weight)), base_from_grid, self._side)
        sums, count, closest = self._sums[:-2], self._sums[-2], self._sums[-1]
        sums += share * seen[:-1]
        count += share * seen[-1]
        torch.maximum(closest, seen[-1], out=closest)
        self._sums[:-1] *= MOST_VIEWS / count.clamp(min=MOST_VIEWS)
        around = _sampled(self._sums, torch.linalg.inv(base_from_grid), len(self._closeness))
        return torch.cat((limited, around[:-2] / around[-2].clamp(min=1e-9), around[-1:], weight))

    def _move_to(self, stamp_ns: int, pose: Float64Array) -> float:
        """Bring the grid to where the vehicle is; return for how much of a view a frame there counts."""
        share = 1.0
        if self._last is not None:
            seconds = (stamp_ns - self._last[0]) * 1e-9
            way = math.dist(pose[:2, 3], self._last[1][:2, 3])
            if seconds <= 0 or way > JUMP_M + FASTEST_MPS * seconds:
                self.clear()
            else:
                share = min(1.0, seconds / VIEW_S)
                self._sums *= 0.5 ** (way / HALVED_M)
        self._last = stamp_ns, pose
        here = [math.floor(value / self._resolution) - self._side // 2 for value in pose[:2, 3].tolist()]
        moved = [new - old for new, old in zip(here, self._corner, strict=True)]
        if max(map(abs, moved)) > SLACK:
            self._sums = _shifted(self._sums, *moved)
            self._corner = here[0], here[1]
        return share

    def _base_from_grid(self, pose: Float64Array) -> Tensor:
        """Return (3, 3) from places in the grid to those in the map, both as -1..1 of their sides."""
        half = self._side * self._resolution / 2
        x, y = (corner * self._resolution + half for corner in self._corner)
        fixed_from_grid = torch.tensor([[half, 0, x], [0, half, y], [0, 0, 1]], dtype=torch.float64)
        yaw = math.atan2(pose[1, 0], pose[0, 0])
        ahead, aside = self._extent * math.cos(yaw), self._extent * math.sin(yaw)
        x, y = pose[:2, 3].tolist()
        fixed_from_map = torch.tensor([[ahead, -aside, x], [aside, ahead, y], [0, 0, 1]], dtype=torch.float64)
        base_from_grid: Tensor = torch.linalg.solve(fixed_from_map, fixed_from_grid)
        return base_from_grid


def closeness(distance: Tensor) -> Tensor:
    """Return how much the view of a cell at a distance in metres counts, 0..1.

    A sweep meets the ground the less often the further away, a picture shows it the narrower.
    """
    return 1 / (1 + (distance / CLOSE_M) ** 4)


def _sampled(values: Tensor, there_from_here: Tensor, side: int) -> Tensor:
    """Return ``values`` (C, X, Y) at the cells of a square of so many cells a side; zeros beyond them."""
    swapped = there_from_here[[1, 0]][:, [1, 0, 2]]  # to torch the second axis is x
    swapped = swapped[None].float().to(values.device)
    places = F.affine_grid(swapped, [1, 1, side, side], align_corners=False)
    return F.grid_sample(values[None], places, align_corners=False)[0]


def _shifted(grid: Tensor, rows: int, columns: int) -> Tensor:
    """Return a grid whose corner is so many cells further on; zeros come in."""
    height, width = grid.shape[1:]
    moved = torch.zeros_like(grid)
    if abs(rows) < height and abs(columns) < width:
        (to_rows, from_rows), (to_columns, from_columns) = _overlap(height, rows), _overlap(width, columns)
        moved[:, to_rows, to_columns] = grid[:, from_rows, from_columns]
    return moved


def _overlap(size: int, step: int) -> tuple[slice, slice]:
    """Return where along one side that which stays goes to, and where it was."""
    return slice(max(-step, 0), size - max(step, 0)), slice(max(step, 0), size - max(-step, 0))
