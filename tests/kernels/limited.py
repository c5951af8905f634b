# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Asks for more memory than the process may have: `python -m tests.kernels.limited` prints what was said."""

from __future__ import annotations

import mmap
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kestrel.ops.coordinates import sort_unique
from kestrel.pipelines import PointSegmenter
from kestrel.types import PointCloud
from kestrel_kernels import native

MIB = 1 << 20
ROOM = 16 * MIB
LARGE = 100 * MIB
"""More than there is room for, and more than glibc keeps ready for a thread."""


def at(tensor: Tensor) -> int:
    return tensor.data_ptr()


def large_calls() -> dict[str, Callable[[], object]]:
    """Return calls of kernels, in and before whose parallel regions LARGE is asked for."""
    count = LARGE // 16
    keys, unique, inverse = torch.arange(count), *torch.empty(2, count, dtype=torch.int64)
    keys[-1] = 1 << 60  # of so many bits that a key and its number take 16 bytes
    wide, deep = LARGE // 256, LARGE // 864
    row, weight, sums = torch.zeros(1), torch.zeros(wide), torch.empty(wide)
    pixel, transformed, result = torch.zeros(deep), torch.empty(36 * 16 * deep), torch.empty(16)
    one, nothing = (1, 1, 1), (0, 0, 0, 0)
    return {
        "unique_keys": lambda: native.unique_keys(at(keys), count, at(unique), at(inverse), 2),
        "sparse_conv": lambda: native.sparse_conv(
            at(row), at(weight), *nothing, at(sums), *one, wide, 0, False, 2, *nothing
        ),
        "winograd": lambda: native.winograd(
            at(pixel), at(transformed), 0, at(result), *one, deep, 16, False, 2
        ),
        "strided_triples": lambda: native.strided_triples(0, 0, [], one, [], LARGE // 8, *nothing, 2),
    }


def cloud(points: int) -> PointCloud:
    xyz = np.random.default_rng(0).uniform(-1, 1, (points, 4)) * (40, 40, 2, 0)
    return PointCloud(xyz.astype(np.float32), 1, "base_link")


def limit() -> bool:
    """Let this process grow by ROOM and no more; return whether that holds here."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, resource.RLIM_INFINITY))
    try:
        mmap.mmap(-1, LARGE).close()
    except OSError:
        return True
    return False


def main() -> None:
    torch.set_num_threads(2)
    segmenter, few, many = PointSegmenter.untrained(), cloud(2000), cloud(2_000_000)
    keys = torch.randint(0, 5000, (20_000,), generator=torch.Generator().manual_seed(0))
    sorted_keys, labels = sort_unique(keys), segmenter.segment(few)
    calls = large_calls() | {"segmenter": lambda: segmenter.segment(many)}
    if not limit():
        print("no limit")
        return
    for name, call in calls.items():
        try:
            call()
        except (MemoryError, RuntimeError) as error:
            print(f"{name}: {type(error).__name__}: {error}".splitlines()[0])
    torch.testing.assert_close(sort_unique(keys), sorted_keys, rtol=0, atol=0)
    np.testing.assert_array_equal(segmenter.segment(few).probability, labels.probability)


if __name__ == "__main__":
    main()
