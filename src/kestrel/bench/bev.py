# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Bird's-eye-view pooling at the size of BEVFusion's camera branch, against the textbook forms."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Final

import torch
from torch import Tensor

from kestrel.bench.stage_clock import PeakMemory
from kestrel.bench.timing import medians, timed
from kestrel.nn.camera_geometry import CameraGeometry
from kestrel.nn.view_transform import LSSTransform
from kestrel.ops.bev_pool import bev_cells, lift_splat
from kestrel.ops.frustum import LiftSplatIndex
from kestrel.report import Figure

CHANNELS: Final = 80
_LSS: Final = "LSS: outer product, sort, cumsum"
_INDEX_ADD: Final = "outer product, index_add"


def ring_of_cameras(count: int = 6, tilt: float = 0.01) -> CameraGeometry:
    """Return ``count`` cameras around the vehicle, each turned ``tilt`` rad about all axes against level.

    The pictures have 1600 x 900 pixels, resized and cropped to 704 x 256.
    """
    forward = torch.tensor([[0.0, 0, 1, 1.5], [-1, 0, 0, 0], [0, -1, 0, 1.6], [0, 0, 0, 1]])
    poses = []
    for number in range(count):
        yaw = torch.tensor(2 * torch.pi * number / count)
        turn = torch.eye(4)
        turn[:2, :2] = torch.tensor([[yaw.cos(), -yaw.sin()], [yaw.sin(), yaw.cos()]])
        skew = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])
        lean = torch.eye(4)
        lean[:3, :3] = torch.linalg.matrix_exp(tilt * skew)
        poses.append(turn @ forward @ lean)
    camera = torch.tensor([[1260.0, 0, 800, 0], [0, 1260, 450, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    resize = torch.eye(4)
    resize[0, 0] = resize[1, 1] = 0.48
    resize[0, 3], resize[1, 3] = -32, -176
    every = (1, count, 4, 4)
    return CameraGeometry.from_calibration(
        torch.stack(poses)[None], camera.expand(every), resize.expand(every)
    )


def transform() -> LSSTransform:
    """Return BEVFusion's view transform without the convolutions after it: 118 depths, 360 x 360 cells."""
    xy, z, depths = (-54.0, 54.0, 0.3), (-10.0, 10.0, 20.0), (1.0, 60.0, 0.5)
    return LSSTransform(8, CHANNELS, (256, 704), (32, 88), xy, xy, z, depths)


def lss_pool(depth: Tensor, context: Tensor, cells: Tensor, num_cells: int) -> Tensor:
    """Pool as Philion and Fidler 2020: all products, sorted by cell, differences of their cumulative sum."""
    features = (depth[:, :, None] * context[:, None]).movedim(2, -1).reshape(-1, context.shape[1])
    flat = cells.reshape(-1)
    kept = flat >= 0
    features, flat = features[kept], flat[kept]
    order = flat.argsort()
    features, flat = features[order].cumsum(0), flat[order]
    last = torch.ones(len(flat), dtype=torch.bool)
    last[:-1] = flat[1:] != flat[:-1]
    features, flat = features[last], flat[last]
    sums = torch.cat((features[:1], features[1:] - features[:-1]))
    return context.new_zeros(num_cells, context.shape[1]).index_copy_(0, flat, sums)


def index_add_pool(depth: Tensor, context: Tensor, cells: Tensor, num_cells: int) -> Tensor:
    """Pool with one index_add over all products, channels last; points outside add to one more row."""
    return _add_rows(*_products(depth, context, cells, num_cells), num_cells)


def _products(depth: Tensor, context: Tensor, cells: Tensor, num_cells: int) -> tuple[Tensor, Tensor]:
    features = depth[..., None] * context.permute(0, 2, 3, 1)[:, None]
    flat = torch.where(cells >= 0, cells, num_cells).reshape(-1)
    return features.reshape(len(flat), -1), flat


def _add_rows(features: Tensor, flat: Tensor, num_cells: int) -> Tensor:
    return features.new_zeros(num_cells + 1, features.shape[1]).index_add_(0, flat, features)[:num_cells]


def _scene(
    view: LSSTransform, cameras: CameraGeometry
) -> tuple[Tensor, Tensor, Tensor, tuple[int, int, int]]:
    torch.manual_seed(0)
    cells = cells_of(view, cameras)
    count, depths, height, width = cells.shape
    depth = torch.randn(count, depths, height, width).softmax(1)
    return depth, torch.randn(count, CHANNELS, height, width), cells, view.grid_shape


def cells_of(view: LSSTransform, cameras: CameraGeometry) -> Tensor:
    """Return the (N, D, H, W) cell of every point as LSS finds it."""
    return bev_cells(view.points(cameras), view.bx - view.dx / 2, view.dx, view.grid_shape).flatten(0, 1)


def bev_pooling() -> dict[str, Figure]:
    """Pool six cameras of 118 x 32 x 88 points and 80 channels into 360 x 360 cells, and back."""
    view, cameras = transform(), ring_of_cameras()
    depth, context, cells, shape = _scene(view, cameras)
    index = view.index(cameras)
    num_cells = shape[0] * shape[1] * shape[2]
    half = depth.bfloat16(), context.bfloat16()
    _check(lift_splat(depth, context, index), lss_pool(depth, context, cells, num_cells))
    ms = medians(
        {
            "fp32": timed(lambda: lift_splat(depth, context, index)),
            "bf16": timed(lambda: lift_splat(*half, index)),
            "index": timed(lambda: view.index(cameras)),
        }
    )
    slow = medians(
        {
            "lss": timed(lambda: lss_pool(depth, context, cells, num_cells)),
            "given": timed(partial(_add_rows, *_products(depth, context, cells, num_cells), num_cells)),
            "index_add": timed(lambda: index_add_pool(depth, context, cells, num_cells)),
            "index": timed(lambda: LiftSplatIndex.build(cells_of(view, cameras), 1, shape)),
        },
        repeats=3,
    )
    return {
        "points in the grid": Figure(int((cells >= 0).sum()), "points"),
        "cells with points": Figure(int((index.row_start.diff() > 0).sum()), "cells"),
        "runs": Figure(len(index.runs), "runs"),
        "fp32": Figure(ms["fp32"], "ms", slow["lss"] / ms["fp32"], _LSS),
        "fp32 against index_add": Figure(ms["fp32"], "ms", slow["index_add"] / ms["fp32"], _INDEX_ADD),
        "fp32 against given products": Figure(
            ms["fp32"], "ms", slow["given"] / ms["fp32"], "index_add alone"
        ),
        "bf16": Figure(ms["bf16"], "ms", slow["lss"] / ms["bf16"], f"{_LSS}, fp32"),
        "index of a calibration": Figure(ms["index"], "ms", slow["index"] / ms["index"], "torch"),
        **_backward(depth, context, cells, index),
        **_memory(),
    }


def _check(ours: Tensor, reference: Tensor) -> None:
    # The cumulative sum over millions of points is the one that is inexact.
    exact = ours[0].flatten(1).T
    assert float((exact - reference).norm() / exact.norm()) < 1e-2


def _backward(depth: Tensor, context: Tensor, cells: Tensor, index: LiftSplatIndex) -> dict[str, Figure]:
    leaves = depth.requires_grad_(), context.requires_grad_()
    ours = lift_splat(*leaves, index)
    reference = index_add_pool(*leaves, cells, len(index.row_start) - 1)
    upstream = torch.randn(reference.shape)
    as_map = upstream.T.view(ours.shape)
    ms = medians(
        {
            "ours": timed(lambda: torch.autograd.grad(ours, leaves, as_map, retain_graph=True)),
            "torch": timed(lambda: torch.autograd.grad(reference, leaves, upstream, retain_graph=True)),
        },
        repeats=3,
    )
    return {"gradients fp32": Figure(ms["ours"], "ms", ms["torch"] / ms["ours"], f"autograd of {_INDEX_ADD}")}


def _memory() -> dict[str, Figure]:
    """Return what each form adds to the peak of a fresh process."""
    mb = {
        form: float(
            subprocess.run(
                [sys.executable, "-c", f"from kestrel.bench import bev; bev.print_peak({form!r})"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for form in ("ours", "lss")
    }
    return {"peak memory above the input": Figure(mb["ours"], "MB", mb["lss"] / mb["ours"], _LSS)}


def print_peak(form: str) -> None:
    """Print by how many MB one call of "ours" or "lss" raises the peak memory of this process (Linux)."""
    view, cameras = transform(), ring_of_cameras()
    depth, context, cells, shape = _scene(view, cameras)
    index = view.index(cameras)
    memory = PeakMemory()
    if form == "ours":
        lift_splat(depth, context, index)
    else:
        lss_pool(depth, context, cells, shape[0] * shape[1] * shape[2])
    print(memory.growth_mib())
