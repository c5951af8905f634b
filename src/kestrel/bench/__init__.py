# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Benchmarks by name. Each is a function without arguments that returns the figures it measured."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Final, cast

from kestrel.report import Figure

BENCHMARKS: Final[dict[str, str]] = {
    "bev-pool": "kestrel.bench.bev:bev_pooling",
    "sim": "kestrel.bench.sim:simulated_frames",
    "memory": "kestrel.bench.memory:peak",
    "minkunet": "kestrel.bench.networks:minkunet",
    "second-encoder": "kestrel.bench.networks:second_encoder",
    "sparse-conv": "kestrel.bench.sparse_conv:forward",
    "sparse-conv-backward": "kestrel.bench.sparse_conv:backward",
    "spvcnn": "kestrel.bench.networks:spvcnn",
    "voxelize": "kestrel.bench.voxelization:voxelization",
}
"""Name of a benchmark to "module:function"."""


def run(name: str) -> Mapping[str, Figure]:
    """Run one benchmark of BENCHMARKS and return its figures by name."""
    module, function = BENCHMARKS[name].split(":")
    return cast(Mapping[str, Figure], getattr(importlib.import_module(module), function)())
