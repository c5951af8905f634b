# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Which points of camera pictures, lifted along their rays, fall into which bird's-eye-view cell.

That depends on where the cameras are alone (Philion and Fidler 2020, section 3), so it is computed once for
as long as that stays; of a vehicle that moves it is computed for every frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from kestrel.errors import InputError, describe
from kestrel.ops.backend import call, native_for

GridShape: TypeAlias = tuple[int, int, int]
Tables: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""row_start, runs, by_column and column_start of a LiftSplatIndex."""


@dataclass(frozen=True)
class BevGrid:
    """Cells that points along rays fall into.

    lower: (x, y, z) of the lower corner, metres. step: size of a cell along them, metres. shape: how many.
    truncated: places are truncated toward zero, as kestrel.ops.bev_cells does; else what is below the lower
        corner is outside.
    """

    lower: tuple[float, float, float]
    step: tuple[float, float, float]
    shape: GridShape
    truncated: bool = False


@dataclass(frozen=True)
class FrustumRays:
    """Where the points of N pictures are: origin + ray * depth.

    rays: (N, H, W, 3) metres per metre of depth. origins: (N, 3) metres. depths: (D,) metres.
    frames: (N,) int64 to which sample of a batch a picture belongs, -1 if it took no part.

    Raises:
        InputError: tensors of other shapes, or frames of another type.
    """

    rays: Tensor
    origins: Tensor
    depths: Tensor
    frames: Tensor

    def __post_init__(self) -> None:
        count = len(self.rays)
        there = self.rays.ndim == 4 and self.rays.shape[3] == 3 and self.origins.shape == (count, 3)
        if not there or self.depths.ndim != 1 or self.frames.shape != (count,):
            parts = (self.rays, self.origins, self.depths, self.frames)
            expected = "rays (N, H, W, 3), origins (N, 3), depths (D,), frames (N,)"
            found = ", ".join(str(tuple(part.shape)) for part in parts)
            raise InputError(describe("rays of pictures", expected=expected, found=found))
        if self.frames.dtype != torch.int64:
            raise InputError(describe("frames of pictures", expected=torch.int64, found=self.frames.dtype))

    def cells(self, grid: BevGrid) -> Tensor:
        """Return the (N, D, H, W) int64 cell of every point, ordered (sample, z, x, y), -1 outside."""
        rays, depths = self.rays[:, None], self.depths.view(1, -1, 1, 1, 1)
        points = rays * depths + self.origins[:, None, None, None]
        places = (points - points.new_tensor(grid.lower)) / points.new_tensor(grid.step)
        lowest = places > -1 if grid.truncated else places >= 0
        nx, ny, nz = grid.shape
        frame = self.frames.view(-1, 1, 1, 1)
        inside = (lowest & (places < places.new_tensor(grid.shape))).all(-1) & (frame >= 0)
        x, y, z = torch.where(inside[..., None], places, 0).long().unbind(-1)
        return torch.where(inside, ((frame * nz + z) * nx + x) * ny + y, -1)


@dataclass(frozen=True)
class LiftSplatIndex:
    """Which points of the camera frustums fall into which cell: depends on the calibration alone.

    Points that follow each other down a picture column, at one depth and in one cell, form a run; a level
    camera has one run for each column and depth. The index holds the runs of all points inside of the grid.

    row_start: (num_cells + 1,) int32 first run of each cell.
    runs: (R, 3) int32 cell, index of the first point into the flattened (N, D, H, W) points, number of
        points; ordered by cell, within a cell by (n, w, d, h).
    by_column: (R,) int32 the runs in the order of (n, w, d, h).
    column_start: (N * W + 1,) int32 first entry of by_column of each picture column.
    batch, shape: of the map.
    points: N, D, H, W of the points.
    built: whether `build` or `along` made it: its tables are not looked at once more.

    Raises:
        InputError: tables of other shapes or types, or that name runs, points or cells that there are not.
    """

    row_start: Tensor
    runs: Tensor
    by_column: Tensor
    column_start: Tensor
    batch: int
    shape: GridShape
    points: tuple[int, int, int, int]
    built: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if not self.built:
            self._check_shapes()
            self._check_contents()

    def _check_shapes(self) -> None:
        images, _, _, width = self.points
        runs = len(self.runs)
        known = {
            "row_start": (self.row_start, (self.batch * math.prod(self.shape) + 1,)),
            "runs": (self.runs, (runs, 3)),
            "by_column": (self.by_column, (runs,)),
            "column_start": (self.column_start, (images * width + 1,)),
        }
        for name, (table, shape) in known.items():
            if table.dtype != torch.int32 or table.shape != shape or not table.is_contiguous():
                expected, layout = f"contiguous torch.int32 {shape}", table.stride()
                found = f"{table.dtype} {tuple(table.shape)} with strides {layout}"
                raise InputError(describe(f"{name} of a lift-splat index", expected=expected, found=found))

    def _check_contents(self) -> None:
        _, _, height, width = self.points
        count, last = len(self.runs), math.prod(self.points) - 1
        for name, starts in (("row_start", self.row_start), ("column_start", self.column_start)):
            first, end, falls = int(starts[0]), int(starts[-1]), bool((starts.diff() < 0).any())
            if first or end != count or falls:
                found = f"one from {first} to {end}" + (" that falls" if falls else "")
                expected = f"a sequence from 0 to {count} that does not fall"
                raise InputError(describe(f"{name} of a lift-splat index", expected=expected, found=found))
        cell, point, length = self.runs.long().unbind(1)
        # A run does not leave the picture column that it begins in.
        below = height - point // width % height
        known: dict[str, tuple[Tensor, int, int | Tensor]] = {
            "cell of a run": (cell, 0, len(self.row_start) - 2),
            "first point of a run": (point, 0, last),
            "points of a run": (length, 1, below),
            "run of a column": (self.by_column, 0, count - 1),
        }
        for name, (values, lowest, highest) in known.items():
            wrong = (values < lowest) | (values > highest)
            if bool(wrong.any()):
                expected, row = "one that there is", int(wrong.nonzero()[0])
                raise InputError(describe(name, expected=expected, found=f"{int(values[row])} in row {row}"))

    @classmethod
    def build(cls, cells: Tensor, batch: int, shape: GridShape) -> LiftSplatIndex:
        """Sort the points by cell.

        Args:
            cells: (N, D, H, W) int64 as of kestrel.ops.bev_cells, N = batch * cameras, -1 for points to drop.
            batch: number of samples.
            shape: cells along x, y, z.

        Raises:
            InputError: cells of another shape or type, a cell that the map does not have, or more points
                than 32 bits count.
        """
        if cells.ndim != 4 or cells.dtype != torch.int64:
            found = f"{cells.dtype} of shape {tuple(cells.shape)}"
            raise InputError(describe("cells of points", expected="int64 (N, D, H, W)", found=found))
        images, depths, height, width = cells.shape
        points = images, depths, height, width
        num_cells = batch * shape[0] * shape[1] * shape[2]
        limit = torch.iinfo(torch.int32).max
        highest = int(cells.max()) if cells.numel() else -1
        if highest >= num_cells or max(cells.numel(), num_cells) > limit:
            found = f"{highest} in {cells.numel()} points and {num_cells} cells"
            raise InputError(describe("cell of a point", expected=f"below {num_cells}", found=found))
        return cls(*index_reference(cells, num_cells), batch, shape, points, built=True)

    @classmethod
    def along(cls, rays: FrustumRays, grid: BevGrid, batch: int) -> LiftSplatIndex:
        """Sort the points along rays by cell.

        Args:
            rays: of all pictures.
            grid: whose cells they fall into.
            batch: number of samples.

        Raises:
            InputError: a picture of a sample that the batch does not have, or more points than 32 bits count.
        """
        highest = int(rays.frames.max()) if len(rays.frames) else -1
        if highest >= batch:
            expected = f"below {batch}"
            raise InputError(describe("sample of a picture", expected=expected, found=highest))
        native = native_for(rays.rays, rays.origins, rays.depths)
        if native is None or rays.rays.dtype != torch.float32:
            return cls.build(rays.cells(grid), batch, grid.shape)
        images, height, width, _ = rays.rays.shape
        points = images, len(rays.depths), height, width
        num_cells = batch * math.prod(grid.shape)
        limit = torch.iinfo(torch.int32).max
        if max(math.prod(points), num_cells) > limit:
            found = f"{math.prod(points)} points and {num_cells} cells"
            raise InputError(describe("points along rays", expected=f"at most {limit}", found=found))
        row_start = torch.empty(num_cells + 1, dtype=torch.int32, device="cpu")
        runs = torch.empty(math.prod(points), 3, dtype=torch.int32, device="cpu")
        by_column = torch.empty(math.prod(points), dtype=torch.int32, device="cpu")
        column_start = torch.empty(images * width + 1, dtype=torch.int32, device="cpu")
        count = call(
            native.build_splat_index,
            *(rays.rays, rays.origins, rays.depths, rays.frames),
            *((*grid.lower, *grid.step), grid.truncated, (*points, *grid.shape), num_cells),
            *(row_start, runs, by_column, column_start, torch.get_num_threads()),
        )
        # The room for the worst case is given back.
        tables = row_start, runs[:count].clone(), by_column[:count].clone(), column_start
        return cls(*tables, batch, grid.shape, points, built=True)


def index_reference(cells: Tensor, num_cells: int) -> Tables:
    """Compute the tensors of a LiftSplatIndex in torch."""
    images, depths, height, width = cells.shape

    def turned(values: Tensor) -> Tensor:
        return values.view(cells.shape).permute(0, 3, 1, 2).reshape(-1)

    column = turned(cells.contiguous())
    place = torch.arange(len(column), device=cells.device)
    breaks = place % height == 0
    breaks[1:] |= column[1:] != column[:-1]
    start = breaks.nonzero().squeeze(1)
    length = torch.diff(start, append=start.new_tensor([len(column)]))
    kept = column[start] >= 0
    start, length = start[kept], length[kept]
    cell, order = column[start].sort(stable=True)
    runs = torch.stack((cell, turned(place)[start[order]], length[order]), dim=1)
    row_start = _starts(cell, num_cells)
    column_start = _starts(start.div(depths * height, rounding_mode="floor"), images * width)
    return row_start, runs.int(), order.argsort().int(), column_start


def _starts(group: Tensor, groups: int) -> Tensor:
    """Return (groups + 1,) int32: how many entries belong to lower groups."""
    starts = torch.zeros(groups + 1, dtype=torch.int32, device=group.device)
    starts[1:] = torch.bincount(group, minlength=groups).cumsum(0)
    return starts
