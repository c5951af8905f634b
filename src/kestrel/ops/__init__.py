# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The operators of Kestrel: reference implementations in torch, compiled kernels where they are installed."""

from __future__ import annotations

from kestrel.ops.axis_sampling import sample_axes
from kestrel.ops.backend import dispatch_level
from kestrel.ops.bev_pool import bev_cells, bev_pool, lift_splat
from kestrel.ops.box_points import box_points
from kestrel.ops.classification import most_likely
from kestrel.ops.frustum import BevGrid, FrustumRays, LiftSplatIndex
from kestrel.ops.kernel_map import (
    CoordinateSet,
    KernelMap,
    centred_offsets,
    coordinate_set,
    torchsparse_offsets,
)
from kestrel.ops.nms import circle_nms, rotated_nms
from kestrel.ops.packed_weight import PackedWeight, int8_is_fast, pack_weight
from kestrel.ops.pillars import PillarGrid, pillar_canvas
from kestrel.ops.point_voxel import devoxelize, point_rows, point_to_voxel, trilinear_neighbours
from kestrel.ops.rotated_iou import rotated_iou
from kestrel.ops.sparse_conv import pointwise, sparse_conv
from kestrel.ops.temporal_shift import temporal_shift, temporal_shift_step
from kestrel.ops.voxelize import Voxels, voxelize
from kestrel.ops.window_attention import window_attention

__all__ = [
    "BevGrid",
    "CoordinateSet",
    "FrustumRays",
    "KernelMap",
    "LiftSplatIndex",
    "PackedWeight",
    "PillarGrid",
    "Voxels",
    "bev_cells",
    "bev_pool",
    "box_points",
    "centred_offsets",
    "circle_nms",
    "coordinate_set",
    "devoxelize",
    "dispatch_level",
    "int8_is_fast",
    "lift_splat",
    "most_likely",
    "pack_weight",
    "pillar_canvas",
    "point_rows",
    "point_to_voxel",
    "pointwise",
    "rotated_iou",
    "rotated_nms",
    "sample_axes",
    "sparse_conv",
    "temporal_shift",
    "temporal_shift_step",
    "torchsparse_offsets",
    "trilinear_neighbours",
    "voxelize",
    "window_attention",
]
