# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Benchmarks by name. Each is a function that returns the figures it measured."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any, Final, cast

from kestrel.errors import SetupError, describe
from kestrel.report import Figure

BENCHMARKS: Final[dict[str, str]] = {
    "bev-pool": "kestrel.bench.bev:bev_pooling",
    "bevfusion-official": "kestrel.bench.bevfusion:official",
    "box-points": "kestrel.bench.box_points:surroundings",
    "detection-metric": "kestrel.bench.detection_metric:detection_metric",
    "engines": "kestrel.bench.engines:engines",
    "fusion": "kestrel.bench.fusion:fusion",
    "kestrel-seg": "kestrel.bench.segmentation:kestrel_seg",
    "seg-latency": "kestrel.bench.segmentation:latency",
    "sim": "kestrel.bench.sim:simulated_frames",
    "memory": "kestrel.bench.memory:peak",
    "minkunet": "kestrel.bench.networks:minkunet",
    "point-networks": "kestrel.bench.point_networks:point_networks",
    "point-voxel": "kestrel.bench.point_voxel:points_and_voxels",
    "rotated-nms": "kestrel.bench.nms:suppression",
    "second-encoder": "kestrel.bench.networks:second_encoder",
    "sparse-conv": "kestrel.bench.sparse_conv:forward",
    "sparse-conv-backward": "kestrel.bench.sparse_conv:backward",
    "stack": "kestrel_nodes.stack_bench:stack",
    "spvcnn": "kestrel.bench.networks:spvcnn",
    "temporal-shift": "kestrel.bench.shift:temporal_shift",
    "voxelize": "kestrel.bench.voxelization:voxelization",
}
"""Name of a benchmark to "module:function"."""

NODE_BENCHMARKS: Final = ("bevfusion-official", "fusion", "kestrel-seg", "seg-latency", "temporal-shift")
"""Those of what a node does; their threads wait like those of a node."""

ROS_BENCHMARKS: Final = ("stack",)
"""Those of the distribution kestrel_nodes, which need ROS 2."""


def run(name: str, **options: Any) -> Mapping[str, Figure]:
    """Run one benchmark of BENCHMARKS, with options that it knows, and return its figures by name.

    Raises:
        SetupError: it needs the ROS 2 nodes, which are not installed.
    """
    if name in NODE_BENCHMARKS:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded
    from kestrel.pipelines.runtime import keep_freed_memory

    keep_freed_memory()  # as every pipeline does
    module, function = BENCHMARKS[name].split(":")
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if name not in ROS_BENCHMARKS:
            raise
        expected = "the ROS 2 nodes (`make setup`)"
        raise SetupError(describe(f"benchmark {name}", expected=expected, found=error)) from error
    return cast(Mapping[str, Figure], getattr(loaded, function)(**options))
